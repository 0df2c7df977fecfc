"""Statistics at a checkpoint: each file of this folder enters its own by lying in it.

A statistic is a function Point -> Dataset. What it may find at a point is in
`surge.measurement.point`; dimensions that others have too are checkpoint (added later), optimizer,
batch_size, layer and bound (value, low, high).
"""

import importlib
import pkgutil
from collections.abc import Callable

import xarray as xr

from surge.measurement.point import Point

Statistic = Callable[[Point], xr.Dataset]
STATISTICS: dict[str, Statistic] = {}


def statistic(function: Statistic) -> Statistic:
    """Makes a function one of the statistics that are taken at every checkpoint."""
    STATISTICS[function.__name__] = function
    return function


for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
