"""The law of one step θ − εu at each batch size, and the truth it approximates.

The law is measured along sampled directions. Both are judged by the mean loss over one evaluation
batch. What independent coordinates would make of it instead is in `surge.gradients.independent`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize, stats

from surge.gradients.directions import GROUPS
from surge.gradients.steps import StepSample
from surge.theory.noise import NOT_FINITE


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
