"""The law of one step θ − εu at each batch size, measured along sampled directions, and the truth
it approximates.

Both are judged by the mean loss over one evaluation batch. What independent coordinates would make
of it instead is in `surge.gradients.independent`.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize, stats

from surge.gradients.batch import Draw
from surge.gradients.curvature import LossFn, along, mean_loss
from surge.gradients.directions import GROUPS, PoolSource, directions
from surge.optimizers import Optimizer


class OneStepLR(NamedTuple):
    """ε_opt at each batch size [b] with its 95% interval, the gain ΔL at it, n samples, and reasons
    where nan."""

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
        good = (curvature > 0) & (drift > 0)
        safe = np.where(good, curvature, 1.0)
        lr, low, high, gain = (
            np.where(good, each, np.nan)
            for each in (drift / safe, low, high, drift**2 / (2 * safe))
        )
        reasons = np.where(
            curvature <= 0,
            "no curvature along the step: q <= 0",
            "the step does not descend: a <= 0",
        )
        why = ["" if fine else str(reason) for fine, reason in zip(good, reasons, strict=True)]
        return cls(lr, low, high, gain, n, why)


class StepSample(NamedTuple):
    """What directions say at one batch size: a_k and q_k [k], and the true loss; k belongs to group
    k % GROUPS."""

    drift: np.ndarray
    curvature: np.ndarray
    start: np.ndarray  # loss before the step
    rates: np.ndarray  # [e] learning rates of the oracle
    loss: np.ndarray  # [e, k] true loss at each


class Steps(NamedTuple):
    """Label of an optimizer -> a StepSample for each batch size; examples that were differentiated
    for all of them."""

    samples: dict[str, list[StepSample]]
    examples: int


@partial(jax.jit, static_argnames="loss_fn")
def _look(loss_fn: LossFn, params: Any, evaluation: Any, found: Any) -> tuple[jax.Array, ...]:
    """The fields of a StepSample along directions [k, ...]."""
    descent = jax.tree.map(jnp.negative, found)
    slopes = jax.lax.map(lambda u: along(loss_fn, params, evaluation, u), descent, batch_size=8)
    a, q = -slopes.slope.mean(), slopes.bend.mean()
    middle = jnp.where((a > 0) & (q > 0), a / jnp.where(q > 0, q, 1.0), 1e-3)
    rates = middle * 2.0 ** jnp.linspace(-2.4, 2.4, 13)
    after = mean_loss(loss_fn, evaluation)

    def losses(rate: jax.Array) -> jax.Array:
        step = lambda u: after(jax.tree.map(lambda leaf, each: leaf + rate * each, params, u))  # noqa: E731
        return jax.lax.map(step, descent, batch_size=8)

    return -slopes.slope, slopes.bend, slopes.loss, rates, jax.lax.map(losses, rates)


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
) -> Steps:
    """Samples directions at each batch size and looks along them: derivatives at 0, and the true
    loss on a grid.

    One pool of gradients serves every optimizer and batch size.

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
    size = max(each.examples(size) for each in optimizers.values() for size in batch_sizes)
    pool = PoolSource(
        loss_fn, params, draw, data, pool_key, members=max(count // GROUPS, 2), size=size
    )
    samples: dict[str, list[StepSample]] = {label: [] for label in optimizers}
    for size in batch_sizes:
        for label, optimizer in optimizers.items():
            found = directions(
                params, pool.for_update(optimizer, size), optimizer, size, step_key, count=count
            )
            looked = _look(loss_fn, params, evaluation, found)
            samples[label].append(StepSample(*(np.asarray(each, float) for each in looked)))
    return Steps(samples, pool.examples)


def _by_group(values: np.ndarray) -> np.ndarray:
    """Means over all directions, then with each group left out: [..., k] -> [1 + GROUPS, ...]."""
    grouped = values.reshape(*values.shape[:-1], -1, GROUPS).mean(-2)
    total = grouped.mean(-1, keepdims=True)
    return np.moveaxis(
        np.concatenate([total, (total * GROUPS - grouped) / (GROUPS - 1)], -1), -1, 0
    )


def _drifts_and_curvatures(samples: Sequence[StepSample]) -> tuple[np.ndarray, np.ndarray]:
    """a and q at each batch size, over all directions and with each group left out [1 + GROUPS,
    b]."""
    a, q = zip(*((each.drift, each.curvature) for each in samples), strict=True)
    return _by_group(np.stack(a)), _by_group(np.stack(q))


def _jackknifed(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95% interval of the first row from the rows with one group left out [1 + GROUPS, b], in the
    logarithm."""
    logs = np.log(np.where((values > 0) & np.isfinite(values), values, np.nan))
    spread = np.sqrt((GROUPS - 1) / GROUPS * ((logs[1:] - logs[1:].mean(0)) ** 2).sum(0))
    reach = stats.t.ppf(0.975, GROUPS - 1) * spread
    # A group whose removal turns the sign says nothing of the size: the interval is open.
    known = np.isfinite(reach)
    return (
        np.where(known, values[0] * np.exp(-np.where(known, reach, 0)), 0.0),
        np.where(known, values[0] * np.exp(np.where(known, reach, 0)), np.inf),
    )


def measured_law(samples: Sequence[StepSample]) -> OneStepLR:
    """ε_opt = mean a_k / mean q_k at each B, with a jackknife over groups: no Gaussian, no
    independent coordinates."""
    a, q = _drifts_and_curvatures(samples)
    with np.errstate(divide="ignore", invalid="ignore"):
        low, high = _jackknifed(a / q)
    return OneStepLR.of(a[0], q[0], low, high, len(samples[0].drift))


class MeasuredSurge(NamedTuple):
    """The small-batch surge with its coefficients measured, noise correlations included (the paper,
    equations 13-14).

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
    samples, batch_sizes = (
        [samples[index] for index in order],
        [batch_sizes[index] for index in order],
    )
    a, q = _drifts_and_curvatures(samples)
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
    found = np.array(
        [_small_batch_form(sizes, *pair) for pair in zip(a[:, rising], q[:, rising], strict=True)]
    )
    low, high = _jackknifed(found)
    max_lr, b_noise = np.stack([found[0], low, high], -1)
    return MeasuredSurge(max_lr, b_noise, len(sizes), "")


def _small_batch_form(sizes: np.ndarray, a: np.ndarray, q: np.ndarray) -> tuple[float, float]:
    """(max_lr, b_noise) of one set of drifts and curvatures [b]; nan where no noise has
    curvature."""
    shape = np.sqrt(sizes) / a
    noise, mean = optimize.nnls(np.stack([1 / q, sizes / q], -1), np.ones(len(q)))[0]
    if not noise:
        return np.nan, np.nan
    if mean * sizes[-1] <= 1e-9 * noise:  # nothing, but for rounding
        return np.inf, np.inf
    drift = shape.sum() / (shape**2).sum()
    return drift / (2 * np.sqrt(noise * mean)), noise / mean


def one_step_oracle(samples: Sequence[StepSample]) -> OneStepLR:
    """argmin over ε of the true mean loss after one step, with a jackknife over groups of
    directions.

    The lowest point of a grid of ratio 2^0.4 around a/q, refined by a parabola in ε; nan with a
    reason where it lies on the grid's edge, a factor 5.3 from a/q.
    """
    rates, heights, why = [], [], []
    for each in samples:
        rate, height = _lowest(each.rates, _by_group(each.loss))
        inside = each.rates[0] < rate[0] < each.rates[-1]
        rates.append(rate if inside else np.full_like(rate, np.nan))
        heights.append(float(each.start.mean()) - height[0])
        why.append("" if inside else "the lowest loss is on the edge of the grid around a/q")
    found = np.stack(rates, -1)
    low, high = _jackknifed(found)
    undefined = ~np.isfinite(found[0])
    low, high = (np.where(undefined, np.nan, each) for each in (low, high))
    return OneStepLR(found[0], low, high, np.array(heights), len(samples[0].drift), why)


def _lowest(rates: np.ndarray, loss: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rate and height of the lowest point of each row of loss [r, e], by a parabola in ε through
    its neighbours."""
    filled = np.where(np.isfinite(loss), loss, np.inf)
    best = filled.argmin(1)
    middle = np.clip(best, 1, len(rates) - 2)
    row = np.arange(len(loss))
    left, right = (rates[middle + shift] - rates[middle] for shift in (-1, 1))
    before, after = (filled[row, middle + shift] - filled[row, middle] for shift in (-1, 1))
    fine = (best == middle) & np.isfinite(before) & np.isfinite(after) & (before + after > 0)
    before, after = (np.where(fine, each, 1.0) for each in (before, after))
    # Through (left, before), (0, 0), (right, after).
    offset = 0.5 * (right**2 * before - left**2 * after) / (right * before - left * after)
    return np.where(fine, rates[middle] + offset, rates[best]), filled[row, best]
