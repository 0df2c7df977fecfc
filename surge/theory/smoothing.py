"""Noise scales smoothed over readings of one training: numerator and denominator, then the ratio.

Readings are rows [n, d] whose last column is their number and whose others are parts of a noise
scale. An older reading counts less, by half for each half-life. Asked for is the ratio at the last
of them, while a smoothed part is one of some time ago: the estimate is the end of a line through
the readings. What grows or falls by a share of itself ends on either side of that line, so the
interval also reaches back to the smoothed part and as far again to the other side.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy import stats

from surge.theory.noise import CONFIDENCE, Estimate, ratio, undefined

FEWEST = 4  # readings: a line through three leaves one to tell noise by
SHORTEST = 2.0  # half-life, with which not quite six readings count
FEW = "{} readings are too few: at least 4"
FORGOTTEN = 50  # half-lives, after which a reading has no weight that float64 would notice


class Smoothed(NamedTuple):
    """Weighted sums over readings.

    Attributes:
      mean: weighted mean of the columns [d].
      scatter: weighted sum of squared deviations and products [d, d].
      count: readings.
      half_life: in readings.
    """

    mean: np.ndarray
    scatter: np.ndarray
    count: int
    half_life: float


class Parts(NamedTuple):
    """Estimates of the parts at the last reading.

    Attributes:
      value: [d - 1].
      covariance: [d - 1, d - 1].
      freedom: of its degrees.
      counted: readings that count, (Σw)²/Σw².
    """

    value: np.ndarray
    covariance: np.ndarray
    freedom: float
    counted: float


def weights(count: int, half_life: float) -> np.ndarray:
    """Of the readings that are not forgotten, in the order of time; the last has 1."""
    kept = min(count, math.ceil(FORGOTTEN * half_life))
    return 0.5 ** (np.arange(kept)[::-1] / half_life)


def smoothed(rows: np.ndarray, half_life: float) -> Smoothed:
    """Sums over readings [n, d] in the order of time."""
    weight = weights(len(rows), half_life)
    rows = rows[-len(weight) :]
    mean = np.average(rows, axis=0, weights=weight)
    apart = rows - mean
    return Smoothed(mean, (weight[:, None] * apart).T @ apart, len(rows), half_life)


def parts(readings: Smoothed) -> Parts:
    """What smoothed readings, at least FEWEST, say of the parts at the last of them."""
    weight = weights(readings.count, readings.half_life)
    total = weight.sum()
    apart = np.arange(len(weight)) - weight @ np.arange(len(weight)) / total
    spread = weight @ apart**2
    age = apart[-1]
    # The end of the line is linear in the readings, with these coefficients.
    coefficient = weight / total + age * weight * apart / spread
    slope = readings.scatter[:-1, -1] / spread
    about = readings.scatter[:-1, :-1] - np.outer(slope, slope) * spread
    # What the line leaves of independent noise of variance 1.
    left = total - (weight**2).sum() / total - (weight * apart) @ (weight * apart) / spread
    noise = about / left * (coefficient**2).sum()
    counted = total**2 / (weight**2).sum()
    freedom = counted - 2
    reach = slope * age
    quantile = float(stats.t.ppf(0.5 + CONFIDENCE / 2, freedom))
    return Parts(
        readings.mean[:-1] + reach,
        noise + np.outer(reach, reach) / quantile**2,
        freedom,
        counted,
    )


def noise_scale(readings: Smoothed, examples: float) -> Estimate:
    """numerator/denominator of readings [numerator, denominator, number], by Fieller's interval.

    Args:
      readings: sums over them.
      examples: behind one reading.
    """
    if readings.count < FEWEST:
        return _few(readings, examples)
    value, covariance, freedom, counted = parts(readings)
    numerator, denominator = value.tolist()
    n = round(examples * counted)
    if not numerator > 0:
        why = f"the noise reads {numerator:.3g}, which is not above 0: take more readings"
        return undefined(n, numerator, denominator, why)
    return ratio(numerator, denominator, covariance, n, freedom)


def dual_noise_scale(readings: Smoothed, examples: float) -> Estimate:
    """(noise/signal)² in a norm whose signal is only known between two bounds.

    ‖μ‖ of a mean over few examples is too high, and what a step along its own dual gains on other
    examples is too low. The value takes their geometric mean; the interval reaches from the lower
    end that the first gives to the upper end that the second gives, and so holds the truth also
    where noise rules (and is then wide).

    Args:
      readings: sums over [noise, gain on other examples, norm of the mean, number].
      examples: behind one reading.
    """
    if readings.count < FEWEST:
        return _few(readings, examples)
    value, covariance, freedom, counted = parts(readings)
    noise, gain, norm = value.tolist()
    n = round(examples * counted)
    above = ratio(noise, gain, covariance[:2, :2], n, freedom)
    if above.why:
        return above
    ends = np.ix_([0, 2], [0, 2])
    below = ratio(noise, norm, covariance[ends], n, freedom)
    signal = math.sqrt(gain * norm)
    return Estimate((noise / signal) ** 2, below.low**2, above.high**2, n, noise, signal)


def _few(readings: Smoothed, examples: float) -> Estimate:
    n = round(examples * readings.count)
    return undefined(n, math.nan, math.nan, FEW.format(readings.count))
