"""What is measured of one checkpoint, by all devices of this process together."""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp

from surge.gradients.moments import GradientMoments, merge, per_example_moments

DEVICES = "device"  # name of the axis


def worth_it() -> bool:
    """Whether several devices are faster than one: those of a CPU share its cores."""
    return jax.default_backend() != "cpu" and jax.local_device_count() > 1


@cache
def everywhere(program: Callable[..., Any], *static: Any) -> Callable[..., Any]:
    """program(*static, *args) on every device, mapped over DEVICES: a function of args.

    All devices must have the same result, which it returns. By pmap, in which arguments are each
    device's own. Under `shard_map` a derivative by parameters that all devices share is summed over
    them: of single examples, with no error.
    """
    mapped = jax.pmap(
        lambda _, args: program(*static, *args),
        axis_name=DEVICES,
        in_axes=(0, None),
    )

    def run(*args: Any) -> Any:
        results = mapped(jnp.arange(jax.local_device_count()), args)
        return jax.tree.map(lambda leaf: leaf[0], results)

    return run


def wide_moments(
    loss_fn: Callable[[Any, Any], jax.Array],
    params: Any,
    batch: Any,
    *,
    microbatch_size: int | None = None,
) -> GradientMoments:
    """`per_example_moments` of a batch that is dealt out to all devices.

    Args, returns: as there; sums are in another order. What does not divide by the number of
    devices is left to one of them.
    """
    count = jax.local_device_count()
    n = jax.tree.leaves(batch)[0].shape[0]
    share = n // count
    rest = jax.tree.map(lambda leaf: leaf[share * count :], batch)
    if share == 0:
        return per_example_moments(loss_fn, params, rest, microbatch_size=microbatch_size)
    total = everywhere(_share, loss_fn, share, microbatch_size)(params, batch)
    if share * count < n:
        left = per_example_moments(loss_fn, params, rest, microbatch_size=microbatch_size)
        total = merge(total, left)
    return total


def _share(
    loss_fn: Callable[[Any, Any], jax.Array],
    share: int,
    microbatch_size: int | None,
    params: Any,
    batch: Any,
) -> GradientMoments:
    """On one device: moments of its share of a batch, merged with those of the others."""
    first = share * jax.lax.axis_index(DEVICES)
    part = jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, first, share), batch)
    own = per_example_moments(loss_fn, params, part, microbatch_size=microbatch_size)
    return merge_over(own, DEVICES)


def merge_over(moments: GradientMoments, axis_name: str) -> GradientMoments:
    """Moments of the gradients of all devices on a mapped axis; each has seen as many."""
    devices = jax.lax.axis_size(axis_name)
    mean = jax.tree.map(lambda leaf: jax.lax.pmean(leaf, axis_name), moments.mean)

    def square(own: jax.Array, one: jax.Array, all_of_them: jax.Array) -> jax.Array:
        between = moments.n.astype(own.dtype) * (one - all_of_them) ** 2
        return jax.lax.psum(own + between, axis_name)

    def total(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: jax.lax.psum(leaf, axis_name), tree)

    return GradientMoments(
        n=moments.n * devices,
        mean=mean,
        square=jax.tree.map(square, moments.square, moments.mean, mean),
        sign_sum=total(moments.sign_sum),
        zeros=total(moments.zeros),
        square_norms=jax.tree.map(
            lambda leaf: jax.lax.all_gather(leaf, axis_name, tiled=True), moments.square_norms
        ),
    )
