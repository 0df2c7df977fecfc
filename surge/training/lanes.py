"""How runs share the devices, decided once for a grid: in which form, and how many at once.

Results are the same to the last bit only in blocks of one shape, so a grid that is resumed keeps
the lanes that it began with. Nothing here depends on timing, or on what is free at the moment.
"""

import json
from collections.abc import Sequence
from typing import NamedTuple

import jax

from surge.tasks import Task
from surge.training.grid import Piece
from surge.training.hardware import backend, parameters

# On CPU a run of more parameters than this fills a core. Runs then take turns (lax.map), as fast as
# side by side (vmap), and each ends by itself.
VMAP_PARAMETERS = 3_000


class Lanes(NamedTuple):
    """The shape of a block of runs.

    Attributes:
      form: how the runs on one device share it, side by side ("vmap") or in turns ("map").
      rates: learning rates on one device.
      seeds: runs of each.
    """

    form: str
    rates: int
    seeds: int

    @property
    def alone(self) -> bool:
        """One run, without any batch axis: even one of length 1 would round differently."""
        return (self.rates, self.seeds) == (1, 1)

    @property
    def side_by_side(self) -> bool:
        return self.form == "vmap" and not self.alone

    def smaller(self) -> "Lanes":
        """About half as many runs, for a program for which memory is short."""
        if self.rates > 1:
            return self._replace(rates=self.rates // 2)
        return self._replace(seeds=self.seeds // 2)

    def to_json(self) -> str:
        """As the files of a sweep keep it."""
        return json.dumps(self._asdict())

    @classmethod
    def from_json(cls, text: str) -> "Lanes":
        """Of what `to_json` wrote."""
        return cls(**json.loads(text))


def fastest_form(task: Task) -> str:
    """ "vmap" or "map"."""
    fills = backend().fills and parameters(task) > VMAP_PARAMETERS
    return "map" if fills else "vmap"


def spread(task: Task, rates: int, seeds: int) -> Lanes:
    """Lanes for so many learning rates on all devices together, each with so many seeds.

    Side by side all of them run at once; in turns a row of seeds is as fast, and no row is a
    filler.
    """
    form = fastest_form(task)
    on_device = -(-rates // jax.local_device_count()) if form == "vmap" else 1
    return Lanes(form, on_device, seeds)


def of_grid(task: Task, pieces: Sequence[Piece]) -> Lanes:
    """Lanes that hold all cells of any one piece of a grid, where they run side by side."""
    rates = max(len(piece.learning_rates) for piece in pieces)
    seeds = max(len(piece.seeds) for piece in pieces)
    return spread(task, rates, seeds)
