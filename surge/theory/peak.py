"""Where ε_opt(B) is highest, and whether the data can see it."""

import math
from typing import NamedTuple

import numpy as np
from scipy import stats

from surge.theory.fit import ERROR_FLOOR, RULED_OUT, Comparison
from surge.theory.rivals import LAWS, saturating_peak_size

CLEAR = 3.5  # standard errors between two optima that pass for a rise or a fall of a curve
PAIR_FREEDOM = 10  # of a typical optimum's error: five cells of three seeds


class Peak(NamedTuple):
    """Batch size at which ε_opt is highest: value nan or inf with the reason; the 95% interval may
    be open."""

    value: float
    low: float
    high: float
    why: str


def find_peak(
    batch_size: np.ndarray, lr: np.ndarray, error: np.ndarray, comparison: Comparison
) -> Peak:
    """The peak of ε_opt(B) and whether the data can see it at all.

    An upper bound is given only where the optimum at some larger batch size lies significantly
    below the highest one: at 1% after Bonferroni over all pairs, or by CLEAR standard errors where
    another at a smaller batch size does too and the best law with a peak beats every law without
    one in AICc. A lower bound, likewise, only where one at a smaller batch size does so. The
    interval is the union of those of both peaked laws, where the data do not tell them apart.
    """
    if len(batch_size) < 4:
        return Peak(
            math.nan, math.nan, math.nan, "fewer than four batch sizes have a known optimum"
        )
    order = np.argsort(batch_size)
    size, y = np.asarray(batch_size, float)[order], np.log(np.asarray(lr, float)[order])
    noise = np.maximum(np.asarray(error, float)[order], ERROR_FLOOR)
    top = int((y - noise).argmax())
    drop = (y[top] - y) / np.hypot(noise, noise[top])
    aicc = {True: math.inf, False: math.inf}
    for name, fit in comparison.fits.items():
        peaked = math.isfinite(LAWS[name].peak(**fit.parameters)[0])
        aicc[peaked] = min(aicc[peaked], comparison.aicc[name])
    quantile = stats.t.ppf(1 - 0.01 / math.comb(len(y), 2), PAIR_FREEDOM)
    if (
        aicc[True] <= aicc[False] - RULED_OUT
        and min(drop[:top].max(initial=0), drop[top:].max()) > CLEAR
    ):
        quantile = CLEAR
    rises, falls = bool((drop[:top] > quantile).any()), bool((drop[top:] > quantile).any())
    if not falls:
        reach = (
            f"the data reach {size[-1] / size[top]:.3g} times the batch size of the highest optimum"
        )
        return Peak(
            math.inf, float(size[0]) if rises else 0.0, math.inf, f"no significant fall: {reach}"
        )
    if not rises:
        value = f"the optimum falls from the smallest batch size on, {size[0]:g}"
        return Peak(
            math.nan, 0.0, float(size[min(top + 1, len(size) - 1)]), f"no significant rise: {value}"
        )
    surge, saturating = comparison.fits["surge"], comparison.fits["saturating_surge"]
    better = min(surge, saturating, key=lambda fit: comparison.aicc[fit.law])
    plateau = np.asarray(saturating_peak_size(*saturating.shapes[saturating.excess <= 1].T))
    ends = {
        "surge": surge.intervals["b_noise"],
        "saturating_surge": (float(plateau.min()), float(plateau.max())),
    }
    near = [ends[name] for name in ends if comparison.aicc[name] <= comparison.aicc[better.law] + 4]
    value = LAWS[better.law].peak(**better.parameters)[0]
    low, high = min(low for low, _ in near), max(high for _, high in near)
    why = "" if size[-1] >= 10 * value else "the data end within a decade of the peak"
    why = why if math.isfinite(high) else "a rise to a plateau is not ruled out"
    return Peak(float(value), low, high, why)
