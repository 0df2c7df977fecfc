"""The noise scale B_noise of the steps S(B) to a target."""

import math
from typing import NamedTuple

import numpy as np
from scipy import stats

from surge.theory.fit import CONFIDENCE, interval


class NoiseScale(NamedTuple):
    """B_noise of S(B) = s_min (1 + B_noise/B), with its 95% interval.

    s_min is in steps, e_min in examples; n points, and a reason where undefined.
    """

    method: str
    b_noise: float
    low: float
    high: float
    s_min: float
    e_min: float
    n: int
    why: str


def fit_noise_scale(batch_size: np.ndarray, steps: np.ndarray, method: str = "log") -> NoiseScale:
    """B_noise from the steps to a target at the best rate of each batch size.

    Args:
      batch_size: B [n].
      steps: S [n].
      method: "log": least squares of log S = log s_min + log(1 + B_noise/B), with a profile
        interval. "paper": the regression of 1/S on 1/E, biased low because the noise of S sits on
        both axes; without an interval.

    Raises:
      ValueError: another method.

    Example:
      >>> sizes = np.array([8, 32, 128, 512])
      >>> round(fit_noise_scale(sizes, 100 * (1 + 64 / sizes)).b_noise)
      64
    """
    if method not in ("log", "paper"):
        raise ValueError(f"method must be log or paper, got {method!r}")
    size, steps = np.asarray(batch_size, float), np.asarray(steps, float)
    n = len(size)
    if n < 3:
        few = "fewer than three batch sizes reached the target"
        return NoiseScale(method, math.nan, math.nan, math.nan, math.nan, math.nan, n, few)
    if method == "paper":
        slope, intercept = np.polyfit(1 / (size * steps), 1 / steps, 1)
        if intercept <= 0 or slope >= 0:
            why = "1/S does not fall with 1/E to a positive intercept"
            return NoiseScale(method, math.nan, math.nan, math.nan, math.nan, math.nan, n, why)
        s_min = 1 / intercept
        return NoiseScale(method, -slope, math.nan, math.nan, s_min, -slope * s_min, n, "")
    grid = np.geomspace(1e-3 * size.min(), 1e3 * size.max(), 4001)
    gap = np.log(steps) - np.log1p(grid[:, None] / size)
    scale = gap.mean(1)
    misfit = ((gap - scale[:, None]) ** 2).sum(1)
    best = int(misfit.argmin())
    critical = stats.t.ppf(0.5 + CONFIDENCE / 2, n - 2) ** 2 * misfit[best] / (n - 2)
    (low, high), _ = interval(grid[misfit <= misfit[best] + critical], grid, (grid[0], grid[-1]))
    b_noise = float(grid[best])
    s_min = math.exp(scale[best])
    why = ""
    if best == 0:
        why = "S does not depend on B over the whole range"
    elif best == len(grid) - 1:
        why = "S falls as 1/B over the whole range"
    if why:
        b_noise = s_min = math.nan
    return NoiseScale(method, b_noise, low, high, s_min, s_min * b_noise, n, why)
