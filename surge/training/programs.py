"""The compiled programs of a block: its lanes begin, and go on, together on every device."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.stages import Compiled

from surge.optimizers import make_optimizer
from surge.tasks import Task
from surge.training.arm import make_arm
from surge.training.hardware import backend
from surge.training.lanes import Lanes
from surge.training.rewriting import rewritten
from surge.training.run import Cell, Run, Shared, State, make_advance, make_begin

DEVICES = "device"  # the axis of the devices of this process

# Each device has learning rates of its own; all else of a block is the same on every one.
CELLS = Cell(learning_rate=0, key=None, batch_size=None, eval_steps=None, max_examples=None)


class Programs(NamedTuple):
    """begin and advance of a run, compiled for a block of runs on each device.

    A block is R learning rates and S seeds.

    begin(cells, shared, start) -> runs
    advance(runs, cells, shared, since, until) -> runs

    of cells with learning_rate [device, R], key [S], batch_size [] and eval_steps [evals], and runs
    [device, R, S], which advance takes the memory of.
    """

    begin: Compiled
    advance: Compiled

    def bytes(self) -> int:
        """Memory that a device needs for arguments and temporaries, results not counted."""
        sizes = [program.memory_analysis() for program in self]
        return max(size.temp_size_in_bytes + size.argument_size_in_bytes for size in sizes if size)


def compile_begin(
    task: Task,
    spec: str,
    cells: Cell,
    shared: Shared,
    start: State | None,
    *,
    lanes: Lanes,
    batches: str,
) -> Compiled:
    """`Programs.begin` for arguments like these.

    Args:
      task: what is trained.
      spec: of the optimizer.
      cells: of a block.
      shared: what all runs have in common, as it lies on the devices.
      start: what runs branch from; None is initialisation.
      lanes: the block.
      batches: spec of the arm.
    """
    mapped = begin_on_devices(task, spec, lanes, batches)
    return mapped.lower(cells, shared, start).compile(compiler_options=_options(lanes))


def begin_on_devices(task: Task, spec: str, lanes: Lanes, batches: str = "constant") -> Any:
    """`Programs.begin` before it is compiled."""
    begin = make_begin(task, make_optimizer(spec), make_arm(batches))

    def one(_: None, cell: Cell, shared: Shared, start: State | None) -> Run:
        return begin(cell, shared, start)

    block = _block(one, lanes)

    def begin_block(cells: Cell, shared: Shared, start: State | None) -> Run:
        return block(None, cells, shared, start)

    return jax.pmap(begin_block, in_axes=(CELLS, None, None))


def compile_advance(
    task: Task,
    spec: str,
    begin: Compiled,
    cells: Cell,
    shared: Shared,
    steps: tuple[jax.Array, jax.Array],
    *,
    microbatch_size: int,
    lanes: Lanes,
    batches: str,
) -> Compiled:
    """`Programs.advance` for arguments like these.

    Args:
      task, spec, cells, shared, lanes, batches: those of begin, which the runs come from.
      begin: see there.
      steps: since, until.
      microbatch_size: examples per gradient.
    """
    size = microbatch_size
    mapped = advance_on_devices(task, spec, microbatch_size=size, lanes=lanes, batches=batches)
    runs = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), begin.out_info)
    return mapped.lower(runs, cells, shared, *steps).compile(compiler_options=_options(lanes))


def advance_on_devices(
    task: Task,
    spec: str,
    *,
    microbatch_size: int,
    lanes: Lanes,
    batches: str = "constant",
) -> Any:
    """`Programs.advance` before it is compiled."""
    advance = make_advance(
        task,
        make_optimizer(spec),
        microbatch_size=microbatch_size,
        axis_name=("learning_rate", "seed") if lanes.side_by_side else (),
        arm=make_arm(batches),
        devices=DEVICES if lanes.wide else None,
    )
    block = _block(advance, lanes)
    block = rewritten(block) if backend().rewrites and not lanes.alone else block
    in_axes = (0, CELLS, None, None, None)
    return jax.pmap(block, axis_name=DEVICES, in_axes=in_axes, donate_argnums=0)


def _options(lanes: Lanes) -> dict[str, Any] | None:
    """Of the compiler; one run alone keeps the rounding of a plain loop."""
    options = backend().options
    return None if lanes.alone or options is None else dict(options)


def _block(one: Callable[..., Run], lanes: Lanes) -> Callable[..., Run]:
    """one(run, cell, ...) -> Run, for runs [R, S] (or None) and cells of rates [R] and keys [S]."""

    def block(runs: Run | None, cells: Cell, *rest: Any) -> Run:
        def lane(run: Run | None, rate: jax.Array, key: jax.Array) -> Run:
            return one(run, cells._replace(learning_rate=rate, key=key), *rest)

        def in_turns(row: tuple[Run | None, jax.Array]) -> Run:
            runs, rate = row
            return jax.lax.map(lambda own: lane(own[0], rate, own[1]), (runs, cells.key))

        if lanes.side_by_side:
            row = jax.vmap(lane, (0, None, 0), axis_name="seed")
            both = jax.vmap(row, (0, 0, None), axis_name="learning_rate")
            return both(runs, cells.learning_rate, cells.key)
        return jax.lax.map(in_turns, (runs, cells.learning_rate))

    return block
