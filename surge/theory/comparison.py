"""Rival laws on the same optima: which remain, how much each weighs, and whether one is named."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy.special import chdtrc, chdtri

from surge.theory.fit import (
    CONFIDENCE,
    ERROR_FLOOR,
    MISJUDGED,
    Fit,
    Optima,
    coarse,
    fit_law,
    log_shapes,
    optima,
)
from surge.theory.rivals import LAWS
from surge.theory.unimodal import p_values

RULED_OUT = 6.0  # in the score: twenty times less likely
IMPLAUSIBLE = 1e-3  # probability of a law's misfit by chance
EQUIVALENT = math.log(1.2)  # between two curves: an error of 20% costs 4% of a step's gain
SEEN = 0.05  # probability of a fall by chance, below which it is seen
FEWEST = 4  # batch sizes, of which at least three with a known optimum


class Comparison(NamedTuple):
    """Rival laws on the same optima.

    Attributes:
      fits: by law name; empty where no batch size has a known optimum.
      score: -2 log likelihood + 2k by law name, smaller is better; Akaike's criterion for small
        samples where the errors are not known. inf where a law has too many parameters for that.
      held_out: root mean square error of log ε at batch sizes left out of the fit, by law name; nan
        below 4 points.
      held_out_se: its standard error.
      remaining: names of the laws that are not ruled out, the fewest parameters first.
      weights: Akaike weights of the remaining laws, by law name; 0 for the others.
      gaps: probability of the data if the peak lies in each gap between batch sizes, of
        `unimodal.p_values`; empty where batch sizes are too few.
      best: the law that is named; None where the data cannot tell.
      why: the sentence that goes with best = None, else "".
    """

    fits: dict[str, Fit]
    score: dict[str, float]
    held_out: dict[str, float]
    held_out_se: dict[str, float]
    remaining: tuple[str, ...]
    weights: dict[str, float]
    gaps: np.ndarray
    best: str | None
    why: str


def compare_laws(
    batch_size: np.ndarray,
    lr: np.ndarray,
    error: np.ndarray | None = None,
    bound: np.ndarray | None = None,
) -> Comparison:
    """Fits every law, and names one only where all that the data leave open look the same.

    A law is ruled out when its own misfit is beyond what the errors allow, or its score is above
    the least one by more than RULED_OUT and it generalises no law that remains: size alone rules
    nothing out. What cannot be scored remains. Of the laws that remain the simplest is named, if

    * none of them, at any parameters inside their 95% intervals, leaves its curve by more than
      EQUIVALENT anywhere between the smallest and the largest batch size: not to reject a simple
      law is no evidence for it, to bound what it misses is, and
    * it has no peak inside the data, or the data show a fall (`unimodal.p_values`).

    A name is a statement about the curve within the data, to a factor of 1.2, and not about what
    causes it.

    Args:
      batch_size: B [n].
      lr: ε_opt [n], > 0.
      error: standard errors of log ε [n]; None: one common error, which the laws' residuals tell.
      bound: 0 where lr is an optimum, +1 where the optimum is at least lr, -1 where it is at most
        lr [n]; None: all are optima.

    Raises:
      ValueError: a batch size or rate that is not finite and above 0.
    """
    exact = len(batch_size) if bound is None else int((np.asarray(bound) == 0).sum())
    if exact == 0:
        why = "no batch size has a known optimum"
        return Comparison({}, {}, {}, {}, (), {}, np.ones(0), None, why)
    data = optima(batch_size, lr, error, bound)
    fits = {name: fit_law(name, batch_size, lr, error, bound) for name in LAWS}
    dispersion = _dispersion(fits, data)
    score = {name: _score(fit, data, dispersion) for name, fit in fits.items()}
    if len(data.y) < FEWEST or exact < FEWEST - 1:
        nothing = dict.fromkeys(LAWS, math.nan)
        weights = _weights(score, tuple(LAWS))
        few = f"{exact} batch sizes are too few to compare laws: sweep at least {FEWEST}"
        gaps = np.ones(0)
        return Comparison(fits, score, nothing, nothing, tuple(LAWS), weights, gaps, None, few)
    data = data if data.known else _with_least_error(fits, data)
    gaps = _gaps(data)
    remaining = _remaining(fits, score, dispersion, data)
    best, why = _named(fits, remaining, data, bool(gaps[-1] <= SEEN))
    held_out = {}
    held_out_se = {}
    for name in fits:
        squares = _leave_one_out(name, data) ** 2
        root = math.sqrt(squares.mean())
        held_out[name] = root
        spread = squares.std(ddof=1) / math.sqrt(len(squares))
        held_out_se[name] = spread / max(2 * root, 1e-12)
    weights = _weights(score, remaining)
    return Comparison(fits, score, held_out, held_out_se, remaining, weights, gaps, best, why)


def _dispersion(fits: Mapping[str, Fit], data: Optima) -> float:
    """The factor of the squared errors that makes the best law just plausible; from 1 to MISJUDGED.

    Errors of three seeds may be too small, and then no law would fit.
    """
    if not data.known:
        return 1.0
    excess = [
        fit.misfit / chdtri(max(_freedom(fit, data), 1), 1 - CONFIDENCE) for fit in fits.values()
    ]
    return float(np.clip(min(excess), 1.0, MISJUDGED))


def _freedom(fit: Fit, data: Optima) -> int:
    return int((data.bound == 0).sum()) - len(fit.parameters)


def _score(fit: Fit, data: Optima, dispersion: float) -> float:
    k = len(fit.parameters)
    if data.known:
        return fit.misfit / dispersion + 2 * k
    n = int((data.bound == 0).sum())
    k += 1  # the common error
    if n - k - 1 <= 0:
        return math.inf
    square = float((fit.residuals[data.bound == 0] ** 2).mean())
    square = max(square, (ERROR_FLOOR / 3) ** 2)
    return n * math.log(square) + 2 * k + 2 * k * (k + 1) / (n - k - 1)


def _with_least_error(fits: Mapping[str, Fit], data: Optima) -> Optima:
    """The common error that the law with the smallest one leaves."""
    exact = data.bound == 0
    square = [
        (fit.residuals[exact] ** 2).sum() / max(_freedom(fit, data), 1) for fit in fits.values()
    ]
    error = max(math.sqrt(min(square)), ERROR_FLOOR / 3)
    return data._replace(error=np.full(len(data.y), error))


def _gaps(data: Optima) -> np.ndarray:
    order = np.argsort(data.size)
    return p_values(data.y[order], data.error[order], data.bound[order])


def _remaining(
    fits: Mapping[str, Fit], score: Mapping[str, float], dispersion: float, data: Optima
) -> tuple[str, ...]:
    least = min(score.values())
    plausible = set()
    for name, fit in fits.items():
        freedom = max(_freedom(fit, data), 1)
        chance = chdtrc(freedom, fit.misfit / dispersion) if data.known else 1.0
        if chance > IMPLAUSIBLE:
            plausible.add(name)
    kept = {
        name for name in plausible if score[name] <= least + RULED_OUT or math.isinf(score[name])
    }
    kept |= {name for name in plausible if kept & set(LAWS[name].generalises)}
    return tuple(sorted(kept, key=lambda name: (len(fits[name].parameters), score[name])))


def _weights(score: Mapping[str, float], remaining: tuple[str, ...]) -> dict[str, float]:
    """exp(-score/2) of the remaining laws, made to sum to 1; equal where none could be scored."""
    finite = [score[name] for name in remaining if math.isfinite(score[name])]
    least = min(finite, default=math.inf)
    raw = dict.fromkeys(score, 0.0)
    for name in remaining:
        raw[name] = math.exp((least - score[name]) / 2) if finite else 1.0
    total = sum(raw.values()) or 1.0
    return {name: value / total for name, value in raw.items()}


def _named(
    fits: Mapping[str, Fit], remaining: tuple[str, ...], data: Optima, falls: bool
) -> tuple[str | None, str]:
    """The law that is named, or None and why."""
    if not remaining:
        return None, "no law fits the optima within their errors"
    names = [name for name in remaining if falls or not peaks_inside(fits[name], data.size)]
    if not names:
        return None, f"{remaining[0]} fits, but no fall is seen"
    order = np.sort(data.size)
    sizes = np.sort(np.concatenate([order, np.sqrt(order[1:] * order[:-1])]))
    chosen = fits[names[0]]
    line = _log_curve(chosen, sizes)
    widest = 0.0
    other = chosen.law
    for name in remaining:
        apart = _farthest(fits[name], line, sizes, data)
        if apart > widest:
            widest, other = apart, name
    if widest <= EQUIVALENT:
        return chosen.law, ""
    factor = f"a factor of {math.exp(min(widest, 50)):.3g}"
    if other == chosen.law:
        return None, f"the data tell {chosen.law} only to within {factor}"
    return None, f"the data cannot tell {chosen.law} from a {other} that differs by {factor}"


def peaks_inside(fit: Fit, size: np.ndarray) -> bool:
    """Whether the fitted law has its peak between the smallest and the largest batch size."""
    peak = peak_size(fit)
    return bool(size.min() < peak < size.max())


def peak_size(fit: Fit) -> float:
    """Batch size of the fitted law's own peak; inf or nan where it has none."""
    shape = {name: fit.parameters[name] for name in LAWS[fit.law].bounds}
    return float(LAWS[fit.law].peak(**shape))


def _log_curve(fit: Fit, sizes: np.ndarray) -> np.ndarray:
    return np.log(LAWS[fit.law].function(sizes, **fit.parameters))


def _farthest(fit: Fit, line: np.ndarray, sizes: np.ndarray, data: Optima) -> float:
    """Largest distance in log ε from a curve of all curves that a law's intervals hold."""
    inside = fit.excess <= 1
    curves = log_shapes(LAWS[fit.law], fit.shapes[inside], sizes) + fit.scale[inside, None]
    # The scale may move as far as the misfit of the shape leaves room for.
    room = np.sqrt((1 - fit.excess[inside]) * fit.critical / data.weight.sum())
    return float((np.abs(curves - line).max(1) + room).max())


def _leave_one_out(name: str, data: Optima) -> np.ndarray:
    """Error of log ε at each known optimum when the law is fitted to all others [n]."""
    exact = data.bound == 0
    _, logs = coarse(name, tuple(data.size[exact]))
    y = data.y[exact]
    weight = data.weight[exact]
    gap = y - logs
    others = weight.sum() - weight
    scale = ((gap @ weight)[:, None] - gap * weight) / others
    misfit = (gap**2 @ weight)[:, None] - gap**2 * weight - scale**2 * others
    best = misfit.argmin(0)
    points = np.arange(len(y))
    return gap[best, points] - scale[best, points]
