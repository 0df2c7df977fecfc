"""How runs share the devices, decided once for a grid: in which form, and how many at once.

Results are the same to the last bit only in blocks of one shape, so a grid that is resumed keeps
the lanes that it began with. Nothing here depends on timing, or on what is free at the moment.
"""

import json
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from surge.gradients.products import plan
from surge.tasks import Task
from surge.training.grid import Piece
from surge.training.hardware import (
    MEMORY_SHARE,
    backend,
    device_bytes,
    example_shapes,
    parameters,
    size_classes,
)

# On CPU a run of more parameters than this fills a core. Runs then take turns (lax.map), as fast as
# side by side (vmap), and each ends by itself.
VMAP_PARAMETERS = 3_000


class Lanes(NamedTuple):
    """The shape of a block of runs.

    Attributes:
      form: how the runs on one device share it, side by side ("vmap") or in turns ("map"); "wide":
        in turns, each of them on all devices, which share its batches.
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
    def wide(self) -> bool:
        return self.form == "wide"

    @property
    def side_by_side(self) -> bool:
        return self.form == "vmap" and not self.alone

    def at_once(self, devices: int) -> int:
        """Learning rates of a block on all devices together."""
        return self.rates if self.wide else self.rates * devices

    def deal(self, rates: np.ndarray, devices: int) -> np.ndarray:
        """Learning rates of a block as [device, R]; neighbours cost alike and are dealt apart."""
        return np.tile(rates, (devices, 1)) if self.wide else rates.reshape(-1, devices).T

    def gather(self, array: np.ndarray) -> np.ndarray:
        """[device, R, ...] as [rates of the block, ...] in the order before dealing."""
        if self.wide:
            return array[0]
        return np.swapaxes(array, 0, 1).reshape(-1, *array.shape[2:])

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


WIDE = Lanes("wide", 1, 1)


def fastest_form(task: Task) -> str:
    """ "vmap" or "map"."""
    fills = backend().fills and parameters(task) > VMAP_PARAMETERS
    return "map" if fills else "vmap"


def spread(task: Task, rates: int, seeds: int, cells: str = "auto") -> Lanes:
    """Lanes for so many learning rates on all devices together, each with so many seeds.

    Side by side all of them run at once; in turns a row of seeds is as fast, and no row is a
    filler. Runs that are wide go one by one.

    Args:
      task: what is trained.
      rates: learning rates that a piece has.
      seeds: of each.
      cells: "narrow", "wide", or "auto". On accelerators that is wide where a piece has fewer
        learning rates than there are devices, or where a device has room for no second run.
    """
    devices = jax.local_device_count()
    if cells == "wide":
        return WIDE
    form = fastest_form(task)
    on_device = -(-rates // devices) if form == "vmap" else 1
    lanes = Lanes(form, on_device, seeds)
    if jax.default_backend() == "cpu":
        return lanes
    room = MEMORY_SHARE * device_bytes() / run_bytes(task)
    if cells == "auto" and devices > 1 and (rates < devices or room < 2):
        return WIDE
    while lanes.rates * lanes.seeds > room and not lanes.alone:
        lanes = lanes.smaller()
    return lanes


def run_bytes(task: Task) -> float:
    """About what a run holds on an accelerator: five float32 copies of parameters, activations.

    The copies are parameters, two moments, and gradients of a batch and a micro-batch.
    """
    shapes = example_shapes(task)
    return 20 * parameters(task) + size_classes(task)[0] * plan(task.loss, *shapes).activations


def of_grid(task: Task, pieces: Sequence[Piece], cells: str = "auto") -> Lanes:
    """Lanes that hold all cells of any one piece of a grid, where they run side by side."""
    rates = max(len(piece.learning_rates) for piece in pieces)
    seeds = max(len(piece.seeds) for piece in pieces)
    return spread(task, rates, seeds, cells)
