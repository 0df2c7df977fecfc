"""The law of one step θ − εu at each batch size, and the truth it approximates.

The law is measured along sampled directions. Both are judged by the mean loss over one evaluation
batch. What independent coordinates would make of it instead is in `surge.gradients.independent`.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize, stats

from surge.gradients.batch import Draw
from surge.gradients.curvature import LossFn, mean_loss, moved, second_difference, widened
from surge.gradients.directions import AMPLE, GROUPS, PoolSource, directions
from surge.optimizers import Optimizer
from surge.theory.noise import NOT_FINITE

# Steps that the search for the scale chooses between, in units of the one that would bring the loss
# to 0 were it as steep throughout as at its start; and the oracle's rates around its choice.
HALVINGS = 4
RUNGS = 4.0 ** np.arange(2.0 - 2**HALVINGS + 1, 3.0)
BETWEEN = 2.0  # times one rung is half way to the next
FINE = 4.0 ** np.linspace(-1.0, 1.0, 13)
SIDE_BY_SIDE = 8  # directions along which the loss is taken at once


class OneStepLR(NamedTuple):
    """ε_opt at each batch size [b] with its 95% interval.

    Beside it the gain ΔL at it, n samples, and reasons where nan.
    """

    lr: np.ndarray
    low: np.ndarray
    high: np.ndarray
    gain: np.ndarray
    n: int
    why: list[str]

    @classmethod
    def of(
        cls, drift: np.ndarray, curvature: np.ndarray, low: np.ndarray, high: np.ndarray, n: int
    ) -> "OneStepLR":
        """a/q [b] with its interval, undefined with a reason where the step has no minimum."""
        good = (curvature > 0) & (drift > 0) & np.isfinite(curvature) & np.isfinite(drift)
        safe = np.where(good, curvature, 1.0)
        lr = np.where(good, drift / safe, np.nan)
        gain = np.where(good, drift**2 / (2 * safe), np.nan)
        low = np.where(good, low, np.nan)
        high = np.where(good, high, np.nan)
        why = [_reason(*pair) for pair in zip(drift, curvature, strict=True)]
        return cls(lr, low, high, gain, n, why)


def _reason(drift: float, curvature: float) -> str:
    """Why a step has no best length, "" where it has one."""
    if not (np.isfinite(drift) and np.isfinite(curvature)):
        return NOT_FINITE
    if curvature <= 0:
        return "no curvature along the step: q <= 0"
    return "" if drift > 0 else "the step does not descend: a <= 0"


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


def by_group(values: np.ndarray) -> np.ndarray:
    """Means over all directions, then with each group left out: [..., k] -> [1 + GROUPS, ...]."""
    grouped = values.reshape(*values.shape[:-1], -1, GROUPS).mean(-2)
    total = grouped.mean(-1, keepdims=True)
    return np.moveaxis(
        np.concatenate([total, (total * GROUPS - grouped) / (GROUPS - 1)], -1), -1, 0
    )


def drifts_and_curvatures(samples: Sequence[StepSample]) -> tuple[np.ndarray, np.ndarray]:
    """a and q at each batch size [1 + GROUPS, b].

    The first row is over all directions, the others have one group left out.
    """
    a = np.stack([sample.drift for sample in samples])
    q = np.stack([sample.curvature for sample in samples])
    return by_group(a), by_group(q)


def standard_errors(values: np.ndarray) -> np.ndarray:
    """Standard errors [b] of the logarithm of the first row of rows [1 + GROUPS, b].

    The other rows have one group left out; inf where a row is not positive.
    """
    logs = np.log(np.where((values > 0) & np.isfinite(values), values, np.nan))
    spread = np.sqrt((GROUPS - 1) / GROUPS * ((logs[1:] - logs[1:].mean(0)) ** 2).sum(0))
    return np.where(np.isfinite(spread), spread, np.inf)


def jackknifed(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95% interval of the first row of rows [1 + GROUPS, b], in the logarithm.

    The other rows have one group left out.
    """
    reach = stats.t.ppf(0.975, GROUPS - 1) * standard_errors(values)
    # A group whose removal turns the sign says nothing of the size: the interval is open.
    known = np.isfinite(reach)
    factor = np.exp(np.where(known, reach, 0))
    return (
        np.where(known, values[0] / factor, 0.0),
        np.where(known, values[0] * factor, np.inf),
    )


def measured_law(samples: Sequence[StepSample]) -> OneStepLR:
    """ε_opt = mean a_k / mean q_k at each B, with a jackknife over groups.

    Neither Gaussian gradients nor independent coordinates are assumed.
    """
    a, q = drifts_and_curvatures(samples)
    with np.errstate(divide="ignore", invalid="ignore"):
        low, high = jackknifed(a / q)
    return OneStepLR.of(a[0], q[0], low, high, len(samples[0].drift))


class MeasuredSurge(NamedTuple):
    """The small-batch surge with its coefficients measured.

    Noise correlations are included (the paper, equations 13-14).

    Attributes:
      max_lr: A/2√(NK'), the height of the peak: value, low, high.
      b_noise: N/K', where it lies, in examples: value, low, high; inf where q does not grow with B.
      n: batch sizes that it rests on.
      why: a reason where undefined.
    """

    max_lr: np.ndarray
    b_noise: np.ndarray
    n: int
    why: str


def measured_surge(samples: Sequence[StepSample], batch_sizes: Sequence[int]) -> MeasuredSurge:
    """a = A√B and q = N + BK' through a and q themselves, at the batch sizes up to the highest a/q.

    For steps of a size that does not depend on the gradient's, such as a sign's. N is the curvature
    of the noise of steps that are all noise. K', the slope of q, holds what the mean step adds and
    what the noise loses to it, so that with independent coordinates it is the paper's K, without
    the diagonal. The form ends where signs are no longer nearly fair coins. Least squares of
    relative errors, K' at least 0; 95% by a jackknife over groups.

    Args:
      samples: as for `measured_law`.
      batch_sizes: B [b] of the samples.
    """
    order = np.argsort(batch_sizes)
    samples = [samples[index] for index in order]
    batch_sizes = [batch_sizes[index] for index in order]
    a, q = drifts_and_curvatures(samples)
    rate = np.where((a[0] > 0) & (q[0] > 0), a[0] / np.where(q[0] > 0, q[0], 1.0), -np.inf)
    rising = slice(0, int(rate.argmax()) + 1)
    sizes = np.asarray(batch_sizes, float)[rising]
    nothing = np.full(3, np.nan)
    if len(sizes) < 3:
        return MeasuredSurge(
            nothing, nothing, len(sizes), "fewer than three batch sizes up to the highest a/q"
        )
    if not np.isfinite(rate[rising]).all():
        return MeasuredSurge(nothing, nothing, len(sizes), "a/q is undefined below the highest")
    coefficients = np.array(
        [_small_batch_form(sizes, *pair) for pair in zip(a[:, rising], q[:, rising], strict=True)]
    )
    low, high = jackknifed(coefficients)
    max_lr, b_noise = np.stack([coefficients[0], low, high], -1)
    return MeasuredSurge(max_lr, b_noise, len(sizes), "")


def _small_batch_form(sizes: np.ndarray, a: np.ndarray, q: np.ndarray) -> tuple[float, float]:
    """(max_lr, b_noise) of drifts and curvatures [b]; nan where no noise has curvature."""
    shape = np.sqrt(sizes) / a
    noise, mean = optimize.nnls(np.stack([1 / q, sizes / q], -1), np.ones(len(q)))[0]
    if not noise:
        return np.nan, np.nan
    if mean * sizes[-1] <= 1e-9 * noise:  # nothing, but for rounding
        return np.inf, np.inf
    drift = shape.sum() / (shape**2).sum()
    return drift / (2 * np.sqrt(noise * mean)), noise / mean


def one_step_oracle(samples: Sequence[StepSample]) -> OneStepLR:
    """argmin over ε of the true mean loss after one step, with a jackknife over groups.

    It is the lowest point of a grid of ratio 4^(1/6), within a factor 4 of where slope and bend of
    the loss put it, refined by a parabola in ε; nan with a reason where no rate lowers the loss.
    """
    rates, heights, why = [], [], []
    for sample in samples:
        rate, height = _lowest(sample.rates, by_group(sample.loss))
        gain = float(sample.start.mean()) - height[0]
        reason = _no_optimum(sample, rate[0], gain)
        rates.append(np.full_like(rate, np.nan) if reason else rate)
        heights.append(np.nan if reason else gain)
        why.append(reason)
    lr = np.stack(rates, -1)
    low, high = jackknifed(lr)
    undefined = ~np.isfinite(lr[0])
    low = np.where(undefined, np.nan, low)
    high = np.where(undefined, np.nan, high)
    return OneStepLR(lr[0], low, high, np.array(heights), len(samples[0].drift), why)


def _no_optimum(sample: StepSample, rate: float, gain: float) -> str:
    """Why the best rate is unknown, "" where it is known."""
    if not (np.isfinite(sample.start).all() and np.isfinite(sample.drift).all()):
        return NOT_FINITE
    if not gain > 0:
        return "no step of this direction lowers the loss"
    if not sample.rates[0] < rate < sample.rates[-1]:
        return "the lowest loss is on the edge of the rates that were tried"
    return ""


def _lowest(rates: np.ndarray, loss: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rate and height of the lowest point of each row of loss [r, e], by a parabola in ε."""
    filled = np.where(np.isfinite(loss), loss, np.inf)
    best = filled.argmin(1)
    middle = np.clip(best, 1, len(rates) - 2)
    row = np.arange(len(loss))
    left = rates[middle - 1] - rates[middle]
    right = rates[middle + 1] - rates[middle]
    with np.errstate(invalid="ignore"):  # inf where a step broke
        before = filled[row, middle - 1] - filled[row, middle]
        after = filled[row, middle + 1] - filled[row, middle]
    fine = (best == middle) & np.isfinite(before) & np.isfinite(after) & (before + after > 0)
    before = np.where(fine, before, 1.0)
    after = np.where(fine, after, 1.0)
    # Through (left, before), (0, 0), (right, after).
    offset = 0.5 * (right**2 * before - left**2 * after) / (right * before - left * after)
    return np.where(fine, rates[middle] + offset, rates[best]), filled[row, best]
