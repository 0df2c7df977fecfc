"""The loss along directions: slopes, curvatures, Hessian products and diagonals, streamed over the
batch."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

MICROBATCH = 256  # examples in one forward pass

LossFn = Callable[[Any, Any], jax.Array]


def mean_loss(loss_fn: LossFn, batch: Any) -> Callable[[Any], jax.Array]:
    """params -> mean over the batch [n] of the losses of single examples, in micro-batches."""
    n = jax.tree.leaves(batch)[0].shape[0]
    size = min(MICROBATCH, n)
    whole = n // size
    head = jax.tree.map(
        lambda leaf: leaf[: whole * size].reshape(whole, size, *leaf.shape[1:]), batch
    )
    rest = jax.tree.map(lambda leaf: leaf[whole * size :], batch)
    losses = jax.vmap(loss_fn, (None, 0))

    def mean(params: Any) -> jax.Array:
        if whole == 1:
            total = losses(params, jax.tree.map(lambda leaf: leaf[0], head)).sum()
        else:
            total = jax.lax.map(lambda micro: losses(params, micro).sum(), head).sum()
        return (total + losses(params, rest).sum()) / n if n % size else total / n

    return mean


class Along(NamedTuple):
    """The loss and its first and second derivative along a direction: L(θ), uᵀ∇L, uᵀHu."""

    loss: jax.Array
    slope: jax.Array
    bend: jax.Array


def along(loss_fn: LossFn, params: Any, batch: Any, direction: Any) -> Along:
    """Taylor coefficients of t -> L(θ + t·direction) at 0, by forward mode alone: no backward pass.

    Args:
      loss_fn: (params, example) -> scalar.
      params: θ.
      batch: pytree [n, ...] that L is the mean over.
      direction: u, a pytree like params.
    """
    mean = mean_loss(loss_fn, batch)

    def value_and_slope(point: Any) -> tuple[jax.Array, jax.Array]:
        return jax.jvp(mean, (point,), (direction,))

    (loss, slope), (_, bend) = jax.jvp(value_and_slope, (params,), (direction,))
    return Along(loss, slope, bend)


def quadratic_form(loss_fn: LossFn, params: Any, batch: Any, direction: Any) -> jax.Array:
    """uᵀHu for the Hessian of the mean loss."""
    return along(loss_fn, params, batch, direction).bend


def hvp(loss_fn: LossFn, params: Any, batch: Any, vector: Any) -> Any:
    """Hessian of the mean loss times a vector: forward over reverse; a pytree like params."""
    return jax.jvp(jax.grad(mean_loss(loss_fn, batch)), (params,), (vector,))[1]


def alignments(loss_fn: LossFn, params: Any, batch: Any, direction: Any) -> jax.Array:
    """⟨g_i, u⟩ of every example [n]: its loss's slope along u, without its gradient."""
    n = jax.tree.leaves(batch)[0].shape[0]

    def slope(example: Any) -> jax.Array:
        return jax.jvp(lambda point: loss_fn(point, example), (params,), (direction,))[1]

    return jax.lax.map(slope, batch, batch_size=min(MICROBATCH, n))


def layer_alignments(
    loss_fn: LossFn, params: Any, batch: Any, direction: Any, layers: Sequence[int]
) -> jax.Array:
    """⟨g_i, u⟩ over the parameters of each layer and for every example: [layer, n].

    Args:
      loss_fn: (params, example) -> scalar.
      params: pytree.
      batch: pytree [n, ...].
      direction: u, a pytree like params.
      layers: the layer of each leaf of params, counted from 0.
    """
    leaves, tree = jax.tree.flatten(direction)

    def one(layer: jax.Array) -> jax.Array:
        held = [
            jnp.where(layer == each, leaf, 0) for each, leaf in zip(layers, leaves, strict=True)
        ]
        return alignments(loss_fn, params, batch, tree.unflatten(held))

    return jax.lax.map(one, jnp.arange(max(layers) + 1))


class Hutchinson(NamedTuple):
    """Diagonal of the Hessian (a pytree like params) and trace, each with its standard error, from
    n probes."""

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

    def probe(total: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        keys = jax.random.split(key, len(leaves))
        signs = [
            jax.random.rademacher(each, leaf.shape, leaf.dtype)
            for each, leaf in zip(keys, leaves, strict=True)
        ]
        vector = tree.unflatten(signs)
        product = jax.tree.map(jnp.multiply, vector, hvp(loss_fn, params, batch, vector))
        trace = sum(leaf.sum() for leaf in jax.tree.leaves(product))
        first, second = total
        first = jax.tree.map(jnp.add, first, product)
        return (
            first,
            jax.tree.map(lambda one, other: one + other**2, second, product),
        ), jnp.asarray(trace)

    nothing = jax.tree.map(jnp.zeros_like, params)
    (first, second), traces = jax.lax.scan(
        probe, (nothing, nothing), jax.random.split(key, samples)
    )
    diagonal = jax.tree.map(lambda total: total / samples, first)
    error = jax.tree.map(
        lambda total, mean: jnp.sqrt(jnp.maximum(total / samples - mean**2, 0) / (samples - 1)),
        second,
        diagonal,
    )
    return Hutchinson(
        diagonal, error, traces.mean(), traces.std(ddof=1) / jnp.sqrt(samples), samples
    )
