"""Laws fitted to optima, with intervals, and the comparison of rival laws.

Every law is a scale times a shape with at most two parameters, so a fit is a search over a grid of
shapes, all at once, with the scale solved for. Intervals are profile likelihood with a Student
quantile: a bound that the data do not see stays open.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy import stats

from surge.theory.rivals import LAWS, Law

CONFIDENCE = 0.95
GRID = {1: 401, 2: 81}  # points along each shape parameter, by their number
RULED_OUT = 6.0  # in AICc: twenty times less likely
WORSE = 0.99  # confidence that a law predicts worse than the one that predicts best
EQUIVALENT = math.log(
    1.2
)  # between two curves of ε on the data: an error of 20% costs 4% of a step's gain
IMPLAUSIBLE = 1e-3  # probability of a law's misfit by chance
MISJUDGED = 2.0  # factor by which given errors may be too small; beyond, all laws are wrong and not the errors
ERROR_FLOOR = 0.03  # of log ε: a parabola is only an approximation of the loss around the optimum


class Fit(NamedTuple):
    """One law fitted to n points: parameters and their intervals by name, residuals of log ε [n],
    and its profile."""

    law: str
    parameters: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    residuals: np.ndarray
    misfit: float  # sum of squared residuals in units of their errors
    shapes: np.ndarray  # grid of shape parameters [g, k]
    lines: np.ndarray  # log ε of each shape at the data, its scale solved for [g, n]
    excess: np.ndarray  # misfit above the best shape's [g], in units of the critical value: at most 1 in the interval


def _grid(law: Law, batch_size: np.ndarray) -> np.ndarray:
    """All shapes of a law that a fit considers [g, k]."""
    axes = []
    for name, (low, high) in law.bounds.items():
        if name.startswith("b_"):
            low, high = low * batch_size.min(), high * batch_size.max()
        space = np.linspace if low <= 0 or name == "alpha" else np.geomspace
        axes.append(space(low, high, GRID[len(law.bounds)]))
    return (
        np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(axes))
        if axes
        else np.zeros((1, 0))
    )


def _log_shapes(law: Law, shapes: np.ndarray, batch_size: np.ndarray) -> np.ndarray:
    """log of the law at scale 1 [g, n]."""
    named = {name: shapes[:, index, None] for index, name in enumerate(law.bounds)}
    with np.errstate(divide="ignore"):
        values = np.log(np.asarray(law.function(batch_size[None], max_lr=1.0, **named), float))
    return np.broadcast_to(values, (len(shapes), len(batch_size)))


def fit_law(
    name: str, batch_size: np.ndarray, lr: np.ndarray, error: np.ndarray | None = None
) -> Fit:
    """Fits one law to log ε by least squares made robust (Huber, reweighted).

    Args:
      batch_size: B [n].
      lr: ε_opt [n], > 0.
      error: standard errors of log ε [n]; None: equal.

    Returns:
      Fit. Where n leaves no freedom, intervals are (0, inf).

    Raises:
      ValueError: fewer points than one, or a batch size or rate that is not finite and above 0.
    """
    law = LAWS[name]
    batch_size, lr = np.asarray(batch_size, float), np.asarray(lr, float)
    if not len(lr):
        raise ValueError("a law needs at least one batch size with a known optimum")
    for what, values in (("batch size", batch_size), ("learning rate", lr)):
        wrong = values[~((values > 0) & np.isfinite(values))]
        if len(wrong):
            raise ValueError(f"each {what} must be finite and above 0, got {wrong[0]}")
    y = np.log(lr)
    known = error is not None
    weight = (
        1
        / np.maximum(
            np.full(len(y), 0.1) if error is None else np.asarray(error, float), ERROR_FLOOR
        )
        ** 2
    )
    shapes = _grid(law, batch_size)
    logs = _log_shapes(law, shapes, batch_size)
    robust = np.ones(len(y))
    for _ in range(4):
        best, scale, misfit, residual = profile(y, logs, weight * robust)
        scatter = max(np.median(np.abs(residual)) * 1.4826, ERROR_FLOOR)
        robust = np.minimum(1.0, 2.5 * scatter / np.maximum(np.abs(residual), 1e-12))
    freedom = len(y) - len(law.parameters)
    excess = np.full(len(shapes), 0.0)
    half = math.inf
    if freedom > 0:
        dispersion = misfit[best] / freedom
        dispersion = max(1.0, dispersion) if known else dispersion
        critical = stats.t.ppf(0.5 + CONFIDENCE / 2, freedom) ** 2 * max(dispersion, 1e-12)
        excess = (misfit - misfit[best]) / critical
        half = math.sqrt(critical / (weight * robust).sum())
    inside = excess <= 1
    parameters = {"max_lr": math.exp(scale[best])}
    intervals = {
        "max_lr": (
            float(np.exp(scale[inside].min() - half)),
            float(np.exp(scale[inside].max() + half)),
        )
    }
    for index, each in enumerate(law.bounds):
        column = shapes[:, index]
        parameters[each] = float(column[best])
        intervals[each] = open_ended(column[inside], column, each)
    full = weight @ residual**2  # points that the robust fit plays down still speak against the law
    return Fit(
        name, parameters, intervals, residual, float(full), shapes, logs + scale[:, None], excess
    )


def profile(
    y: np.ndarray, logs: np.ndarray, weight: np.ndarray
) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
    """Best shape, the log scale [g] and misfit [g] of every shape, and the best one's residuals
    [n]."""
    gap = y - logs
    scale = gap @ weight / weight.sum()
    misfit = ((gap - scale[:, None]) ** 2) @ weight
    misfit = np.where(np.isfinite(misfit), misfit, np.inf)
    best = int(misfit.argmin())
    return best, scale, misfit, gap[best] - scale[best]


def open_ended(inside: np.ndarray, grid: np.ndarray, name: str) -> tuple[float, float]:
    """Ends of an interval, rounded outwards to the grid; an end on the edge of what was considered
    is open."""
    points = np.unique(grid)
    low, high = points.searchsorted((inside.min(), inside.max()))
    least = -math.inf if name == "exponent" else 0.0
    return (
        float(points[low - 1]) if low > 0 else least,
        float(points[high + 1]) if high + 1 < len(points) else math.inf,
    )


def _dispersion(fits: Mapping[str, Fit], n: int) -> float:
    """The factor of the squared errors that no law does better than; at least 1."""
    freedom = {name: n - len(fit.parameters) for name, fit in fits.items()}
    return max(
        1.0,
        min((fits[name].misfit / left for name, left in freedom.items() if left > 0), default=1.0),
    )


def _aicc(fits: Mapping[str, Fit], n: int) -> dict[str, float]:
    """Akaike's criterion corrected for small samples; inf for a law with too many parameters for n
    points.

    The errors count as known up to a factor that no law does better than (QAICc, Burnham and
    Anderson, section 2.5).
    """
    dispersion = _dispersion(fits, n)
    criterion = {}
    for name, fit in fits.items():
        k = len(fit.parameters) + (dispersion > 1)
        small = 2 * k * (k + 1) / (n - k - 1) if n - k - 1 > 0 else math.inf
        criterion[name] = fit.misfit / dispersion + 2 * k + small
    return criterion


class Comparison(NamedTuple):
    """Rival laws on the same optima.

    Attributes:
      fits: by law name; empty where no batch size has a known optimum.
      aicc: Akaike's criterion by law name, smaller is better.
      held_out: root mean square error of log ε at batch sizes left out of the fit, by law name; nan
        below 4 points.
      held_out_se: its standard error.
      best: the law that is named; None where the data cannot tell.
      why: the sentence that goes with best = None, else "".
    """

    fits: dict[str, Fit]
    aicc: dict[str, float]
    held_out: dict[str, float]
    held_out_se: dict[str, float]
    best: str | None
    why: str


def compare_laws(
    batch_size: np.ndarray, lr: np.ndarray, error: np.ndarray | None = None
) -> Comparison:
    """Fits every law, predicts each batch size from the others, and names a law only if it is told
    from its rivals.

    A law is ruled out when its squared held-out error exceeds that of the best predictor at
    confidence WORSE, by the standard error of the paired difference, or its AICc the least one by
    more than RULED_OUT, or when its own misfit is beyond what the errors allow. Of those that
    remain the simplest is named, if

    * all others generalise it,
    * none of them, at any parameters inside their 95% intervals, leaves its curve by more than
      EQUIVALENT at any batch size of the data: not to reject a simple law is no evidence for it, to
      bound what it misses is, and
    * its own intervals are closed: a law with an open end is, for all that the data say, a special
      case of itself.

    So a law that is named describes the data as well as its rivals do; what it misses is below
    EQUIVALENT.

    Args:
      batch_size: B [n].
      lr: ε_opt [n].
      error: standard errors of log ε [n]; None: equal.

    Raises:
      ValueError: a batch size or rate that is not finite and above 0.
    """
    n = len(batch_size)
    if n == 0:
        return Comparison({}, {}, {}, {}, None, "no batch size has a known optimum")
    errors = np.full(n, 0.1) if error is None else np.maximum(np.asarray(error, float), ERROR_FLOOR)
    fits = {name: fit_law(name, batch_size, lr, error) for name in LAWS}
    aicc = _aicc(fits, n)
    if n < 4:
        nothing = dict.fromkeys(LAWS, math.nan)
        few = f"{n} batch sizes are too few to compare laws: sweep at least 4"
        return Comparison(fits, aicc, nothing, nothing, None, few)
    squares = {name: _leave_one_out(fit, np.log(lr), errors) ** 2 for name, fit in fits.items()}
    held_out = {name: math.sqrt(each.mean()) for name, each in squares.items()}
    held_out_se = {
        name: each.std(ddof=1) / math.sqrt(n) / max(2 * held_out[name], 1e-12)
        for name, each in squares.items()
    }
    dispersion = min(_dispersion(fits, n), math.inf if error is None else MISJUDGED**2)
    remaining = _remaining(
        fits, aicc, dispersion, {name: each / errors**2 for name, each in squares.items()}
    )
    winner = _simplest(remaining)
    why = _doubt(winner, [fits[name] for name in remaining])
    return Comparison(fits, aicc, held_out, held_out_se, None if why else winner, why)


def _leave_one_out(fit: Fit, y: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Error of log ε at each batch size when the law is fitted to all others [n]."""
    weight, gap = 1 / errors**2, y - fit.lines
    others = weight.sum() - weight
    scale = ((gap @ weight)[:, None] - gap * weight) / others
    misfit = (gap**2 @ weight)[:, None] - gap**2 * weight - scale**2 * others
    best, each = np.where(np.isfinite(misfit), misfit, np.inf).argmin(0), np.arange(len(y))
    return gap[best, each] - scale[best, each]


def _remaining(
    fits: Mapping[str, Fit],
    aicc: Mapping[str, float],
    dispersion: float,
    cost: Mapping[str, np.ndarray],
) -> list[str]:
    """Laws that are not ruled out, given squared held-out errors in units of those of the optima
    [n]."""
    least, best = min(aicc.values()), min(cost, key=lambda name: cost[name].mean())
    n = len(cost[best])
    quantile = stats.t.ppf(WORSE, n - 1)
    remaining = []
    for name, fit in fits.items():
        difference = cost[name] - cost[best]
        predicts = difference.mean() <= quantile * difference.std(ddof=1) / math.sqrt(n)
        plausible = (
            stats.chi2.sf(fit.misfit / dispersion, max(n - len(fit.parameters), 1)) > IMPLAUSIBLE
        )
        if predicts and plausible and aicc[name] <= least + RULED_OUT:
            remaining.append(name)
    return remaining


def _simplest(names: list[str]) -> str | None:
    """The one of them that all the others generalise."""
    for name in sorted(names, key=lambda each: len(LAWS[each].parameters)):
        if all(other == name or name in LAWS[other].generalises for other in names):
            return name
    return None


def _doubt(winner: str | None, remaining: list[Fit]) -> str:
    """Why the simplest of the remaining laws is not told from the others; "" if it is."""
    if winner is None:
        names = ", ".join(fit.law for fit in remaining)
        return (
            f"the data cannot tell {names} apart"
            if remaining
            else "no law fits the optima within their errors"
        )
    chosen = next(fit for fit in remaining if fit.law == winner)
    line = chosen.lines[chosen.excess.argmin()]
    for fit in remaining:
        apart = np.abs(fit.lines[fit.excess <= 1] - line).max()
        if fit is not chosen and apart > EQUIVALENT:
            return f"the data cannot tell {winner} from a {fit.law} that differs by a factor of {math.exp(apart):.2g}"
    inside = chosen.shapes[chosen.excess <= 1]
    opened = (inside.min(0) <= chosen.shapes.min(0)) | (inside.max(0) >= chosen.shapes.max(0))
    if opened.any():
        name = list(LAWS[winner].bounds)[opened.argmax()]
        return f"the data cannot tell {winner} from a limiting case of it: {name} has no closed interval"
    return ""
