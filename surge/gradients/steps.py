"""Directions of one step, and what is seen along them: slope, bend, and the true loss on a grid.

One pool of gradients serves every optimizer and batch size.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from surge.gradients.batch import Draw
from surge.gradients.curvature import LossFn, mean_loss, moved, second_difference, widened
from surge.gradients.directions import AMPLE, GROUPS, PoolSource, directions
from surge.optimizers import Optimizer

# Steps that the search for the scale chooses between, in units of the one that would bring the loss
# to 0 were it as steep throughout as at its start; and the oracle's rates around its choice.
HALVINGS = 4
RUNGS = 4.0 ** np.arange(2.0 - 2**HALVINGS + 1, 3.0)
BETWEEN = 2.0  # times one rung is half way to the next
FINE = 4.0 ** np.linspace(-1.0, 1.0, 13)
SIDE_BY_SIDE = 8  # directions along which the loss is taken at once


class StepSample(NamedTuple):
    """What directions say at one batch size; direction k belongs to group k % GROUPS.

    Attributes:
      drift: a_k = uᵀ∇L [k].
      curvature: q_k [k]: uᵀHu by differences of the loss at the scale of the step.
      start: loss before the step.
      rates: learning rates of the oracle [e].
      loss: true loss after the step [e, k].
      layer_drift: a_k of each layer, stepped in alone [layer, k]; None where not asked for.
      layer_curvature: q_k likewise.
    """

    drift: np.ndarray
    curvature: np.ndarray
    start: np.ndarray
    rates: np.ndarray
    loss: np.ndarray
    layer_drift: np.ndarray | None = None
    layer_curvature: np.ndarray | None = None


class Steps(NamedTuple):
    """Label -> a StepSample for each batch size; examples differentiated for all of them."""

    samples: dict[str, list[StepSample]]
    examples: int


@partial(jax.jit, static_argnames="loss_fn")
def _look(loss_fn: LossFn, params: Any, evaluation: Any, steps: Any) -> tuple[jax.Array, ...]:
    """What a StepSample holds, for directions u [k, ...], with the drift of each leaf [leaf, k].

    No derivative beyond the gradient, so that kinks and higher orders count as they do for a step.
    """
    mean = mean_loss(loss_fn, evaluation)
    here = widened(params)
    start, gradient = jax.value_and_grad(mean)(here)
    descent = jax.tree.map(jnp.negative, steps)

    def slopes(u: Any) -> jax.Array:
        shares = jax.tree.map(lambda leaf, other: (leaf * other).sum(), widened(u), gradient)
        return jnp.stack(jax.tree.leaves(shares))

    def losses(rate: jax.Array, along: Any) -> jax.Array:
        return jax.lax.map(lambda u: mean(moved(params, u, rate)), along, batch_size=SIDE_BY_SIDE)

    def bends(distance: jax.Array, along: Any) -> jax.Array:
        bend = partial(second_difference, loss_fn, params, evaluation, distance=distance)
        return jax.lax.map(lambda u: bend(direction=u), along, batch_size=SIDE_BY_SIDE)

    drift = jax.vmap(slopes, out_axes=1)(steps)
    few = jax.tree.map(lambda leaf: leaf[:GROUPS], descent)
    scale = _scale(start, jnp.abs(drift.sum(0).mean()), lambda rate: bends(rate, few).mean())

    def at(rates: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Rates, losses [e, k] at them, and which of them is the lowest."""
        loss = jax.lax.map(lambda rate: losses(rate, descent), rates)
        average = loss.mean(1)
        return rates, loss, jnp.where(jnp.isfinite(average), average, jnp.inf).argmin()

    rates, loss, best = at(scale * FINE.astype(scale.dtype))
    # A loss that is no parabola may have its lowest point beyond: the rates move there, once.
    beyond = jnp.where(best == len(FINE) - 1, FINE[-1], jnp.where(best == 0, FINE[0], 1.0))
    moved_on = beyond.astype(scale.dtype) * rates
    rates, loss, best = jax.lax.cond(beyond == 1, lambda: (rates, loss, best), lambda: at(moved_on))
    lowest = rates[best]
    return drift, bends(lowest, descent), start, rates, loss


def _scale(start: jax.Array, slope: jax.Array, bend: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """The step h of about h·bend(h) = slope, where a parabola has its lowest point: by bisection.

    Drifts of single directions may be many times their mean, and of either sign; their bends are
    alike, so that a few of them will do.
    """
    rungs = RUNGS.astype(start.dtype) * jnp.abs(start) / slope

    def halve(_: int, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = ends
        middle = (low + high) // 2
        too_far = ~(rungs[middle] * bend(rungs[middle]) <= slope)  # also where it is not finite
        return jnp.where(too_far, low, middle), jnp.where(too_far, middle, high)

    ends = jnp.asarray(0), jnp.asarray(len(RUNGS) - 1)
    low, _ = jax.lax.fori_loop(0, HALVINGS, halve, ends)
    return rungs[low] * BETWEEN


@partial(jax.jit, static_argnames=("loss_fn", "layers"))
def _look_by_layer(
    loss_fn: LossFn,
    layers: tuple[int, ...],
    params: Any,
    evaluation: Any,
    steps: Any,
    distance: jax.Array,
) -> jax.Array:
    """q_k of each layer, stepped in alone [layer, k]."""
    leaves, tree = jax.tree.flatten(steps)

    def one(pair: tuple[jax.Array, list[jax.Array]]) -> jax.Array:
        chosen, step = pair
        held = [
            jnp.where(layer == chosen, leaf, 0) for layer, leaf in zip(layers, step, strict=True)
        ]
        return second_difference(loss_fn, params, evaluation, tree.unflatten(held), distance)

    def every(chosen: jax.Array) -> jax.Array:
        return jax.lax.map(lambda step: one((chosen, step)), leaves, batch_size=SIDE_BY_SIDE)

    return jax.lax.map(every, jnp.arange(max(layers) + 1))


def sample_steps(
    loss_fn: LossFn,
    params: Any,
    draw: Draw,
    data: Any,
    evaluation: Any,
    optimizers: Mapping[str, Optimizer],
    batch_sizes: Sequence[int],
    key: jax.Array,
    *,
    count: int,
    layers: tuple[int, ...] = (),
) -> Steps:
    """Samples directions at each batch size and looks along them.

    What is seen is slope, bend, and the true loss on a grid. One pool of gradients serves every
    optimizer and batch size.

    Args:
      loss_fn: (params, example) -> scalar.
      params: the checkpoint.
      draw: (data, key) -> one training example.
      data: what draw picks from.
      evaluation: batch whose mean loss is the truth.
      optimizers: label -> optimizer.
      batch_sizes: B [b].
      key: of everything drawn.
      count: directions for each optimizer and B.
      layers: the layer of each leaf of params, counted from 0, where steps are also to be looked
        along layer by layer: slopes at each B, bends at the smallest and the largest.

    Raises:
      ValueError: count is not a multiple of GROUPS, or an optimizer takes gradients at points of
        its own.
    """
    for label, optimizer in optimizers.items():
        if "gradient_fn" in optimizer.needs:
            raise ValueError(
                f"{label} ({optimizer.spec}) takes gradients at points of its own, which sampled"
                " directions do not have: sweep it, and leave it out of what is measured"
            )
    if count % GROUPS:
        raise ValueError(f"count must be a multiple of {GROUPS}, got {count}")
    pool_key, step_key = jax.random.split(key)
    behind = max(one.examples(size) for one in optimizers.values() for size in batch_sizes)
    pool = PoolSource(
        loss_fn,
        params,
        draw,
        data,
        pool_key,
        members=max(count // GROUPS, 2),
        size=AMPLE * behind,
    )
    samples: dict[str, list[StepSample]] = {label: [] for label in optimizers}
    ends = min(batch_sizes), max(batch_sizes)
    for size in batch_sizes:
        for label, optimizer in optimizers.items():
            along = directions(
                params, pool.for_update(optimizer, size), optimizer, size, step_key, count=count
            )
            sample = _sample(loss_fn, params, evaluation, along, layers, size in ends)
            samples[label].append(sample)
    return Steps(samples, pool.examples)


def _sample(
    loss_fn: LossFn,
    params: Any,
    evaluation: Any,
    steps: Any,
    layers: tuple[int, ...],
    bends: bool,
) -> StepSample:
    """What directions [k, ...] say; the bends of single layers where asked for."""
    looked = _look(loss_fn, params, evaluation, steps)
    drift, curvature, start, rates, loss = (np.asarray(part, float) for part in looked)
    sample = StepSample(drift.sum(0), curvature, start, rates, loss)
    if not layers:
        return sample
    members = np.arange(max(layers) + 1)[:, None] == np.asarray(layers)  # [layer, leaf]
    sample = sample._replace(layer_drift=members @ drift)
    if not bends:
        return sample
    mean = np.where(np.isfinite(loss), loss, np.inf).mean(1)
    distance = jnp.asarray(rates[mean.argmin()], jnp.float32)
    by_layer = _look_by_layer(loss_fn, layers, params, evaluation, steps, distance)
    return sample._replace(layer_curvature=np.asarray(by_layer, float))
