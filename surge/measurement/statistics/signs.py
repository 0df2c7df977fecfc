"""What the closed forms of sign descent need of a checkpoint."""

import xarray as xr

from surge.gradients.independent import sign_summary
from surge.measurement.point import Point
from surge.measurement.statistics import statistic


@statistic
def signs(point: Point) -> xr.Dataset:
    """The fields of `SignSummary`, in examples, and r = D/O."""
    unit = point.problem.unit
    summary = sign_summary(point.hessian, point.noise.groups)
    summary = summary._replace(snr=summary.snr / unit**0.5, b_noise=summary.b_noise * unit)
    return xr.Dataset(summary._asdict() | {"r": summary.r})
