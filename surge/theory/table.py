"""From a table of runs to one entry of fit.json: optima, noise scale, laws, peak."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from surge.theory.fit import Comparison, Fit, compare_laws, find_peak, fit_noise_scale
from surge.theory.optimum import OptimalLR, optimal_lr

HALF_INTERVAL = 1.96  # standard errors from the middle of a 95% interval to its end


def fit_table(rows: Mapping[str, np.ndarray], judged_by: str, **labels: Any) -> dict[str, Any]:
    """Everything that fit.json says of one group of runs.

    Args:
      rows: columns of equal length: batch_size, learning_rate, seed, value (log of the steps to a target, or a loss;
        lower is better; nan where a run diverged or did not get there) and steps (nan where not known).
      judged_by: "steps" if the value is log(steps to a target), "loss" if it is a loss at a run's end; steps
        tell a noise scale, a loss does not.
      **labels: put first into the entry, such as optimizer and target_loss.

    Returns:
      Plain JSON types; None where undefined, with a `why` beside it.
    """
    sizes = np.unique(rows["batch_size"])
    optima = {}
    for size in sizes:
        chosen = rows["batch_size"] == size
        optima[int(size)] = optimal_lr(*(rows[name][chosen] for name in ("learning_rate", "value", "seed")))
    steps_known = judged_by == "steps"
    inside = {size: each for size, each in optima.items() if math.isfinite(each.lr) and not each.at_edge}
    size, lr = np.array(list(inside), float), np.array([each.lr for each in inside.values()])
    error = np.array([_log_error(each) for each in inside.values()])
    comparison = compare_laws(size, lr, error)
    left_out = [str(each) for each in optima if each not in inside]
    note = f"; batch sizes {', '.join(left_out)} have no optimum inside the grid" if left_out else ""
    peak = find_peak(size, lr, error, comparison)
    entry = dict(labels) | {
        "judged_by": judged_by,
        "optimal_lr": [_optimum(size, each, steps_known) for size, each in optima.items()],
        "noise_scale": _noise_scale(optima, steps_known),
        "laws": {name: _law(fit, comparison) for name, fit in comparison.fits.items()},
        "best_law": comparison.best,
        "best_law_why": comparison.why,
        "b_peak": peak._asdict() | {"why": peak.why + note},
    }
    return _plain(entry)


def _log_error(optimum: OptimalLR) -> float:
    """Standard error of log ε; a factor √2 where the table has too few runs to tell."""
    width = math.log(optimum.high / optimum.low) if optimum.low > 0 else math.nan
    return width / (2 * HALF_INTERVAL) if math.isfinite(width) else math.log(2) / 2


def _optimum(size: int, each: OptimalLR, steps_known: bool) -> dict[str, Any]:
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


def _noise_scale(optima: Mapping[int, OptimalLR], steps_known: bool) -> dict[str, Any]:
    reached = {size: math.exp(each.value) for size, each in optima.items() if steps_known and math.isfinite(each.lr)}
    noise = fit_noise_scale(np.array(list(reached), float), np.array(list(reached.values())))
    why = noise.why if steps_known else "judged by loss: the table holds no steps to a target"
    return noise._asdict() | {"why": why}


def _law(fit: Fit, comparison: Comparison) -> dict[str, Any]:
    return {
        "params": fit.parameters,
        "intervals": fit.intervals,
        "aic": comparison.aicc[fit.law],
        "held_out_rmse_log": comparison.held_out[fit.law],
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
