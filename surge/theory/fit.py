"""Laws fitted to optima and steps, with intervals, and the comparison of rival laws.

Every law is a scale times a shape with at most two parameters, so a fit is a search over a grid of shapes, all
at once, with the scale solved for. Intervals are profile likelihood with a Student quantile: a bound that the data
do not see stays open.
"""

import itertools
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy import stats

from surge.theory.laws import LAWS, Law, saturating_peak_size

CONFIDENCE = 0.95
GRID = {1: 401, 2: 81}  # points along each shape parameter, by their number
RULED_OUT = 6.0  # in AICc: twenty times less likely
CLEAR = 3.5  # standard errors between two optima that pass for a rise or a fall of a curve
CLOSE = 1.25  # factor between held-out errors that does not matter
IMPLAUSIBLE = 1e-3  # probability of a law's misfit by chance
ERROR_FLOOR = 0.03  # of log ε: a parabola is only an approximation of the loss around the optimum


class Fit(NamedTuple):
    """One law fitted: parameters and their intervals by name, residuals of log ε [n], and the profile of misfits."""

    law: str
    parameters: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    residuals: np.ndarray
    misfit: float  # sum of squared residuals in units of their errors
    shapes: np.ndarray  # grid of shape parameters [g, k]
    excess: (
        np.ndarray
    )  # misfit above the best shape, in units of the critical value [g]; at most 1 inside the interval


def _grid(law: Law, batch_size: np.ndarray) -> np.ndarray:
    """All shapes of a law that a fit considers [g, k]."""
    axes = []
    for name, (low, high) in law.bounds.items():
        if name.startswith("b_"):
            low, high = low * batch_size.min(), high * batch_size.max()
        space = np.linspace if low <= 0 or name == "alpha" else np.geomspace
        axes.append(space(low, high, GRID[len(law.bounds)]))
    return np.array(list(itertools.product(*axes))) if axes else np.zeros((1, 0))


def _log_shapes(law: Law, shapes: np.ndarray, batch_size: np.ndarray) -> np.ndarray:
    """log of the law at scale 1 [g, n]."""
    named = {name: shapes[:, index, None] for index, name in enumerate(law.bounds)}
    with np.errstate(divide="ignore"):
        values = np.log(np.asarray(law.function(batch_size[None], max_lr=1.0, **named), float))
    return np.broadcast_to(values, (len(shapes), len(batch_size)))


def fit_law(name: str, batch_size: np.ndarray, lr: np.ndarray, error: np.ndarray | None = None) -> Fit:
    """Fits one law to log ε by least squares made robust (Huber, reweighted).

    Args:
      batch_size: B [n].
      lr: ε_opt [n], > 0.
      error: standard errors of log ε [n]; None: equal.

    Returns:
      Fit. Where n leaves no freedom, intervals are (0, inf).

    Raises:
      ValueError: fewer points than one.
    """
    law = LAWS[name]
    batch_size, y = np.asarray(batch_size, float), np.log(np.asarray(lr, float))
    if not len(y):
        raise ValueError("a law needs at least one batch size with a known optimum")
    known = error is not None
    weight = 1 / np.maximum(np.full(len(y), 0.1) if error is None else np.asarray(error, float), ERROR_FLOOR) ** 2
    shapes = _grid(law, batch_size)
    logs = _log_shapes(law, shapes, batch_size)
    robust = np.ones(len(y))
    for _ in range(4):
        best, scale, misfit, residual = _profile(y, logs, weight * robust)
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
    intervals = {"max_lr": (float(np.exp(scale[inside].min() - half)), float(np.exp(scale[inside].max() + half)))}
    for index, each in enumerate(law.bounds):
        column = shapes[:, index]
        parameters[each] = float(column[best])
        intervals[each] = _open_ended(column[inside], column, each)
    full = weight @ residual**2  # points that the robust fit plays down still speak against the law
    return Fit(name, parameters, intervals, residual, float(full), shapes, excess)


def _profile(y: np.ndarray, logs: np.ndarray, weight: np.ndarray) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
    """Best shape, the log scale [g] and misfit [g] of every shape, and the best one's residuals [n]."""
    gap = y - logs
    scale = gap @ weight / weight.sum()
    misfit = ((gap - scale[:, None]) ** 2) @ weight
    misfit = np.where(np.isfinite(misfit), misfit, np.inf)
    best = int(misfit.argmin())
    return best, scale, misfit, gap[best] - scale[best]


def _open_ended(inside: np.ndarray, grid: np.ndarray, name: str) -> tuple[float, float]:
    """Ends of an interval; an end on the edge of what was considered is open."""
    low, high = float(inside.min()), float(inside.max())
    least = -math.inf if name == "exponent" else 0.0
    return (least if low <= grid.min() else low), (math.inf if high >= grid.max() else high)


def _dispersion(fits: Mapping[str, Fit], n: int) -> float:
    """The factor of the squared errors that no law does better than; at least 1."""
    freedom = {name: n - len(fit.parameters) for name, fit in fits.items()}
    return max(1.0, min((fits[name].misfit / left for name, left in freedom.items() if left > 0), default=1.0))


def _aicc(fits: Mapping[str, Fit], n: int) -> dict[str, float]:
    """Akaike's criterion corrected for small samples; inf for a law with too many parameters for n points.

    The errors count as known up to a factor that no law does better than (QAICc, Burnham and Anderson, section 2.5).
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
      held_out: root mean square error of log ε at batch sizes left out of the fit, by law name; nan below 3 points.
      best: the simplest law that is not worse than any other beyond the noise and that all such others
        generalise, if its held-out error is within CLOSE of the least; None where there is no single one.
      why: the sentence that goes with best = None, else "".
    """

    fits: dict[str, Fit]
    aicc: dict[str, float]
    held_out: dict[str, float]
    best: str | None
    why: str


def compare_laws(batch_size: np.ndarray, lr: np.ndarray, error: np.ndarray | None = None) -> Comparison:
    """Fits every law, and predicts each batch size from the others.

    A law is ruled out when its squared held-out error exceeds the best law's by more than two standard errors of
    the paired difference, or its AICc by more than RULED_OUT, or when its own misfit is beyond what
    the errors allow.

    Args:
      batch_size: B [n].
      lr: ε_opt [n].
      error: standard errors of log ε [n]; None: equal.
    """
    n = len(batch_size)
    if n == 0:
        return Comparison({}, {}, {}, None, "no batch size has a known optimum")
    errors = np.full(n, 0.1) if error is None else np.maximum(np.asarray(error, float), ERROR_FLOOR)
    fits = {name: fit_law(name, batch_size, lr, error) for name in LAWS}
    aicc = _aicc(fits, n)
    if n < 4:
        nothing = dict.fromkeys(LAWS, math.nan)
        return Comparison(fits, aicc, nothing, None, f"{n} batch sizes are too few to compare laws: sweep at least 4")
    missed = {name: _leave_one_out(LAWS[name], np.asarray(batch_size, float), np.log(lr), errors) for name in LAWS}
    held_out = {name: float(np.sqrt(np.mean(each**2))) for name, each in missed.items()}
    cost = {name: (each / errors) ** 2 for name, each in missed.items()}
    best = min(cost, key=lambda name: cost[name].mean())
    least = min(aicc.values())
    remaining = []
    for name in LAWS:
        difference = cost[name] - cost[best]
        noise = difference.std(ddof=1) / math.sqrt(n)
        misfit = fits[name].misfit / _dispersion(fits, n)
        fits_at_all = stats.chi2.sf(misfit, max(n - len(fits[name].parameters), 1)) > IMPLAUSIBLE
        if difference.mean() <= 2 * noise and aicc[name] <= least + RULED_OUT and fits_at_all:
            remaining.append(name)
    winner = _simplest(remaining)
    if winner and held_out[winner] > CLOSE * min(held_out.values()):
        winner = None  # too few points to rule out what predicts clearly worse
    why = "" if winner else f"the data cannot tell {', '.join(remaining)} apart"
    return Comparison(fits, aicc, held_out, winner, why)


def _leave_one_out(law: Law, batch_size: np.ndarray, y: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Error of log ε at each batch size when predicted from all others [n]."""
    logs = _log_shapes(law, _grid(law, batch_size), batch_size)
    out = np.empty(len(y))
    for index in range(len(y)):
        weight = 1 / errors**2
        weight[index] = 0.0
        best, scale, _, _ = _profile(y, logs, weight)
        out[index] = y[index] - logs[best, index] - scale[best]
    return out


def _simplest(names: list[str]) -> str | None:
    """The one of them that all the others generalise."""
    for name in sorted(names, key=lambda each: len(LAWS[each].parameters)):
        if all(other == name or name in LAWS[other].generalises for other in names):
            return name
    return None


PAIR_FREEDOM = 10  # of a typical optimum's error: five cells of three seeds


class Peak(NamedTuple):
    """Batch size at which ε_opt is highest: value nan or inf with the reason; the 95% interval may be open."""

    value: float
    low: float
    high: float
    why: str


def find_peak(batch_size: np.ndarray, lr: np.ndarray, error: np.ndarray, comparison: Comparison) -> Peak:
    """The peak of ε_opt(B) and whether the data can see it at all.

    An upper bound is given only where the optimum at some larger batch size lies significantly below the highest
    one: by CLEAR standard errors where a peaked law also beats every law without a peak in AICc, else at 1% after
    Bonferroni over all pairs. A lower bound, likewise, only where it does so at some smaller one. The interval is
    the union of those of both peaked laws, where the data do not tell them apart.
    """
    if len(batch_size) < 4:
        return Peak(math.nan, math.nan, math.nan, "fewer than four batch sizes have a known optimum")
    order = np.argsort(batch_size)
    size, y = np.asarray(batch_size, float)[order], np.log(np.asarray(lr, float)[order])
    noise = np.maximum(np.asarray(error, float)[order], ERROR_FLOOR)
    top = int((y - noise).argmax())
    drop = (y[top] - y) / np.hypot(noise, noise[top])
    rising = min(comparison.aicc[name] for name in ("constant", "power", "mccandlish"))
    peaked = min(comparison.aicc[name] for name in ("surge", "saturating_surge"))
    pairs = len(y) * (len(y) - 1) / 2
    quantile = stats.t.ppf(1 - 0.01 / pairs, PAIR_FREEDOM) if peaked > rising - RULED_OUT else CLEAR
    rises, falls = bool((drop[:top] > quantile).any()), bool((drop[top + 1 :] > quantile).any())
    if not falls:
        reach = f"the data reach {size[-1] / size[top]:.3g} times the batch size of the highest optimum"
        return Peak(math.inf, float(size[0]) if rises else 0.0, math.inf, f"no significant fall: {reach}")
    if not rises:
        value = f"the optimum falls from the smallest batch size on, {size[0]:g}"
        return Peak(math.nan, 0.0, float(size[min(top + 1, len(size) - 1)]), f"no significant rise: {value}")
    surge, saturating = comparison.fits["surge"], comparison.fits["saturating_surge"]
    better = min(surge, saturating, key=lambda fit: comparison.aicc[fit.law])
    peaks = []
    for fit in (surge, saturating):
        if comparison.aicc[fit.law] <= comparison.aicc[better.law] + 4:
            shapes = fit.shapes[fit.excess <= 1].T
            peaks.append(shapes[0] if fit is surge else np.asarray(saturating_peak_size(*shapes)))
    value = LAWS[better.law].peak(**better.parameters)[0]
    low, high = float(min(each.min() for each in peaks)), float(max(each.max() for each in peaks))
    why = "" if size[-1] >= 10 * value else "the data end within a decade of the peak"
    return Peak(float(value), low, high, why)


class NoiseScale(NamedTuple):
    """B_noise of S(B) = s_min (1 + B_noise/B), its 95% interval, s_min in steps, e_min in examples, n, reason."""

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
      method: "log": least squares of log S = log s_min + log(1 + B_noise/B), with a profile interval. "paper": the
        regression of 1/S on 1/E, biased low because the noise of S sits on both axes; without an interval.

    Raises:
      ValueError: another method.
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
        return NoiseScale(method, -slope, math.nan, math.nan, 1 / intercept, -slope / intercept, n, "")
    grid = np.geomspace(1e-3 * size.min(), 1e3 * size.max(), 4001)
    logs = np.log1p(grid[:, None] / size)
    best, scale, misfit, _ = _profile(np.log(steps), logs, np.ones(n))
    critical = stats.t.ppf(0.5 + CONFIDENCE / 2, n - 2) ** 2 * misfit[best] / (n - 2)
    low, high = _open_ended(grid[misfit <= misfit[best] + critical], grid, "b_noise")
    b_noise, s_min = float(grid[best]), math.exp(scale[best])
    why = ""
    if best in (0, len(grid) - 1):
        why = "S falls as 1/B over the whole range" if best else "S does not depend on B over the whole range"
        b_noise = s_min = math.nan
    return NoiseScale(method, b_noise, low, high, s_min, s_min * b_noise, n, why)
