"""The gradient of one batch, drawn by key and taken in micro-batches."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Draw = Callable[[Any, jax.Array], Any]


def weighted(
    loss_fn: Callable[[Any, Any], jax.Array],
) -> Callable[[Any, Any, jax.Array], jax.Array]:
    """(params, examples, weight) -> weighted sum of the losses of single examples."""
    return lambda params, examples, weight: weight @ jax.vmap(loss_fn, (None, 0))(params, examples)


def mean_gradient(
    loss: Callable[[Any, Any, jax.Array], jax.Array],
    draw: Draw,
    params: Any,
    data: Any,
    key: jax.Array,
    batch_size: jax.Array | int,
    microbatch_size: int,
    *,
    dealt: tuple[jax.Array | int, int] = (0, 1),
    devices: str | None = None,
    weigh: Callable[[Any], jax.Array] | None = None,
) -> Any:
    """Gradient of the loss of one batch, the sum of those of its micro-batches.

    Example i of the batch comes from fold_in(key, i), so a larger batch contains every smaller one
    of the same key, and splitting into micro-batches changes nothing but rounding. Sums are kept in
    float32 or better, whatever the parameters' dtype.

    Args:
      loss: (params, examples, weight) -> scalar, for a micro-batch of examples whose weights
        [microbatch_size] sum to its share of the batch; see `weighted`.
      draw: (data, key) -> one example.
      params: pytree.
      data: what draw picks from.
      key: of this batch.
      batch_size: examples B, may be traced.
      microbatch_size: examples held at once, static; a batch smaller than it is padded with weight
        0.
      dealt: (k, K): B examples of which i comes from fold_in(key, k + K i), a K-th of a batch.
      devices: a mapped axis whose devices share the micro-batches, one each in turn, and all get
        the gradient of the whole batch; None: this device has them all.
      weigh: example -> its weight of at least 0, such as its tokens: the loss of the batch is then
        Σ weight · loss / Σ weight, 0 for a batch without any. None: all count alike.

    Returns:
      Pytree like params.
    """
    first, every = dealt
    device, shared_by = (
        (jax.lax.axis_index(devices), jax.lax.axis_size(devices)) if devices else (0, 1)
    )

    def part(index: jax.Array | int) -> Any:
        ours = device + shared_by * index if devices else index
        position = ours * microbatch_size + jnp.arange(microbatch_size)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, first + every * position)
        examples = jax.vmap(draw, (None, 0))(data, keys)
        weight = (position < batch_size) / batch_size
        if weigh is not None:
            weight *= jax.vmap(weigh)(examples)
        gradient = jax.tree.map(_widened, jax.grad(loss)(params, examples, weight))
        return gradient if weigh is None else (gradient, weight.sum())

    def add(index: jax.Array, total: Any) -> Any:
        return jax.tree.map(jnp.add, total, part(index))

    # The first micro-batch outside the loop: no zeros to fill and add to, a third off the step of a
    # small model.
    chunks = (batch_size + microbatch_size - 1) // microbatch_size
    if devices:
        # The same for all, so that they meet at the sum; spare ones have weight 0.
        turns = (chunks + shared_by - 1) // shared_by
        total = jax.lax.psum(jax.lax.fori_loop(1, turns, add, part(0)), devices)
    else:
        total = jax.lax.fori_loop(1, chunks, add, part(0))
    if weigh is not None:
        total, weights = total
        weights = jnp.where(weights > 0, weights, 1)
        total = jax.tree.map(lambda leaf: leaf / weights, total)
    return jax.tree.map(lambda leaf, like: leaf.astype(jnp.result_type(like)), total, params)


def _widened(leaf: jax.Array) -> jax.Array:
    """In float32 or better: a sum of thousands of bfloat16 terms stops growing at 256 of them."""
    return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
