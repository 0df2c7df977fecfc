"""From a table of runs to one entry of fit.json: optima, noise scale, laws, peak."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from surge.theory.basin import Basins, fit_basins
from surge.theory.comparison import SEEN, Comparison, compare_laws
from surge.theory.fit import Fit
from surge.theory.noise_scale import fit_noise_scale
from surge.theory.optimum import HALF_INTERVAL, Optimum
from surge.theory.peak import find_peak
from surge.theory.plateau import find_plateau
from surge.theory.unimodal import p_values
from surge.workdir.files import finite_or_none

UNKNOWN_ERROR = math.log(2) / 2  # of log ε where too few runs tell it: a factor √2
TUNED_ERROR = math.log(2) / math.sqrt(12)  # of one that was tuned on a grid of ratio 2


def fit_entry(rows: Mapping[str, np.ndarray], judged_by: str, **labels: Any) -> dict[str, Any]:
    """Everything that fit.json says of one group of runs.

    Args:
      rows: columns of equal length: batch_size > 0, learning_rate > 0, seed, and value (log of the
        steps to a target, or a loss; lower is better; nan or inf where a run diverged or did not
        get there).
      judged_by: `judged_by` of the objective that the values are of; "steps" tell a noise scale.
      **labels: put first into the entry, such as optimizer and target_loss.

    Returns:
      Plain JSON types; None where undefined, with a `why` beside it.
    """
    basins = _optima(rows)
    optima = basins.optima
    inside = {size: optimum for size, optimum in optima.items() if _is_inside(optimum)}
    size, lr, error, bound = _columns(optima)
    comparison = compare_laws(size, lr, error, bound)
    peak = find_peak(size, lr, error, comparison, bound)
    plateau = find_plateau(size, lr, error, bound)
    left_out = [_whole(size) for size in optima if size not in inside]
    note = ""
    if left_out:
        note = f"no optimum inside the grid at B = {', '.join(map(str, left_out))}"
    steps_known = judged_by == "steps"
    points = [_optimum(size, optimum, steps_known) for size, optimum in optima.items()]
    entry = dict(labels) | {
        "judged_by": judged_by,
        "optimal_lr": points,
        "basins": [_basin(rows, size, basins.curves.get(size)) for size in optima],
        "noise_scale": _noise_scale(inside, judged_by, note),
        "laws": {
            name: _law(fit, comparison, basins.common) for name, fit in comparison.fits.items()
        },
        "remaining": list(comparison.remaining),
        "best_law": comparison.best,
        "best_law_why": comparison.why,
        "b_peak": peak._asdict() | {"why": _joined(peak.why, note)},
        "p_fall": peak.p_fall,
        "plateau": plateau._asdict(),
    }
    return finite_or_none(entry)


def is_decided(rows: Mapping[str, np.ndarray]) -> bool:
    """Whether a fall of ε_opt(B) is seen, or a plateau; `rows` as for `fit_entry`."""
    size, lr, error, bound = _columns(_optima(rows).optima)
    if not len(size):
        return False
    order = np.argsort(size)
    falls = p_values(np.log(lr)[order], error[order], bound[order])[-1] <= SEEN
    return bool(falls) or find_plateau(size, lr, error, bound).decided


def _optima(rows: Mapping[str, np.ndarray]) -> Basins:
    """The optimum of each batch size."""
    if _is_tuned(rows):
        return Basins(_as_tuned(rows), math.nan, math.nan, 0.0, False, "", {})
    names = ("batch_size", "learning_rate", "value", "seed")
    return fit_basins(*(rows[name] for name in names))


def _columns(
    optima: Mapping[float, Optimum],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Batch size, ε_opt, error of its log, and bound of what laws are fitted to [n]."""
    known = _informative(optima)
    size = np.array(list(known), float)
    lr = np.array([optimum.lr for optimum in known.values()])
    error = np.array([_error(optimum) for optimum in known.values()])
    bound = np.array([optimum.bound for optimum in known.values()], int)
    return size, lr, error, bound


def _is_tuned(rows: Mapping[str, np.ndarray]) -> bool:
    """Whether every batch size has one rate, which somebody has tuned."""
    cells = set(zip(rows["batch_size"].tolist(), rows["learning_rate"].tolist(), strict=True))
    return len(cells) == len(np.unique(rows["batch_size"]))


def _as_tuned(rows: Mapping[str, np.ndarray]) -> dict[float, Optimum]:
    """The one rate of each batch size as its optimum."""
    factor = math.exp(HALF_INTERVAL * TUNED_ERROR)
    why = "taken as tuned, on a grid of ratio 2: its error is assumed"
    optima = {}
    for size in np.unique(rows["batch_size"]).tolist():
        chosen = rows["batch_size"] == size
        lr = float(rows["learning_rate"][chosen][0])
        value = rows["value"][chosen]
        finite = value[np.isfinite(value)]
        mean = float(finite.mean()) if len(finite) else math.nan
        ends = (lr / factor, lr * factor)
        optima[size] = Optimum(lr, *ends, TUNED_ERROR, 0, 1, mean, len(value), why, TUNED_ERROR)
    return optima


def _is_inside(optimum: Optimum) -> bool:
    return math.isfinite(optimum.lr) and not optimum.bound


def _informative(optima: Mapping[float, Optimum]) -> dict[float, Optimum]:
    """The optima that laws are fitted to: those with an error, or all where none has one.

    Where no basin stands out of the noise the rate that is reported is only the best of many, and
    to give it an error that others have would make a rise or a fall of nothing.
    """
    finite = {size: optimum for size, optimum in optima.items() if math.isfinite(optimum.lr)}
    told = {size: optimum for size, optimum in finite.items() if math.isfinite(optimum.error)}
    return told or finite


def _error(optimum: Optimum) -> float:
    """Standard error of log ε that a law is fitted with.

    What all batch sizes err by together moves a law's level and nothing else of it; a bound is as
    uncertain as it says.
    """
    if optimum.bound:
        error = max(np.nan_to_num(optimum.error), np.nan_to_num(optimum.relative_error))
        return error or UNKNOWN_ERROR
    if not math.isfinite(optimum.relative_error):
        return UNKNOWN_ERROR
    return optimum.relative_error


def _joined(*reasons: str) -> str:
    return "; ".join(filter(None, reasons))


def _whole(size: float) -> float:
    return int(size) if float(size).is_integer() else size


def _optimum(size: float, optimum: Optimum, steps_known: bool) -> dict[str, Any]:
    steps = math.exp(optimum.value) if steps_known else math.nan
    return {
        "batch_size": _whole(size),
        "lr": optimum.lr,
        "low": optimum.low,
        "high": optimum.high,
        "error": optimum.error,
        "bound": optimum.bound,
        "at_edge": optimum.at_edge,
        "steps": steps,
        "examples": steps * size,
        "basins": optimum.basins,
        "n": optimum.n,
        "why": optimum.why,
    }


def _basin(
    rows: Mapping[str, np.ndarray], size: float, curve: tuple[np.ndarray, np.ndarray] | None
) -> dict[str, Any]:
    """What was seen at each rate of one batch size, and the basin that was fitted to it."""
    own = rows["batch_size"] == size
    rates, cell = np.unique(rows["learning_rate"][own], return_inverse=True)
    value = rows["value"][own]
    known = np.isfinite(value)
    runs = np.bincount(cell)
    finished = np.bincount(cell, known)
    total = np.bincount(cell, np.where(known, value, 0.0))
    with np.errstate(invalid="ignore"):  # a rate at which every run failed has no mean
        mean = total / finished
    return {
        "batch_size": _whole(size),
        "learning_rate": rates.tolist(),
        "value": _short(mean),
        "failed": (runs - finished).astype(int).tolist(),
        "curve": None if curve is None else [_short(part) for part in curve],
    }


def _short(values: np.ndarray) -> list[float]:
    """Six digits of each, which is more than a picture shows."""
    return [float(f"{value:.6g}") for value in values]


def _noise_scale(optima: Mapping[float, Optimum], judged_by: str, note: str) -> dict[str, Any]:
    """B_noise of the steps at the optima; nothing where runs are judged by something else."""
    if judged_by != "steps":
        nothing = fit_noise_scale(np.zeros(0), np.zeros(0))
        why = f"judged by {judged_by}: only the steps to one target tell a noise scale"
        return nothing._asdict() | {"why": why}
    steps = np.exp([optimum.value for optimum in optima.values()])
    noise = fit_noise_scale(np.array(list(optima), float), steps)
    return noise._asdict() | {"why": _joined(noise.why, note)}


def _widened(ends: tuple[float, float], middle: float, error: float) -> tuple[float, float]:
    """An interval with one more, independent error of its logarithm; open ends stay open."""
    more = HALF_INTERVAL * error
    low, high = ends
    with np.errstate(over="ignore"):  # beyond all numbers an end is open
        if low > 0:
            low = middle / float(np.exp(math.hypot(math.log(middle / low), more)))
        if math.isfinite(high):
            high = middle * float(np.exp(math.hypot(math.log(high / middle), more)))
    return low, high


def _law(fit: Fit, comparison: Comparison, common: float) -> dict[str, Any]:
    score = comparison.score[fit.law]
    level = _widened(fit.intervals["max_lr"], fit.parameters["max_lr"], common)
    return {
        "params": fit.parameters,
        "intervals": fit.intervals | {"max_lr": level},
        "derived": fit.derived,
        "open": fit.opened,
        "aic": score,
        "score": score,
        "weight": comparison.weights[fit.law],
        "held_out_rmse_log": comparison.held_out[fit.law],
        "held_out_se": comparison.held_out_se[fit.law],
    }
