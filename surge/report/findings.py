"""Everything that a workdir holds, as the page is made of it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import xarray as xr


class Findings(NamedTuple):
    """What a workdir holds.

    Attributes:
      entries: of fit.json, none where there is no such file.
      sweep: all pieces in one array, if there are any.
      measured: measure.nc, if there is one.
    """

    entries: list[dict[str, Any]]
    sweep: xr.Dataset | None
    measured: xr.Dataset | None

    @property
    def attributes(self) -> Mapping[str, Any]:
        """Where the numbers come from: config, versions, devices."""
        datasets = (dataset for dataset in (self.sweep, self.measured) if dataset is not None)
        return next((dataset.attrs for dataset in datasets), {})
