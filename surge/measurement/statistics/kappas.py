"""κ of each optimizer, and the surge that it lets expect: see `surge.theory.kappa`."""

import numpy as np
import xarray as xr

from surge.gradients.kappa import Kappa, of_optimizer
from surge.measurement.point import BOUNDS, Point
from surge.measurement.statistics import statistic
from surge.theory.kappa import READINGS


@statistic
def kappas(point: Point) -> xr.Dataset:
    """kappa, peak_over_plateau and expected_b_peak, in both readings of momentum.

    Beside them kappa_turn, the batch size at which a step is signal and noise alike, and the κ of
    each layer stepped in alone.
    """
    problem = point.problem
    labels = list(problem.specs)
    results = [_of_optimizer(point, label) for label in labels]
    turns = np.stack([result.turn for result in results])
    peaks = np.stack([result.b_peak for result in results])
    return xr.Dataset(
        {
            "kappa": (("optimizer", "reading", "bound"), np.stack([k.kappa for k in results])),
            "kappa_turn": (("optimizer", "bound"), problem.unit * turns),
            "peak_over_plateau": (
                ("optimizer", "reading", "bound"),
                np.stack([result.peak_over_plateau for result in results]),
            ),
            "expected_b_peak": (("optimizer", "reading", "bound"), problem.unit * peaks),
            "layer_kappa": (
                ("optimizer", "layer", "bound"),
                np.stack([result.layers for result in results]),
            ),
            "kappa_why": ("optimizer", [result.why for result in results]),
        },
        coords={
            "optimizer": labels,
            "reading": list(READINGS),
            "layer": point.layers.names,
            "bound": list(BOUNDS),
        },
    )


def _of_optimizer(point: Point, label: str) -> Kappa:
    problem = point.problem
    scale = point.noise.b_simple.value / problem.unit
    samples = point.steps.samples[label]
    return of_optimizer(samples, problem.units, problem.optimizers[label], scale)
