"""Where ε_opt(B) is highest, and whether the data can see it."""

import math
from typing import NamedTuple

import numpy as np

from surge.theory.comparison import SEEN, Comparison, peak_size
from surge.theory.fit import Fit, Optima, optima
from surge.theory.rivals import LAWS
from surge.theory.unimodal import gap_costs

NEEDED = 3.5**2  # χ² of a true fall that 85 of 100 sweeps see, at about 2.5 errors for 5%
MOST_SEEDS = 100.0  # times as many as there were, that are worth a mention
FARTHEST = 12  # doublings beyond the data that are considered


class Peak(NamedTuple):
    """Batch size at which ε_opt is highest.

    Attributes:
      value: of the law that fits best among those with a peak; inf where no fall is seen, nan where
        no rise is.
      low, high: 95% interval, by order alone (`unimodal.p_values`), to the gaps between batch
        sizes; 0 and inf where the data do not bound it.
      p_fall: probability of what is seen, or more, if ε_opt rises to the largest batch size.
      p_rise: the same if it falls from the smallest batch size on.
      needs: what would decide where no fall is seen, else "".
      why: reason for what is undefined, else "".
    """

    value: float
    low: float
    high: float
    p_fall: float
    p_rise: float
    needs: str
    why: str


def find_peak(
    batch_size: np.ndarray,
    lr: np.ndarray,
    error: np.ndarray,
    comparison: Comparison,
    bound: np.ndarray | None = None,
) -> Peak:
    """The peak of ε_opt(B) and whether the data can see it at all: a rise and a fall, each at 5%.

    Where both are seen the value is the own peak of the remaining law with the best score that has
    one in the interval. The interval asks no law: it holds what a test of order does not reject.

    Args:
      batch_size: B [n].
      lr: ε_opt [n].
      error: standard errors of log ε [n].
      comparison: of the rival laws on the same optima.
      bound: as in `compare_laws` [n].
    """
    gaps = comparison.gaps
    if not len(gaps):
        nothing = (math.nan,) * 5
        return Peak(*nothing, "", "fewer than four batch sizes have a known optimum")
    size = np.sort(np.asarray(batch_size, float))
    possible = np.flatnonzero(gaps > SEEN)
    ends = np.concatenate([[0.0], size, [math.inf]])
    low = float(ends[possible[0]])
    high = float(ends[possible[-1] + 1])
    p_fall = float(gaps[-1])
    p_rise = float(gaps[0])
    if p_fall > SEEN:
        data = optima(batch_size, lr, error, bound)
        needs = what_decides(data, _with_peaks(comparison))
        top = data.size[(data.y - data.error).argmax()]
        why = f"no significant fall: {_reach(size[-1] / top)}"
        return Peak(math.inf, low, math.inf, p_fall, p_rise, needs, why)
    if p_rise > SEEN:
        why = f"the optimum falls from the smallest batch size on, {size[0]:g}"
        return Peak(math.nan, 0.0, high, p_fall, p_rise, "", f"no significant rise: {why}")
    inside = [fit for fit in _with_peaks(comparison) if low <= peak_size(fit) <= high]
    value = peak_size(inside[0]) if inside else float(np.sqrt(max(low, size[0]) * high))
    return Peak(value, low, high, p_fall, p_rise, "", "")


def _reach(ratio: float) -> str:
    """How far the batch sizes go beyond the one of the highest optimum."""
    if ratio == 1:
        return "the data end at the highest optimum"
    return f"the data reach {ratio:.3g} times the batch size of the highest optimum"


def _with_peaks(comparison: Comparison) -> list[Fit]:
    """Remaining laws that have a peak, the best score first."""
    names = sorted(comparison.remaining, key=comparison.score.__getitem__)
    fits = [comparison.fits[name] for name in names]
    return [fit for fit in fits if math.isfinite(peak_size(fit))]


def what_decides(data: Optima, peaked: list[Fit]) -> str:
    """How many more seeds, or how much larger batch sizes, would show the fall that may be there.

    It is that of the best law with a peak that remains, at the errors that the data have.
    """
    if not peaked:
        return "no law with a peak remains"
    fit = peaked[0]
    size = np.sort(data.size)
    error = float(np.median(data.error[data.bound == 0]))
    where = float(f"{peak_size(fit):.3g}")
    premise = f"if {fit.law} holds, with its peak at B = {where:,g},"
    ways = []
    seen = _fall(fit, size, error)
    if seen > NEEDED / MOST_SEEDS:
        ways.append(f"{max(NEEDED / seen, 1):.2g} times the seeds")
    for doubling in range(1, FARTHEST + 1):
        farther = size[-1] * 2.0 ** np.arange(1, doubling + 1)
        if _fall(fit, np.concatenate([size, farther]), error) > NEEDED:
            ways.append(f"batch sizes to {farther[-1]:.0f}")
            break
    if not ways:
        return f"{premise} no sweep of this precision would show the fall"
    return f"{premise} the fall would show with {' or '.join(ways)}"


def _fall(fit: Fit, size: np.ndarray, error: float) -> float:
    """χ² by which a law without noise tells itself from every curve that rises to the end."""
    line = np.log(LAWS[fit.law].function(size, **fit.parameters))
    return float(gap_costs(line[None], np.full(len(size), 1 / error**2))[0, -1])
