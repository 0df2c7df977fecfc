"""Moments of per-example gradients, streamed in micro-batches and mergeable in any order."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import logging

from surge.gradients.leaf_sums import BLOCK, LeafSums, leaf_sums
from surge.gradients.products import Plan, plan
from surge.gradients.taps import tapped_gradients

# Of activations and gradients of examples held at once, where no size is asked for.
MICROBATCH_BYTES = 128 * 2**20
# Examples in any micro-batch: sums that hold signs and zeros in one number have room for no more.
MOST = 2048


class GradientMoments(NamedTuple):
    """Moments of n gradients; leaves of mean, square, sign_sum and zeros are shaped like params.

    Attributes:
      n: how many gradients.
      mean: mean gradient, float32 or better.
      square: sum of squared deviations from the mean (Welford), float32 or better.
      sign_sum: count of positive minus count of negative, int32.
      zeros: count of exact zeros, int32.
      square_norms: per leaf of params the squared norm of each gradient [n].
    """

    n: jax.Array
    mean: Any
    square: Any
    sign_sum: Any
    zeros: Any
    square_norms: Any

    @property
    def variance(self) -> Any:
        """Unbiased variance of each parameter's gradient; nan for n = 1."""
        freedom = jnp.where(self.n > 1, self.n - 1, jnp.nan)
        return jax.tree.map(lambda square: square / freedom, self.square)

    @property
    def sign_mean(self) -> Any:
        """P(g > 0) − P(g < 0) of each parameter."""
        return jax.tree.map(lambda total: total / self.n, self.sign_sum)

    @property
    def zero_share(self) -> Any:
        """Share of gradients that are exactly zero, of each parameter."""
        return jax.tree.map(lambda count: count / self.n, self.zeros)


def per_example_moments(
    loss_fn: Callable[[Any, Any], jax.Array],
    params: Any,
    batch: Any,
    *,
    microbatch_size: int | None = None,
) -> GradientMoments:
    """Moments of the gradients of single examples.

    Memory is that of a few copies of params and one micro-batch of per-example gradients, whatever
    n. A gradient that is not finite makes the moments nan and is found by its squared norm.

    Weights that the loss multiplies activations by need no batch of gradients (see `products`),
    also where a layer is recomputed or run by a scan. Any other parameter has one, and so has a
    weight in a native convolution, a branch or a while loop. The log says how many parameters are
    of which kind.

    Args:
      loss_fn: (params, example) -> scalar loss of one example.
      params: pytree of arrays.
      batch: pytree of arrays with a common leading axis [n].
      microbatch_size: examples differentiated at once, at most 2048; None: as many as 128 MiB hold.

    Returns:
      GradientMoments of n gradients.

    Raises:
      ValueError: an empty batch, leaves of unlike length, or a micro-batch size below 1.
    """
    lengths = {leaf.shape[0] for leaf in jax.tree.leaves(batch)}
    if len(lengths) != 1 or lengths == {0}:
        raise ValueError(
            "batch must hold arrays with one common leading axis of at least 1, "
            f"got {sorted(lengths)}"
        )
    n = lengths.pop()
    if microbatch_size is not None and microbatch_size < 1:
        raise ValueError(f"microbatch_size must be at least 1, got {microbatch_size}")
    return _stream(loss_fn, microbatch_size and min(microbatch_size, n, MOST), params, batch)


@partial(jax.jit, static_argnums=(0, 1))
def _stream(loss_fn: Callable, size: int | None, params: Any, batch: Any) -> GradientMoments:
    n = jax.tree.leaves(batch)[0].shape[0]
    products = plan(loss_fn, params, jax.tree.map(lambda leaf: leaf[0], batch))
    size = size or min(n, _automatic(params, products))
    sizes = [leaf.size for leaf in jax.tree.leaves(params)]
    others = sum(sizes[index] for index in products.read)
    logging.info(
        "moments: %d of %d parameters by products, %d also or only by single gradients, "
        "%d examples at once",
        sum(sizes) - others,
        sum(sizes),
        others,
        size,
    )
    whole = n // size
    head = jax.tree.map(
        lambda leaf: leaf[: whole * size].reshape(whole, size, *leaf.shape[1:]), batch
    )

    def step(total: GradientMoments, micro: Any) -> tuple[GradientMoments, Any]:
        part = _micro(products, params, micro)
        merged = _merge(total, part)
        return merged._replace(square_norms=()), part.square_norms

    total, norms = jax.lax.scan(step, _nothing(params), head)
    total = total._replace(square_norms=jax.tree.map(jnp.ravel, norms))
    if n % size:
        rest = jax.tree.map(lambda leaf: leaf[whole * size :], batch)
        total = merge(total, _micro(products, params, rest))
    return total


def _automatic(params: Any, products: Plan) -> int:
    """Examples that fit in MICROBATCH_BYTES."""
    leaves = jax.tree.leaves(params)
    held = sum(leaves[index].size * max(leaves[index].dtype.itemsize, 4) for index in products.read)
    fitting = max(1, min(MOST, MICROBATCH_BYTES // max(held + products.activations, 1)))
    return fitting if fitting < BLOCK else fitting // BLOCK * BLOCK


def _micro(products: Plan, params: Any, examples: Any) -> GradientMoments:
    """Moments of one micro-batch."""
    leaves, tree = jax.tree.flatten(params)
    tapped = tapped_gradients(products, params, examples)
    sums = [
        leaf_sums(products, index, leaf, tapped)
        if products.of(index)
        else _sums(tapped.gradients[index])
        for index, leaf in enumerate(leaves)
    ]
    n = jnp.asarray(jax.tree.leaves(examples)[0].shape[0], jnp.int32)
    return GradientMoments(n, *(tree.unflatten(leaves) for leaves in zip(*sums, strict=True)))


def _sums(gradients: jax.Array) -> LeafSums:
    """Of stacked gradients [n, ...] of one leaf."""
    wide = gradients.astype(_wide(gradients))
    mean = wide.mean(0)
    return LeafSums(
        mean=mean,
        square=((wide - mean) ** 2).sum(0),
        sign_sum=jnp.sign(gradients).astype(jnp.int32).sum(0),
        zeros=(gradients == 0).astype(jnp.int32).sum(0),
        square_norms=(wide**2).sum(tuple(range(1, wide.ndim))),
    )


def _wide(leaf: jax.Array) -> jnp.dtype:
    return jnp.promote_types(leaf.dtype, jnp.float32)


def _nothing(params: Any) -> GradientMoments:
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, _wide(leaf)), params)
    counts = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.int32), params)
    return GradientMoments(jnp.zeros((), jnp.int32), zeros, zeros, counts, counts, ())


def merge(a: GradientMoments, b: GradientMoments) -> GradientMoments:
    """Moments of the gradients of both (Chan, Golub and LeVeque 1979).

    Associative up to rounding; counts are exact.
    """
    norms = jax.tree.map(
        lambda one, other: jnp.concatenate([one, other]), a.square_norms, b.square_norms
    )
    return _merge(a, b)._replace(square_norms=norms)


def _merge(a: GradientMoments, b: GradientMoments) -> GradientMoments:
    n = a.n + b.n
    share = b.n / n  # float64 where jax_enable_x64 is set, whatever the parameters are
    both = a.n * share

    def mean(one: jax.Array, other: jax.Array) -> jax.Array:
        return one + (other - one) * share.astype(one.dtype)

    def square(one: jax.Array, other: jax.Array, mean_a: jax.Array, mean_b: jax.Array) -> jax.Array:
        return one + other + (mean_b - mean_a) ** 2 * both.astype(one.dtype)

    add = partial(jax.tree.map, jnp.add)
    return GradientMoments(
        n=n,
        mean=jax.tree.map(mean, a.mean, b.mean),
        square=jax.tree.map(square, a.square, b.square, a.mean, b.mean),
        sign_sum=add(a.sign_sum, b.sign_sum),
        zeros=add(a.zeros, b.zeros),
        square_norms=(),
    )


def minibatch_moments(
    batch_loss: Callable[[Any, Any], jax.Array],
    params: Any,
    batch: Any,
    batch_size: int,
    *,
    microbatch_size: int | None = None,
) -> GradientMoments:
    """Moments of the gradients of mini-batches.

    Also for models without per-example gradients (BatchNorm). Its `sign_mean` is the true
    E[sign G_B], to hold against erf.

    Args:
      batch_loss: (params, mini-batch) -> scalar loss of the mini-batch.
      params: pytree of arrays.
      batch: pytree of arrays [n, ...], n a multiple of batch_size; split in order.
      batch_size: examples B in a mini-batch.
      microbatch_size: mini-batches differentiated at once.

    Raises:
      ValueError: n is not a multiple of batch_size.
    """
    n = jax.tree.leaves(batch)[0].shape[0]
    if n % batch_size:
        raise ValueError(f"{n} examples do not split into mini-batches of {batch_size}")
    split = jax.tree.map(
        lambda leaf: leaf.reshape(n // batch_size, batch_size, *leaf.shape[1:]), batch
    )
    return per_example_moments(batch_loss, params, split, microbatch_size=microbatch_size)
