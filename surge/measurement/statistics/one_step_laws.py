"""ε_opt(B) of one step by three estimates, the peak of each, and the paper's form through one."""

from typing import Any

import numpy as np
import xarray as xr

from surge.gradients import independent, one_step
from surge.gradients.steps import StepSample
from surge.measurement.point import BOUNDS, Point
from surge.measurement.statistics import statistic
from surge.tasks import count_rows
from surge.theory.comparison import compare_laws
from surge.theory.peak import find_peak

CURVE = ("max_lr", "b_turn", "kappa")  # of the one law through an estimate
SURGE = ("max_lr", "b_noise")
FEWEST = len(CURVE) + 1  # batch sizes with an optimum: through fewer points a curve is arbitrary
INTERVAL = 2 * 1.96  # standard errors between the ends of a 95% interval


@statistic
def one_step_laws(point: Point) -> xr.Dataset:
    """For each optimizer the independent and measured laws, the true optimum, and their peaks."""
    problem = point.problem
    formula = independent.independent_law(point.hessian, point.noise.groups, problem.units)
    # The bend along a direction costs about what a gradient of the evaluation subset does.
    bends = len(problem.units) * problem.directions * count_rows(problem.single.evaluation)
    rows = []
    for label, samples in point.steps.samples.items():
        # The paper's formula is for the sign of the gradient: it has nothing to say of SGD.
        own = formula if problem.optimizers[label].sign_like else None
        row = estimates(samples, problem.batch_sizes, own)
        rows.append(row.assign(measured_examples=problem.unit * (point.steps.examples + bends)))
    return xr.concat(rows, "optimizer").assign_coords(optimizer=list(problem.specs))


def estimates(
    samples: list[StepSample],
    batch_sizes: Any,
    formula: one_step.OneStepLR | None,
) -> xr.Dataset:
    """One optimizer's estimates.

    Args:
      samples: of its steps at each batch size.
      batch_sizes: B [b], in examples.
      formula: the independent law, where it is stated for this optimizer.
    """
    measured = one_step.measured_law(samples)
    oracle = one_step.one_step_oracle(samples)
    laws = {"measured": measured, "oracle": oracle}
    if formula is not None:
        laws["independent"] = formula
    nothing = np.full((len(batch_sizes), len(BOUNDS)), np.nan)
    rates = {f"{name}_lr": _interval(law) for name, law in laws.items()}
    rates.setdefault("independent_lr", nothing)
    values = {name: (("batch_size", "bound"), rate) for name, rate in rates.items()}
    values |= {f"{name}_why": ("batch_size", laws[name].why) for name in ("measured", "oracle")}
    return xr.Dataset(
        values
        | _course("measured", measured, batch_sizes)
        | _course("oracle", oracle, batch_sizes)
        | _surge(samples, batch_sizes, formula is not None),
        coords={
            "batch_size": list(batch_sizes),
            "bound": list(BOUNDS),
            "parameter": list(CURVE),
            "surge_parameter": list(SURGE),
        },
    )


def _interval(law: one_step.OneStepLR) -> np.ndarray:
    return np.stack([law.lr, law.low, law.high], -1)


def _course(name: str, law: one_step.OneStepLR, batch_sizes: Any) -> dict[str, Any]:
    """The one law through an estimate's optima, and their peak."""
    known = np.isfinite(law.lr) & (law.low > 0) & np.isfinite(law.high)
    sizes = np.asarray(batch_sizes, float)[known]
    lr = law.lr[known]
    error = np.log(law.high[known] / law.low[known]) / INTERVAL
    comparison = compare_laws(sizes, lr, error)
    peak = find_peak(sizes, lr, error, comparison=comparison)
    curve = dict.fromkeys(CURVE, np.nan)
    if len(sizes) >= FEWEST:
        curve = comparison.fits["one_law"].parameters
    return {
        f"{name}_curve": ("parameter", [curve[parameter] for parameter in CURVE]),
        f"{name}_peak": ("bound", np.array([peak.value, peak.low, peak.high], float)),
        f"{name}_peak_why": ((), peak.why),
    }


def _surge(samples: list[StepSample], batch_sizes: Any, stated: bool) -> dict[str, Any]:
    """The paper's small-batch form with its coefficients measured."""
    values = np.full((len(SURGE), len(BOUNDS)), np.nan)
    why = "the form is stated for the sign of the gradient and for Adam"
    if stated:
        surge = one_step.measured_surge(samples, batch_sizes)
        values = np.stack([surge.max_lr, surge.b_noise])
        why = surge.why
    return {
        "measured_surge": (("surge_parameter", "bound"), values),
        "measured_surge_why": ((), why),
    }
