"""Moments without per-example gradients, for layers whose gradient of one example is an outer product.

A dense layer that sees one input x per example, and passes back one cotangent δ, has the gradient x ⊗ δ. Sums over
examples of its squares, signs and zeros are products of matrices: (x²)ᵀδ², sign(x)ᵀ sign(δ), |sign x|ᵀ|sign δ|. One
batched backward pass yields all x and δ, and no weight has a gradient for each example. Layers that see many inputs
per example (convolutions, tokens) gain nothing so: their per-example gradients cost what their sum does.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

# Where squared means exceed this many variances, Σg² - n·mean² loses the digits that shifted sums keep.
CANCELLING = 10.0
READS = {"dot_general", "add", "broadcast_in_dim", "reshape"}  # what a dense layer does with its parameters


class Outer(NamedTuple):
    """A dense layer with one input per example: where its kernel and bias are among the leaves, -1 for no bias."""

    kernel: int
    bias: int
    outputs: int


def outer_layers(loss_fn: Callable[[Any, Any], jax.Array], params: Any, example: Any) -> list[Outer]:
    """Flax dense layers of a loss whose parameters are read once, by one input vector per example.

    Args:
      loss_fn: (params, example) -> scalar.
      params: pytree of arrays or their shapes.
      example: one example or its shapes.
    """
    seen: list[tuple[Outer, int]] = []
    order: list[int] = []

    def traced(params: Any, example: Any) -> jax.Array:
        places = {id(leaf): index for index, leaf in enumerate(jax.tree.leaves(params))}

        def record(call: Callable, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
            found = call(*args, **kwargs)
            place = _place(context, places)
            if place:
                seen.append((Outer(*place, found.shape[-1]), args[0].ndim))
                order.append(place[0])
            return found

        with nn.intercept_methods(record):
            return loss_fn(params, example)

    program = jax.make_jaxpr(traced)(params, example).jaxpr
    leaves = program.invars[: len(jax.tree.leaves(params))]

    def read_once(index: int) -> bool:
        readers = [each for each in program.eqns if leaves[index] in each.invars]
        return index < 0 or (len(readers) == 1 and readers[0].primitive.name in READS)

    return [
        layer
        for layer, rank in seen
        if rank == 1 and order.count(layer.kernel) == 1 and read_once(layer.kernel) and read_once(layer.bias)
    ]


def _place(context: Any, places: dict[int, int]) -> tuple[int, int] | None:
    """Positions of a plain dense layer's kernel and bias, if they are leaves as they stand."""
    module = context.module
    if (
        type(module) is not nn.Dense
        or context.method_name != "__call__"
        or not module.has_variable("params", "kernel")
    ):
        return None
    kernel = places.get(id(module.get_variable("params", "kernel")))
    bias = places.get(id(module.get_variable("params", "bias")), -1) if module.use_bias else -1
    return None if kernel is None or (module.use_bias and bias < 0) else (kernel, bias)


class Tapped(NamedTuple):
    """Gradients of the other leaves [n, ...] in order, and inputs [n, i] and cotangents [n, o] of each layer."""

    rest: list[jax.Array]
    inputs: list[jax.Array]
    cotangents: list[jax.Array]


def tapped_gradients(
    loss_fn: Callable[[Any, Any], jax.Array], params: Any, examples: Any, layers: Sequence[Outer]
) -> Tapped:
    """One batched backward pass that differentiates by the outputs of `layers` in place of their parameters."""
    leaves, tree = jax.tree.flatten(params)
    held = {index for layer in layers for index in (layer.kernel, layer.bias)}
    rest = [leaf for index, leaf in enumerate(leaves) if index not in held]
    n = jax.tree.leaves(examples)[0].shape[0]
    taps = [jnp.zeros((n, layer.outputs), leaves[layer.kernel].dtype) for layer in layers]

    def loss(rest: list[jax.Array], taps: list[jax.Array], example: Any) -> tuple[jax.Array, list[jax.Array]]:
        others = iter(rest)
        filled = [leaf if index in held else next(others) for index, leaf in enumerate(leaves)]
        places = {id(leaf): index for index, leaf in enumerate(filled)}
        position = {layer.kernel: each for each, layer in enumerate(layers)}
        inputs: list[Any] = [None] * len(layers)

        def tap(call: Callable, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
            found = call(*args, **kwargs)
            place = _place(context, places)
            if place is None or place[0] not in position:
                return found
            inputs[position[place[0]]] = args[0]
            return found + taps[position[place[0]]].astype(found.dtype)

        with nn.intercept_methods(tap):
            return loss_fn(tree.unflatten(filled), example), inputs

    gradient = jax.vmap(jax.grad(loss, (0, 1), has_aux=True), (None, 0, 0))
    (found, cotangents), inputs = gradient(rest, taps, examples)
    return Tapped(found, inputs, cotangents)


class OuterSums(NamedTuple):
    """Of gradients x ⊗ δ [n]: mean, sum of squared deviations, sign sum and zeros [i, o], squared norms [n], and
    whether the deviations kept their digits."""

    mean: jax.Array
    square: jax.Array
    sign_sum: jax.Array
    zeros: jax.Array
    square_norms: jax.Array
    sound: jax.Array


def outer_sums(inputs: jax.Array, cotangents: jax.Array) -> OuterSums:
    """Sums over n outer products of inputs [n, i] and cotangents [n, o], without forming one of them."""
    n = len(inputs)
    x, d = (each.astype(jnp.promote_types(each.dtype, jnp.float32)) for each in (inputs, cotangents))
    mean = x.T @ d / n
    square = (x**2).T @ d**2 - n * mean**2
    signs = jnp.sign(x), jnp.sign(d)
    return OuterSums(
        mean=mean,
        square=jnp.maximum(square, 0),
        sign_sum=(signs[0].T @ signs[1]).astype(jnp.int32),
        zeros=n - (jnp.abs(signs[0]).T @ jnp.abs(signs[1])).astype(jnp.int32),
        square_norms=(x**2).sum(1) * (d**2).sum(1),
        sound=(n * mean**2 <= CANCELLING * square).all() & jnp.isfinite(square).all(),
    )
