"""The loss around a point: gradient, Hessian and bends, streamed over the batch."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

MICROBATCH = 256  # examples in one forward pass
GRADIENT_BYTES = 64 * 2**20  # of gradients of single examples held at once

LossFn = Callable[[Any, Any], jax.Array]


def widened(tree: Any) -> Any:
    """Leaves in float32 or better, for sums."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)), tree)


def cast_like(tree: Any, like: Any) -> Any:
    """Leaves in the dtypes of those of another pytree: a tangent must have its primal's."""
    return jax.tree.map(lambda leaf, other: leaf.astype(other.dtype), tree, like)


def moved(params: Any, direction: Any, distance: jax.Array) -> Any:
    """θ + distance·direction, in float32 or better: bfloat16 does not see a small step."""
    return jax.tree.map(
        lambda leaf, step: leaf + distance.astype(leaf.dtype) * step, widened(params), direction
    )


def _mean(function: Callable[[Any], Any], batch: Any) -> Any:
    """Mean over the batch [n] of what a function of micro-batches returns for each example [m]."""
    n = jax.tree.leaves(batch)[0].shape[0]
    size = min(MICROBATCH, n)
    whole = n // size
    head = jax.tree.map(
        lambda leaf: leaf[: whole * size].reshape(whole, size, *leaf.shape[1:]), batch
    )
    rest = jax.tree.map(lambda leaf: leaf[whole * size :], batch)
    if whole == 1:
        total = function(jax.tree.map(lambda leaf: leaf[0], head)).sum()
    else:
        total = jax.lax.map(lambda micro: function(micro).sum(), head).sum()
    return (total + function(rest).sum()) / n if n % size else total / n


def mean_loss(loss_fn: LossFn, batch: Any) -> Callable[[Any], jax.Array]:
    """params -> mean over the batch [n] of the losses of single examples, in micro-batches."""

    def mean(params: Any) -> jax.Array:
        return _mean(lambda micro: jax.vmap(loss_fn, (None, 0))(params, micro), batch)

    return mean


def second_difference(
    loss_fn: LossFn, params: Any, batch: Any, direction: Any, distance: jax.Array
) -> jax.Array:
    """(L(θ + hu) + L(θ − hu) − 2L(θ))/h²: the bend of the loss along u at the scale h.

    For a quadratic it is uᵀHu, and for any loss it includes the kinks of its ReLUs, which no
    derivative at θ sees. Differences are taken example by example, so that the digits of the loss
    itself do not matter.

    Args:
      loss_fn: (params, example) -> scalar.
      params: θ.
      batch: pytree [n, ...] that L is the mean over.
      direction: u, a pytree like params.
      distance: h.
    """
    here = widened(params)
    ahead = moved(params, direction, distance)
    behind = moved(params, direction, -distance)

    def bend(example: Any) -> jax.Array:
        loss = loss_fn(here, example)
        return (loss_fn(ahead, example) - loss) + (loss_fn(behind, example) - loss)

    return _mean(lambda micro: widened(jax.vmap(bend)(micro)), batch) / distance**2


def hvp(loss_fn: LossFn, params: Any, batch: Any, vector: Any) -> Any:
    """Hessian of the mean loss times a vector: forward over reverse; a pytree like params."""
    gradient = jax.grad(mean_loss(loss_fn, batch))
    return jax.jvp(gradient, (params,), (cast_like(vector, params),))[1]


def layer_alignments(
    loss_fn: LossFn, params: Any, batch: Any, direction: Any, layers: Sequence[int]
) -> jax.Array:
    """⟨g_i, u⟩ over the parameters of each layer and for every example: [layer, n].

    By reverse mode alone, which every loss that can be trained has.

    Args:
      loss_fn: (params, example) -> scalar.
      params: pytree.
      batch: pytree [n, ...].
      direction: u, a pytree like params.
      layers: the layer of each leaf of params, counted from 0.
    """
    n = jax.tree.leaves(batch)[0].shape[0]
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
    size = max(1, min(MICROBATCH, n, GRADIENT_BYTES // max(held, 1)))

    def inner(example: Any) -> jax.Array:
        gradient = widened(jax.grad(loss_fn)(params, example))
        pairs = jax.tree.map(lambda leaf, step: (leaf * step).sum(), gradient, direction)
        return (
            jnp.zeros(max(layers) + 1)
            .at[jnp.asarray(layers)]
            .add(jnp.stack(jax.tree.leaves(pairs)))
        )

    return jax.lax.map(inner, batch, batch_size=size).T


class Hutchinson(NamedTuple):
    """Diagonal and trace of the Hessian with their standard errors, from n probes.

    Diagonals are pytrees like params.
    """

    diagonal: Any
    diagonal_error: Any
    trace: jax.Array
    trace_error: jax.Array
    n: int


def hutchinson(
    loss_fn: LossFn, params: Any, batch: Any, key: jax.Array, samples: int
) -> Hutchinson:
    """Rademacher probes v: E[v·Hv] = diag H, E[vᵀHv] = tr H (Hutchinson 1990).

    Args:
      loss_fn: (params, example) -> scalar.
      params: where.
      batch: pytree [n, ...] that the loss is the mean over.
      key: of the probes.
      samples: number of probes, at least 2 for standard errors.

    Raises:
      ValueError: fewer than two samples.
    """
    if samples < 2:
        raise ValueError(
            f"hutchinson needs at least 2 samples for its standard error, got {samples}"
        )
    leaves, tree = jax.tree.flatten(params)

    def probe(total: tuple[Any, Any], key: jax.Array) -> tuple[tuple[Any, Any], jax.Array]:
        keys = jax.random.split(key, len(leaves))
        signs = [
            jax.random.rademacher(leaf_key, leaf.shape, leaf.dtype)
            for leaf_key, leaf in zip(keys, leaves, strict=True)
        ]
        vector = tree.unflatten(signs)
        product = jax.tree.map(jnp.multiply, vector, hvp(loss_fn, params, batch, vector))
        product = widened(product)
        first, second = total
        first = jax.tree.map(jnp.add, first, product)
        second = jax.tree.map(lambda one, other: one + other**2, second, product)
        trace = sum(leaf.sum() for leaf in jax.tree.leaves(product))
        return (first, second), jnp.asarray(trace)

    nothing = jax.tree.map(jnp.zeros_like, widened(params))
    keys = jax.random.split(key, samples)
    (first, second), traces = jax.lax.scan(probe, (nothing, nothing), keys)
    diagonal = jax.tree.map(lambda total: total / samples, first)
    error = jax.tree.map(
        lambda total, mean: jnp.sqrt(jnp.maximum(total / samples - mean**2, 0) / (samples - 1)),
        second,
        diagonal,
    )
    return Hutchinson(
        diagonal, error, traces.mean(), traces.std(ddof=1) / jnp.sqrt(samples), samples
    )
