"""What an optimizer may ask of a batch beside its mean gradient, from the same examples."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from surge.gradients.batch import Draw, mean_gradient, weighted
from surge.optimizers.step import ExampleMoments

LossFn = Callable[[Any, Any], jax.Array]


class _Sums(NamedTuple):
    """Over examples: of gradients, of their squares, and of the norms of groups of them."""

    gradient: Any
    square: Any
    norm: Any


def example_moments(
    loss_fn: LossFn,
    draw: Draw,
    params: Any,
    data: Any,
    key: jax.Array,
    batch_size: jax.Array | int,
    microbatch_size: int,
    norm_batch: int = 1,
) -> tuple[Any, ExampleMoments]:
    """The gradient of one batch, and moments of the gradients of its single examples.

    It differentiates every example by itself, for a few times the cost of a mean gradient. The
    batch is that of `mean_gradient` with the same key; sums are in float32 or better.

    Args:
      loss_fn: (params, example) -> scalar.
      draw, params, data, key, batch_size, microbatch_size: as for `mean_gradient`.
      norm_batch: consecutive examples whose mean gradient has one of the norms that are averaged;
        a last group of fewer is one as well.

    Returns:
      The mean gradient, a pytree like params, and ExampleMoments.
    """
    # Groups do not straddle micro-batches.
    size = -(-microbatch_size // norm_batch) * norm_batch

    def part(index: jax.Array | int) -> _Sums:
        position = index * size + jnp.arange(size)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, position)
        examples = jax.vmap(draw, (None, 0))(data, keys)
        gradients = jax.vmap(jax.grad(loss_fn), (None, 0))(params, examples)
        return _sums(gradients, position < batch_size, norm_batch)

    def add(index: jax.Array, total: _Sums) -> _Sums:
        return jax.tree.map(jnp.add, total, part(index))

    chunks = (batch_size + size - 1) // size
    total = jax.lax.fori_loop(1, chunks, add, part(0))
    groups = (batch_size + norm_batch - 1) // norm_batch

    def mean(sums: Any, count: jax.Array | int) -> Any:
        return jax.tree.map(lambda leaf, like: (leaf / count).astype(like.dtype), sums, params)

    moments = ExampleMoments(
        square=mean(total.square, batch_size),
        norm=mean(total.norm, groups),
        inner=None,
        count=batch_size,
    )
    return mean(total.gradient, batch_size), moments


def _sums(gradients: Any, present: jax.Array, norm_batch: int) -> _Sums:
    """Over the examples present [n] of stacked gradients [n, ...]."""

    def masked(leaf: jax.Array) -> jax.Array:
        wide = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
        return jnp.where(present.reshape(-1, *[1] * (leaf.ndim - 1)), wide, 0)

    counts = present.reshape(-1, norm_batch).sum(1)  # [group]

    def norms(leaf: jax.Array) -> jax.Array:
        """The sum over groups of the norm of a group's mean gradient."""
        together = leaf.reshape(-1, norm_batch, leaf[0].size).sum(1)
        return (jnp.sqrt((together**2).sum(1)) / jnp.maximum(counts, 1)).sum()

    kept = jax.tree.map(masked, gradients)
    return _Sums(
        gradient=jax.tree.map(lambda leaf: leaf.sum(0), kept),
        square=jax.tree.map(lambda leaf: (leaf**2).sum(0), kept),
        norm=jax.tree.map(norms, kept),
    )


def gradients_elsewhere(
    loss_fn: LossFn,
    draw: Draw,
    data: Any,
    key: jax.Array,
    batch_size: jax.Array | int,
    microbatch_size: int,
) -> Callable[[Any], Any]:
    """points [K, ...] -> gradients there [K, ...], of the K shares that a batch is dealt into.

    Share k has examples k, k + K, k + 2K, ... of the batch that `mean_gradient` draws with the same
    key; none may be empty, which takes a batch of at least K examples.

    Args: as for `mean_gradient`.
    """

    def gradient_fn(points: Any) -> Any:
        workers = jax.tree.leaves(points)[0].shape[0]

        def one(share: tuple[jax.Array, Any]) -> Any:
            worker, point = share
            held = (batch_size - worker + workers - 1) // workers
            return mean_gradient(
                weighted(loss_fn),
                draw,
                point,
                data,
                key,
                held,
                microbatch_size,
                dealt=(worker, workers),
            )

        return jax.lax.map(one, (jnp.arange(workers), points))

    return gradient_fn
