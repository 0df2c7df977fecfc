"""What an optimizer may ask of a batch beside its mean gradient, from the same examples."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from surge.gradients.batch import Draw, mean_gradient, weighted
from surge.gradients.example_sums import example_sums
from surge.gradients.products import plan
from surge.optimizers.step import ExampleMoments

LossFn = Callable[[Any, Any], jax.Array]


def example_moments(
    loss_fn: LossFn,
    draw: Draw,
    params: Any,
    data: Any,
    key: jax.Array,
    batch_size: jax.Array | int,
    microbatch_size: int,
    norm_batch: int = 1,
    *,
    inner: bool = False,
) -> tuple[Any, ExampleMoments]:
    """The gradient of one batch, and moments of the gradients of its single examples.

    One backward pass, whose products are summed without single gradients where they can be
    (`example_sums`); inner products take a forward pass more. The batch is that of `mean_gradient`
    with the same key; sums are in float32 or better.

    Args:
      loss_fn: (params, example) -> scalar.
      draw, params, data, key, batch_size, microbatch_size: as for `mean_gradient`.
      norm_batch: consecutive examples whose mean gradient has one of the norms that are averaged;
        a last group of fewer is one as well.
      inner: whether the variance of ⟨g_n, G⟩ is asked for.

    Returns:
      The mean gradient, a pytree like params, and ExampleMoments.
    """
    # Groups do not straddle micro-batches.
    size = -(-microbatch_size // norm_batch) * norm_batch
    chunks = (batch_size + size - 1) // size
    products = plan(loss_fn, params, jax.eval_shape(draw, data, key))

    def drawn(index: jax.Array | int) -> tuple[Any, jax.Array]:
        """Examples of a micro-batch, and which of them are in the batch."""
        position = index * size + jnp.arange(size)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, position)
        return jax.vmap(draw, (None, 0))(data, keys), position < batch_size

    def summed(part: Callable[[Any, jax.Array], Any]) -> Any:
        def add(index: jax.Array, total: Any) -> Any:
            return jax.tree.map(jnp.add, total, part(*drawn(index)))

        return jax.lax.fori_loop(1, chunks, add, part(*drawn(0)))

    total = summed(
        lambda examples, present: example_sums(products, params, examples, present, norm_batch)
    )
    groups = (batch_size + norm_batch - 1) // norm_batch

    def mean(sums: Any, count: jax.Array | int) -> Any:
        return jax.tree.map(lambda leaf, like: (leaf / count).astype(like.dtype), sums, params)

    gradient = mean(total.gradient, batch_size)
    along = None
    if inner:
        squares = summed(lambda *part: _inner_squares(loss_fn, params, gradient, *part))
        along = squares / (batch_size - 1)
    moments = ExampleMoments(
        square=mean(total.square, batch_size),
        norm=mean(total.norm, groups),
        inner=along,
        count=batch_size,
        # Its difference from |G|² is the noise, which bfloat16 has no digits for.
        square_norm=jax.tree.map(lambda leaf: leaf / batch_size, total.square_norm),
    )
    return gradient, moments


def _inner_squares(
    loss_fn: LossFn,
    params: Any,
    gradient: Any,
    examples: Any,
    present: jax.Array,  # [n]
) -> jax.Array:
    """Σ_n (⟨g_n, G⟩ − |G|²)²: |G|² is the mean of the inner products."""

    def losses(params: Any) -> jax.Array:
        return jax.vmap(loss_fn, (None, 0))(params, examples)

    _, products = jax.jvp(losses, (params,), (gradient,))
    squares = [(leaf.astype(products.dtype) ** 2).sum() for leaf in jax.tree.leaves(gradient)]
    away = products - jnp.stack(squares).sum()
    return (jnp.where(present, away, 0) ** 2).sum()


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
