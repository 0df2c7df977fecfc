"""Everything that a workdir holds, as the page is made of it."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import xarray as xr


class Move(NamedTuple):
    """A batch size to go to from one whose best rate is known.

    Attributes:
      optimizer: its label.
      from_batch_size, from_lr: where its rate is known.
      to_batch_size: where it is asked for.
      lr: value, low and high of the rate there; nan where nothing tells it.
      why: the reason then.
      rules: rule of thumb -> the rate that it would give.
    """

    optimizer: str
    from_batch_size: float
    from_lr: float
    to_batch_size: float
    lr: tuple[float, float, float]
    why: str
    rules: dict[str, float]


class Findings(NamedTuple):
    """What a workdir holds.

    Attributes:
      entries: of fit.json, none where there is no such file.
      sweep: all pieces in one array, if there are any.
      measured: measure.nc, if there is one.
      moves: what the fits say of other batch sizes.
      about: what else fit.json says: pieces that are missing, remarks on how a table was read.
      date: of the newest of these files, like 2026-01-31; "" where there is none.
    """

    entries: list[dict[str, Any]]
    sweep: xr.Dataset | None
    measured: xr.Dataset | None
    moves: Sequence[Move] = ()
    about: Mapping[str, Any] = MappingProxyType({})
    date: str = ""

    @property
    def attributes(self) -> Mapping[str, Any]:
        """Where the numbers come from: config, versions, devices."""
        datasets = (dataset for dataset in (self.sweep, self.measured) if dataset is not None)
        return next((dataset.attrs for dataset in datasets), {})

    def _repr_html_(self) -> str:
        """The answer of the page, where a notebook shows it."""
        from surge.report.answer import answer  # which is made of findings
        from surge.report.markup import fragment

        return fragment(answer(self).blocks)
