"""Where a sweep's pieces run: here, shared with other processes, or on the workers of Ray."""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
from absl import logging

from surge.config import ConfigError, Experiment
from surge.tasks import Task, make_task
from surge.theory.objective import needs_halves
from surge.training import hardware, workers
from surge.training.adaptive import few_lanes, run_adaptive
from surge.training.engine import Engine
from surge.training.grid import Piece, PieceResult
from surge.training.lanes import Lanes, of_grid
from surge.training.precision import with_master_weights
from surge.training.protocol import Protocol
from surge.workdir import claim, sweeps

Part = TypeVar("Part")
Done = Mapping[Piece, tuple[Piece, PieceResult]]


class Launch(NamedTuple):
    """How a sweep is spread over processes.

    Attributes:
      launcher: "local" or "ray".
      ray_address: of a running cluster; "" starts one on this machine.
      shard: (i, n): this is process i of n that share a workdir; None: it is alone.
      cells: how runs lie on devices, see `surge.training.lanes.spread`.
    """

    launcher: str = "local"
    ray_address: str = ""
    shard: tuple[int, int] | None = None
    cells: str = "auto"


HERE = Launch()  # one process


def read_shard(text: str) -> tuple[int, int] | None:
    """(i, n) of "i/n", None of "".

    Raises:
      ConfigError: it is no such text, or i is not below n.
    """
    if not text:
        return None
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or int(match[1]) >= int(match[2]):
        raise ConfigError(
            f"--shard={text} must read i/n, i from 0 to n - 1, like 0/8 for the first of eight "
            "processes; in a Slurm array --shard=$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"
        )
    return int(match[1]), int(match[2])


def ours_first(parts: Sequence[Part], shard: tuple[int, int]) -> list[Part]:
    """Every n-th part, then the others: a process without work helps."""
    first, every = shard
    ours = list(parts[first::every])
    return ours + [part for part in parts if part not in ours]


@contextlib.contextmanager
def mine(workdir: Path, piece: Piece) -> Iterator[bool]:
    """Whether a piece is still to be run, and by nobody else while the block lasts."""
    path = sweeps.sweep_path(workdir, piece.optimizer, piece.batch_size)
    with claim.claimed(workdir, path.stem) as ours:
        yield ours and not path.exists()


class Ran(NamedTuple):
    """A piece with the rates that were run, its result, and what its file says of how."""

    piece: Piece
    result: PieceResult
    about: dict[str, str]


def about(lanes: Lanes) -> dict[str, str]:
    """What a file of this process says of the block and the devices of its runs."""
    return {"lanes": lanes.to_json(), "devices": hardware.describe()}


class Job(NamedTuple):
    """What a worker is given: pieces that are run one after another, with what they rest on."""

    experiment: Experiment
    pieces: list[Piece]
    lanes: Lanes
    done: Done


def choose_lanes(
    experiment: Experiment, task: Task, pieces: Sequence[Piece], cells: str = "auto"
) -> Lanes:
    """Those that a sweep begins with on the devices of this process."""
    choose = few_lanes if experiment.grid == "adaptive" else of_grid
    lanes = choose(task, pieces, cells)
    devices = jax.local_device_count()
    if lanes.wide:
        logging.info("sweep: one run at a time, on all %d devices", devices)
    else:
        block = lanes.at_once(devices), lanes.seeds, devices
        logging.info("sweep: blocks of %d learning rates x %d seeds on %d devices", *block)
    return lanes


def on_ray(
    experiment: Experiment, pieces: Sequence[Piece], lanes: Lanes | None, done: Done, launch: Launch
) -> Iterator[Ran]:
    """Runs what is not done on the workers of a cluster, with the results that it would have here.

    A worker that is lost is replaced, and its pieces begin anew.

    Args:
      experiment: whose pieces they are.
      pieces: of the whole grid.
      lanes: those that the sweep began with; None: a worker's devices choose.
      done: pieces with their results.
      launch: where.
    """
    with workers.Cluster(launch.ray_address) as cluster:
        if lanes is None:
            [lanes] = cluster.map(_lanes_there, [(experiment, list(pieces), launch.cells)])
        jobs = [Job(experiment, *part) for part in _parts(experiment, pieces, lanes, done)]
        for results in cluster.map(_work, jobs):
            yield from results


def _parts(
    experiment: Experiment, pieces: Sequence[Piece], lanes: Lanes, done: Done
) -> Iterator[tuple[list[Piece], Lanes, Done]]:
    """What can run at the same time: each piece, or where one guides the next an optimizer's."""
    if experiment.grid != "adaptive":
        yield from (([piece], lanes, {}) for piece in pieces if piece not in done)
        return
    for optimizer in dict.fromkeys(piece.optimizer for piece in pieces):
        its = [piece for piece in pieces if piece.optimizer == optimizer]
        known = {piece: done[piece] for piece in its if piece in done}
        if len(known) < len(its):
            yield its, lanes, known


def _lanes_there(asked: tuple[Experiment, list[Piece], str]) -> Lanes:
    experiment, pieces, cells = asked
    hardware.set_matmul_precision(experiment.matmul_precision)
    task = _task(experiment)
    return choose_lanes(experiment, task, pieces, cells)


def _work(job: Job) -> list[Ran]:
    """In a worker: the results of a job."""
    experiment = job.experiment
    hardware.set_matmul_precision(experiment.matmul_precision)
    if experiment.grid == "adaptive":
        task = _task(experiment)
        results = adaptive(experiment, task, job.pieces, job.lanes, job.done)
    else:
        engine = _engine(_Kept(json.dumps(experiment.plain(), sort_keys=True), job))
        results = ((piece, engine.run(piece)) for piece in job.pieces)
    return [Ran(piece, result, about(job.lanes)) for piece, result in results]


class _Kept(NamedTuple):
    """A job by the experiment and the lanes that it has in common with others."""

    name: str
    job: Job

    def __hash__(self) -> int:
        return hash((self.name, self.job.lanes))

    def __eq__(self, other: object) -> bool:
        same = isinstance(other, _Kept)
        return same and (self.name, self.job.lanes) == (other.name, other.job.lanes)


@lru_cache(1)  # a worker's next piece has the programs of the one before
def _engine(kept: _Kept) -> Engine:
    experiment = kept.job.experiment
    task = _task(experiment)
    key = jax.random.key(experiment.seed)
    protocol = protocol_of(experiment)
    return Engine(task, key, kept.job.lanes, stop_loss=experiment.stop_loss, protocol=protocol)


def protocol_of(experiment: Experiment, params: Any = None) -> Protocol:
    """What an experiment's runs have in common; `params` is what they branch from, if anything."""
    halves = any(map(needs_halves, experiment.objectives))
    return Protocol(params, halves, experiment.further_steps)


def adaptive(
    experiment: Experiment,
    task: Task,
    pieces: Sequence[Piece],
    lanes: Lanes,
    done: Done,
    params: Any = None,
) -> Iterator[tuple[Piece, PieceResult]]:
    """`run_adaptive` for an experiment's pieces."""
    return run_adaptive(
        task,
        pieces,
        jax.random.key(experiment.seed),
        ratio=experiment.learning_rate_ratio,
        objectives=experiment.objectives,
        stop_loss=experiment.stop_loss,
        done=done,
        lanes=lanes,
        protocol=protocol_of(experiment, params),
    )


def _task(experiment: Experiment) -> Task:
    """What the workers train."""
    task = make_task(experiment.task, **experiment.task_args)
    return with_master_weights(task) if experiment.master_weights == "float32" else task
