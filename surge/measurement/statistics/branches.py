"""ε_opt(B; K): which learning rate is best K steps after the checkpoint."""

from typing import Any

import numpy as np
import xarray as xr

from surge.measurement.point import BOUNDS, Point
from surge.measurement.statistics import statistic


@statistic
def branches(point: Point) -> xr.Dataset:
    """Of each optimizer, nan where the budget has no room or the optimum is on the grid's edge."""
    labels = list(point.problem.specs)
    rows = [_of_optimizer(point, label) for label in labels]
    return xr.concat(rows, "optimizer").assign_coords(optimizer=labels)


def _of_optimizer(point: Point, label: str) -> xr.Dataset:
    problem = point.problem
    horizons = tuple(problem.horizons)
    values = np.full((len(problem.batch_sizes), len(horizons), len(BOUNDS)), np.nan)
    examples = 0
    centres = zip(problem.batch_sizes, point.oracle[label].lr, strict=True)
    for index, (size, centre) in enumerate(centres):
        branch = problem.branch(problem.specs[label], point.params, size, float(centre), horizons)
        examples += branch.examples
        for position, horizon in enumerate(horizons):
            values[index, position] = _bounds(branch.optima.get(horizon))
    return xr.Dataset(
        {
            "branch_lr": (("batch_size", "horizon", "bound"), values),
            "branch_examples": ((), examples),
        },
        coords={
            "batch_size": list(problem.batch_sizes),
            "horizon": list(horizons),
            "bound": list(BOUNDS),
        },
    )


def _bounds(optimum: Any) -> tuple[float, float, float] | float:
    if optimum is None or optimum.bound:
        return np.nan
    return optimum.lr, optimum.low, optimum.high
