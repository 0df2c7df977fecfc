"""From a table of runs to one entry of fit.json: optima, noise scale, laws, peak."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from surge.theory.fit import Comparison, Fit, compare_laws
from surge.theory.noise_scale import fit_noise_scale
from surge.theory.optimum import Optimum, optimal_lr
from surge.theory.peak import find_peak

HALF_INTERVAL = 1.96  # standard errors from the middle of a 95% interval to its end


def fit_entry(rows: Mapping[str, np.ndarray], judged_by: str, **labels: Any) -> dict[str, Any]:
    """Everything that fit.json says of one group of runs.

    Args:
      rows: columns of equal length: batch_size > 0, learning_rate > 0, seed, and value (log of the
        steps to a target, or a loss; lower is better; nan where a run diverged or did not get
        there).
      judged_by: "steps" if the value is log(steps to a target), "loss" if it is a loss at a run's
        end; steps tell a noise scale, a loss does not.
      **labels: put first into the entry, such as optimizer and target_loss.

    Returns:
      Plain JSON types; None where undefined, with a `why` beside it.
    """
    optima = {}
    for size in np.unique(rows["batch_size"]).tolist():
        chosen = rows["batch_size"] == size
        key = int(size) if float(size).is_integer() else size
        optima[key] = optimal_lr(
            *(rows[name][chosen] for name in ("learning_rate", "value", "seed"))
        )
    steps_known = judged_by == "steps"
    inside = {
        size: each for size, each in optima.items() if math.isfinite(each.lr) and not each.at_edge
    }
    size, lr = np.array(list(inside), float), np.array([each.lr for each in inside.values()])
    error = _log_errors(inside.values())
    comparison = compare_laws(size, lr, error)
    left_out = [str(each) for each in optima if each not in inside]
    note = f"batch sizes {', '.join(left_out)} have no optimum inside the grid" if left_out else ""
    peak = find_peak(size, lr, error, comparison)
    entry = dict(labels) | {
        "judged_by": judged_by,
        "optimal_lr": [_optimum(size, each, steps_known) for size, each in optima.items()],
        "noise_scale": _noise_scale(inside, note) if steps_known else _no_noise_scale(),
        "laws": {name: _law(fit, comparison) for name, fit in comparison.fits.items()},
        "best_law": comparison.best,
        "best_law_why": comparison.why,
        "b_peak": peak._asdict() | {"why": _joined(peak.why, note)},
    }
    return _plain(entry)


def _joined(*reasons: str) -> str:
    return "; ".join(filter(None, reasons))


def _log_errors(optima: Iterable[Optimum]) -> np.ndarray:
    """Standard errors of log ε; a factor √2 where the table has too few runs to tell.

    Three seeds tell an error to a third, and an error that came out small by chance would rule the
    fit: half of its square is that of the median error (a moderated variance, Smyth 2004).
    """
    lr, low, high = np.log([(each.lr, each.low, each.high) for each in optima]).reshape(-1, 3).T
    # About the estimate, which a skewed interval may have at one of its ends.
    square = ((lr - low) ** 2 + (high - lr) ** 2) / (2 * HALF_INTERVAL**2)
    known = np.isfinite(square)
    moderated = (square + np.median(square[known])) / 2 if known.any() else square
    return np.sqrt(np.where(known, moderated, (math.log(2) / 2) ** 2))


def _optimum(size: float, each: Optimum, steps_known: bool) -> dict[str, Any]:
    steps = math.exp(each.value) if steps_known else math.nan
    return {
        "batch_size": size,
        "lr": each.lr,
        "low": each.low,
        "high": each.high,
        "at_edge": each.at_edge,
        "steps": steps,
        "examples": steps * size,
        "basins": each.basins,
        "n": each.n,
        "why": each.why,
    }


def _noise_scale(optima: Mapping[float, Optimum], note: str) -> dict[str, Any]:
    steps = np.exp([each.value for each in optima.values()])
    noise = fit_noise_scale(np.array(list(optima), float), steps)
    return noise._asdict() | {"why": _joined(noise.why, note)}


def _no_noise_scale() -> dict[str, Any]:
    nothing = fit_noise_scale(np.zeros(0), np.zeros(0))
    return nothing._asdict() | {
        "why": "judged by loss: only the steps to one target tell a noise scale"
    }


def _law(fit: Fit, comparison: Comparison) -> dict[str, Any]:
    return {
        "params": fit.parameters,
        "intervals": fit.intervals,
        "aic": comparison.aicc[fit.law],
        "held_out_rmse_log": comparison.held_out[fit.law],
        "held_out_se": comparison.held_out_se[fit.law],
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
