"""The sweep stage: a grid of runs, then more seeds and batch sizes until it can tell."""

import importlib.metadata
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tqdm
from absl import logging

from surge.config import ConfigError, Experiment
from surge.entries import is_decided
from surge.launch import (
    HERE,
    Launch,
    Ran,
    about,
    adaptive,
    choose_lanes,
    mine,
    on_ray,
    ours_first,
    protocol_of,
)
from surge.measurement.stage import training_of
from surge.measurement.states import restore, saved_states
from surge.tasks import Task, count_rows, draw_from_arrays
from surge.training import grid, hardware, rounds
from surge.training.adaptive import few_lanes
from surge.training.arm import make_arm
from surge.training.dense import run_pieces
from surge.training.engine import Engine
from surge.training.grid import Piece, PieceResult
from surge.training.lanes import Lanes
from surge.training.protocol import branched
from surge.workdir import claim, files, origin, sweeps
from surge.workdir.files import ResultError

FARTHER = 4  # times the largest batch size is the next one

Done = Mapping[Piece, tuple[Piece, PieceResult]]


def sweep(experiment: Experiment, task: Task, workdir: Path, launch: Launch = HERE) -> None:
    """Runs the grid, and what precision and reach ask for beyond it; what is stored is kept.

    Raises:
      ConfigError: runs are to branch from a state, on workers that do not have it.
      ResultError: a stored piece cannot be read, or the measured run does not get to the state that
        runs are to branch from.
      MemoryError: one run alone does not fit.
    """
    if experiment.branch_loss and launch.launcher != "local":
        raise ConfigError("config.branch_loss needs a state that only --launcher=local has")
    params = _origin(experiment, task, workdir)
    _run_grid(experiment, plan(experiment, task), task, workdir, params, launch)
    if experiment.precision <= 0 and not experiment.reach:
        return
    if launch.shard is not None:
        logging.warning(
            "sweep: config.precision and config.reach are left to one process: give the same "
            "command once more without --shard"
        )
        return
    _add_seeds(experiment, task, workdir, params)
    while size := _next_size(experiment, task, workdir):
        labels = _undecided(experiment, workdir)
        if not labels:
            return
        logging.info("sweep: on to batch size %d for %s", size, ", ".join(labels))
        sizes = (*_sizes(workdir), size)
        larger = plan(replace(experiment, batch_sizes=sizes), task)
        known = [piece for piece in larger if _path(workdir, piece).exists()]
        new = [piece for piece in larger if piece.batch_size == size and piece.optimizer in labels]
        _run_grid(experiment, [*known, *new], task, workdir, params, launch)
        _add_seeds(experiment, task, workdir, params)


def plan(experiment: Experiment, task: Task | None = None) -> list[Piece]:
    """The pieces of an experiment's grid, largest batch size first within an optimizer.

    Args:
      experiment: whose grid it is.
      task: what is trained; without it runs that branch from a state are those from initialisation.
    """
    pieces = grid.plan(
        optimizers={
            label: (optimizer.spec, optimizer.learning_rates)
            for label, optimizer in experiment.optimizers.items()
        },
        learning_rate_ratio=experiment.learning_rate_ratio,
        batch_sizes=experiment.batch_sizes,
        seeds=experiment.seeds,
        max_steps=experiment.max_steps,
        max_examples=experiment.max_examples,
        evals=experiment.evals,
        batches={
            label: optimizer.batches
            for label, optimizer in experiment.optimizers.items()
            if make_arm(optimizer.batches)
        },
    )
    if task is None or not experiment.branch_loss:
        return pieces
    params = jax.eval_shape(task.init, jax.random.key(0))
    return [branched(piece, params) for piece in pieces]


def missing(experiment: Experiment, workdir: Path) -> list[str]:
    """Names of the grid's pieces that are not stored."""
    paths = [_path(workdir, piece) for piece in plan(experiment)]
    return [path.stem for path in paths if not path.exists()]


def attributes(experiment: Experiment, task: Task) -> dict[str, Any]:
    """Where results come from, as every file keeps it."""
    names = ("surge", "jax", "flax", "optax")
    versions = {name: importlib.metadata.version(name) for name in names}
    return {
        "config": json.dumps(experiment.plain(), sort_keys=True),
        "versions": json.dumps(versions),
        "devices": hardware.describe(),
        "parameters": hardware.parameters(task),
        "commit": origin.commit(),
    }


def _origin(experiment: Experiment, task: Task, workdir: Path) -> Any:
    """Parameters of the measured run where it first met branch_loss; None without one."""
    if not experiment.branch_loss:
        return None
    training = training_of(experiment.optimizer_specs, experiment.measure, experiment.seed)
    directory = workdir / "checkpoints"
    for saved in saved_states(task, training, directory)[1:]:
        if saved.loss <= experiment.branch_loss:
            return restore(task, training, directory, saved).params
    raise ResultError(
        f"the measured run does not get to loss {experiment.branch_loss:g}, where runs are to "
        "branch: raise config.measure.max_steps"
    )


def _path(workdir: Path, piece: Piece) -> Path:
    return sweeps.sweep_path(workdir, piece.optimizer, piece.batch_size, piece.seeds[0])


def _run_grid(
    experiment: Experiment,
    planned: Sequence[Piece],
    task: Task,
    workdir: Path,
    params: Any,
    launch: Launch,
) -> None:
    done = _done(planned, workdir)
    todo = {_path(workdir, piece): piece for piece in planned if piece not in done}
    if done:
        logging.info("sweep: %d of %d pieces done before, kept", len(done), len(planned))
    if not todo:
        return
    every = attributes(experiment, task)
    cells = sum(piece.cells for piece in todo.values())
    ran = 0
    with _progress(todo.values()) as progress:
        progress.set_postfix_str(f"0 of {cells} cells")
        for one in _results(experiment, task, planned, workdir, params, launch):
            path = _path(workdir, one.piece)
            _store(path, one.piece, one.result, every | one.about)
            ran += todo[path].cells
            progress.set_postfix_str(f"{ran} of {cells} cells", refresh=False)
            progress.update(todo[path].examples)


def _results(
    experiment: Experiment,
    task: Task,
    pieces: Sequence[Piece],
    workdir: Path,
    params: Any,
    launch: Launch,
) -> Iterator[Ran]:
    """Each piece that is not done."""
    lanes = _lanes(workdir)
    done = _done(pieces, workdir)
    if launch.launcher == "ray":
        yield from on_ray(experiment, pieces, lanes, done, launch)
        return
    lanes = lanes or choose_lanes(experiment, task, pieces, launch.cells)
    if experiment.grid == "adaptive":
        results = _searches(experiment, task, pieces, lanes, workdir, params, launch)
    else:
        todo = [piece for piece in pieces if piece not in done]
        key = jax.random.key(experiment.seed)
        options: dict[str, Any] = {"stop_loss": experiment.stop_loss, "lanes": lanes}
        options["protocol"] = protocol_of(experiment, params)
        if launch.shard is not None:
            todo = ours_first(todo, launch.shard)
            options["mine"] = partial(mine, workdir)
        results = run_pieces(task, todo, key, **options)
    for piece, result in results:
        yield Ran(piece, result, about(lanes))


def _searches(
    experiment: Experiment,
    task: Task,
    pieces: Sequence[Piece],
    lanes: Lanes,
    workdir: Path,
    params: Any,
    launch: Launch,
) -> Iterator[tuple[Piece, PieceResult]]:
    """The pieces of an adaptive grid; processes that share it each search for an optimizer."""
    if launch.shard is None:
        yield from adaptive(experiment, task, pieces, lanes, _done(pieces, workdir), params)
        return
    for label in ours_first(list(experiment.optimizers), launch.shard):
        with claim.claimed(workdir, f"search {label}") as ours:
            if ours:
                its = [piece for piece in pieces if piece.optimizer == label]
                yield from adaptive(experiment, task, its, lanes, _done(its, workdir), params)


def _done(pieces: Iterable[Piece], workdir: Path) -> dict[Piece, tuple[Piece, PieceResult]]:
    """Those of the pieces that are finished, with what was run."""
    paths = {piece: _path(workdir, piece) for piece in pieces}
    return {piece: _finished(piece, path) for piece, path in paths.items() if path.exists()}


def _progress(todo: Iterable[Piece]) -> tqdm.tqdm:
    total = sum(piece.examples for piece in todo)
    return tqdm.tqdm(total=total, unit=" examples", unit_scale=True, desc="sweep", smoothing=0.1)


def _store(path: Path, piece: Piece, result: PieceResult, how: Mapping[str, Any]) -> None:
    dataset = sweeps.piece_dataset(
        piece.optimizer,
        piece.batch_size,
        piece.learning_rates,
        piece.seeds,
        np.asarray(piece.eval_steps) - piece.start_step,
        **result._asdict(),
        attrs=dict(how),
    )
    files.write_dataset(path, dataset)


def _finished(piece: Piece, path: Path) -> tuple[Piece, PieceResult]:
    stored = sweeps.read_piece(path)
    ran = piece._replace(
        learning_rates=tuple(stored.learning_rate.values.tolist()),
        seeds=tuple(stored.seed.values.tolist()),
    )
    recorded = [name for name in PieceResult._fields if name in stored]
    return ran, PieceResult(**{name: stored[name].values[0, 0] for name in recorded})


def _lanes(workdir: Path) -> Lanes | None:
    """Those that the sweep in a workdir began with, which it keeps to the end."""
    for path in sorted((workdir / "sweep").glob("*.nc")):
        text = sweeps.read_piece(path).attrs.get("lanes")
        return Lanes.from_json(text) if text else None
    return None


def _stored(experiment: Experiment, task: Task, workdir: Path) -> list[tuple[Piece, PieceResult]]:
    """All pieces of a workdir, more seeds among them."""
    sized = replace(experiment, batch_sizes=_sizes(workdir))
    planned = {(piece.optimizer, piece.batch_size): piece for piece in plan(sized, task)}
    stored = []
    for path in sorted((workdir / "sweep").glob("*.nc")):
        piece = sweeps.read_piece(path)
        cell = (piece.optimizer.item(), piece.batch_size.item())
        if cell in planned:
            stored.append(_finished(planned[cell], path))
    return stored


def _sizes(workdir: Path) -> tuple[int, ...]:
    """Batch sizes of the stored pieces."""
    pieces = [sweeps.read_piece(path) for path in (workdir / "sweep").glob("*.nc")]
    return tuple(sorted({piece.batch_size.item() for piece in pieces}))


def _add_seeds(experiment: Experiment, task: Task, workdir: Path, params: Any) -> None:
    """More seeds where the optimum is not known well enough, as far as the examples go."""
    if experiment.precision <= 0:
        return
    lanes = _lanes(workdir) or few_lanes(task, plan(experiment))
    key = jax.random.key(experiment.seed)
    protocol = protocol_of(experiment, params)
    engine = Engine(task, key, lanes, stop_loss=experiment.stop_loss, protocol=protocol)
    every = attributes(experiment, task) | about(lanes)
    stored = _stored(experiment, task, workdir)
    while True:
        left = experiment.max_examples_total - rounds.examples_of(stored)
        still = rounds.wanted(stored, experiment.objectives, experiment.precision, lanes)
        chosen = next((each for each in still if each.examples <= left), None)
        if chosen is None:
            break
        piece = chosen.piece
        logging.info(
            "sweep: %s at batch size %d: log ε_opt ± %.3f; seeds %d to %d at %d rates",
            piece.optimizer,
            piece.batch_size,
            chosen.error,
            piece.seeds[0],
            piece.seeds[-1],
            len(piece.learning_rates),
        )
        path = _path(workdir, piece)
        _store(path, piece, engine.run(piece, chosen.limit), every)
        stored.append(_finished(piece, path))
    for each in still:
        logging.warning(
            "sweep: still open: %s at batch size %d, log ε_opt ± %.3f; about %.2g examples more "
            "would settle it, and config.max_examples_total leaves %.2g",
            each.piece.optimizer,
            each.piece.batch_size,
            each.error,
            each.in_all,
            left,
        )
    if not still:
        logging.info("sweep: log ε_opt is known to ± %g everywhere", experiment.precision)


def _next_size(experiment: Experiment, task: Task, workdir: Path) -> int | None:
    """The next larger batch size; None where reach, the data or the examples end."""
    size = FARTHER * _sizes(workdir)[-1]
    rows = count_rows(task.data) if task.draw is draw_from_arrays else task.rows
    most = min(experiment.reach, experiment.max_examples, rows or experiment.reach)
    stored = _stored(experiment, task, workdir)
    left = experiment.max_examples_total - rounds.examples_of(stored)
    largest = [each for each in stored if FARTHER * each[0].batch_size == size]
    return size if size <= most and FARTHER * rounds.examples_of(largest) <= left else None


def _undecided(experiment: Experiment, workdir: Path) -> list[str]:
    """Optimizers of which neither a fall nor a plateau is seen, by any objective."""
    dataset = sweeps.open_sweep(workdir)
    labels = []
    for optimizer in map(str, dataset.optimizer.values):
        tables = (sweeps.rows(dataset, optimizer, each) for each in experiment.objectives)
        if not all(map(is_decided, tables)):
            labels.append(optimizer)
    return labels
