"""The stages in order: measure, sweep, fit, report. Each reads and writes the workdir only."""

import importlib.metadata
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import jax
import tqdm
from absl import logging
from ml_collections import ConfigDict

from surge.config import ConfigError, Experiment, OptimizerGrid, check
from surge.entries import fit_entry
from surge.gradients.directions import GROUPS
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
)
from surge.measurement.stage import measure
from surge.moves import typical_moves
from surge.report import page, summary
from surge.tasks import Task, count_rows, draw_from_arrays, make_task
from surge.tasks.check import check_task
from surge.theory.objective import FallAfter, Objective
from surge.training import grid, hardware
from surge.training.arm import make_arm
from surge.training.dense import run_pieces
from surge.training.lanes import Lanes
from surge.training.precision import with_master_weights
from surge.training.workers import LostWorkers
from surge.workdir import claim, files, origin, sweeps
from surge.workdir.files import ResultError

UserError = (ConfigError, ResultError, MemoryError, LostWorkers)


def run(config: ConfigDict, workdir: Path, stages: Sequence[str], launch: Launch = HERE) -> None:
    """Runs the named stages of one experiment.

    Whatever is already in the workdir is not computed again.

    Of processes that share a workdir, the first measures, and the last to end fits and reports.

    Raises:
      ConfigError: the config cannot be run.
      ResultError: the workdir is in use or belongs to another config, lacks what a stage reads, or
        holds a broken file.
      MemoryError: one run alone does not fit.
      OSError: the workdir cannot be written.
    """
    experiment = check(config)
    started = time.monotonic()
    shared = launch.shard is not None
    last = [stage for stage in stages if shared and stage in ("fit", "report")]
    with claim.lock_workdir(workdir, shared=shared):
        claim.claim_workdir(workdir, experiment.plain(), experiment.lacking())
        _run(experiment, workdir, [stage for stage in stages if stage not in last], launch)
    try:
        if last:
            with claim.lock_workdir(workdir):
                _run(experiment, workdir, last, launch)
    except claim.InUse:
        logging.info("%s: left to the last of the processes that share %s", last[0], workdir)
    logging.info("done in %.0f s", time.monotonic() - started)


def _run(experiment: Experiment, workdir: Path, stages: Sequence[str], launch: Launch) -> None:
    hardware.enable_compilation_cache()
    if {"measure", "sweep"} & set(stages):
        hardware.set_matmul_precision(experiment.matmul_precision)
        task = _task(experiment)
        masters = experiment.master_weights == "float32"
        trained = with_master_weights(task) if masters else task
        devices = jax.local_device_count()
        logging.info("%s on %d %s device(s)", experiment.task, devices, jax.default_backend())
        if "measure" in stages:
            with _alone(workdir, "measure", launch) as ours:
                if ours:
                    _measure(experiment, task, trained, workdir)
        if "sweep" in stages:
            _sweep(experiment, trained, workdir, launch)
    if "fit" in stages:
        _fit(experiment, workdir)
    if "report" in stages:
        specs = {name: optimizer.spec for name, optimizer in experiment.optimizers.items()}
        page.write(workdir, typical_moves(workdir, specs))
        logging.info("report: %s", workdir / "report.html")
    if {"fit", "report"} & set(stages):
        for line in summary.lines(workdir):
            logging.info("%s", line)


def _alone(workdir: Path, name: str, launch: Launch) -> AbstractContextManager[bool]:
    """Whether a part of a workdir is this process's while the block lasts."""
    return nullcontext(True) if launch.shard is None else claim.claimed(workdir, name)


def _task(experiment: Experiment) -> Task:
    name = experiment.task
    try:
        task = make_task(name, **experiment.task_args)
        check_task(task)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"config.task {name}: {error}") from error

    sizes = sorted({*experiment.batch_sizes, experiment.measure.batch_size})
    rows = count_rows(task.data) if task.draw is draw_from_arrays else task.rows
    if rows is not None and rows < sizes[-1]:
        raise ConfigError(
            f"config.task {name} has {rows} examples to train on, fewer than the batch size "
            f"{sizes[-1]}: give it more, or lower config.batch_sizes and config.measure.batch_size"
        )

    part = experiment.measure.examples // GROUPS
    counts = [*sizes, count_rows(task.evaluation), part]
    uneven = [count for count in counts if count % task.ghost]
    if task.batch_loss is not None and uneven:
        raise ConfigError(
            f"config.task {name} couples ghost batches of {task.ghost} examples: batch sizes, the "
            "evaluation and an eighth of config.measure.examples must be multiples of that, and "
            f"{uneven} are not"
        )
    moving = [label for label, one in experiment.optimizers.items() if make_arm(one.batches)]
    if task.batch_loss is not None and moving:
        raise ConfigError(
            f"config.task {name} couples the examples of ghost batches, whose number would move "
            f"with config.optimizers.{moving[0]}.batches: leave that out"
        )
    return task


def _measure(experiment: Experiment, task: Task, trained: Task, workdir: Path) -> None:
    path = workdir / "measure.nc"
    if path.exists():
        files.read_dataset(path, files.MEASURED)
        logging.info("measure: done before, kept (%s)", path)
        return
    specs = {label: optimizer.spec for label, optimizer in experiment.optimizers.items()}
    sizes, chosen = experiment.batch_sizes, experiment.measure
    directory = workdir / "checkpoints"
    seed = experiment.seed
    dataset = measure(task, specs, sizes, chosen, directory, seed=seed, trained=trained)
    dataset.attrs |= _attributes(experiment, task)
    files.write_dataset(path, dataset)


def plan(experiment: Experiment) -> list[grid.Piece]:
    """The pieces of an experiment's grid, largest batch size first within an optimizer."""
    return grid.plan(
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


def _planned(experiment: Experiment, workdir: Path) -> dict[Path, grid.Piece]:
    """The piece that each file of a whole sweep holds."""
    return {
        sweeps.sweep_path(workdir, piece.optimizer, piece.batch_size): piece
        for piece in plan(experiment)
    }


def _sweep(experiment: Experiment, task: Task, workdir: Path, launch: Launch) -> None:
    pieces = _planned(experiment, workdir)
    done = _done(pieces.values(), workdir)
    todo = {path: piece for path, piece in pieces.items() if piece not in done}
    if done:
        logging.info("sweep: %d of %d pieces done before, kept", len(done), len(pieces))
    if not todo:
        return
    planned = list(pieces.values())
    attributes = _attributes(experiment, task)
    cells = sum(piece.cells for piece in todo.values())
    ran = 0
    with _progress(todo.values()) as progress:
        progress.set_postfix_str(f"0 of {cells} cells")
        for piece, result, how in _results(experiment, task, planned, workdir, done, launch):
            path = sweeps.sweep_path(workdir, piece.optimizer, piece.batch_size)
            dataset = sweeps.piece_dataset(
                piece.optimizer,
                piece.batch_size,
                piece.learning_rates,
                piece.seeds,
                piece.eval_steps,
                **result._asdict(),
                attrs=attributes | how,
            )
            files.write_dataset(path, dataset)
            ran += todo[path].cells
            progress.set_postfix_str(f"{ran} of {cells} cells", refresh=False)
            progress.update(todo[path].examples)


def _results(
    experiment: Experiment,
    task: Task,
    pieces: Sequence[grid.Piece],
    workdir: Path,
    done: Mapping[grid.Piece, tuple[grid.Piece, grid.PieceResult]],
    launch: Launch,
) -> Iterator[Ran]:
    """Each piece that is not done."""
    lanes = _lanes(workdir)
    if launch.launcher == "ray":
        yield from on_ray(experiment, pieces, lanes, done, launch)
        return
    lanes = lanes or choose_lanes(experiment, task, pieces, launch.cells)
    if experiment.grid == "adaptive":
        results = _searches(experiment, task, pieces, lanes, workdir, done, launch)
    else:
        todo = [piece for piece in pieces if piece not in done]
        key = jax.random.key(experiment.seed)
        options: dict[str, Any] = {"stop_loss": experiment.stop_loss, "lanes": lanes}
        if launch.shard is not None:
            todo = ours_first(todo, launch.shard)
            options["mine"] = partial(mine, workdir)
        results = run_pieces(task, todo, key, **options)
    for piece, result in results:
        yield Ran(piece, result, about(lanes))


def _searches(
    experiment: Experiment,
    task: Task,
    pieces: Sequence[grid.Piece],
    lanes: Lanes,
    workdir: Path,
    done: Mapping[grid.Piece, tuple[grid.Piece, grid.PieceResult]],
    launch: Launch,
) -> Iterator[tuple[grid.Piece, grid.PieceResult]]:
    """The pieces of an adaptive grid; processes that share it each search for an optimizer."""
    if launch.shard is None:
        yield from adaptive(experiment, task, pieces, lanes, done)
        return
    for label in ours_first(list(experiment.optimizers), launch.shard):
        with claim.claimed(workdir, f"search {label}") as ours:
            if ours:
                its = [piece for piece in pieces if piece.optimizer == label]
                yield from adaptive(experiment, task, its, lanes, _done(its, workdir))


def _progress(todo: Iterable[grid.Piece]) -> tqdm.tqdm:
    total = sum(piece.examples for piece in todo)
    return tqdm.tqdm(total=total, unit=" examples", unit_scale=True, desc="sweep", smoothing=0.1)


def _done(
    pieces: Iterable[grid.Piece], workdir: Path
) -> dict[grid.Piece, tuple[grid.Piece, grid.PieceResult]]:
    """Those of the pieces that are finished, with what was run."""
    paths = {
        piece: sweeps.sweep_path(workdir, piece.optimizer, piece.batch_size) for piece in pieces
    }
    return {piece: _finished(piece, path) for piece, path in paths.items() if path.exists()}


def _finished(piece: grid.Piece, path: Path) -> tuple[grid.Piece, grid.PieceResult]:
    stored = sweeps.read_piece(path)
    ran = piece._replace(learning_rates=tuple(stored.learning_rate.values.tolist()))
    fields = (stored[name].values[0, 0] for name in grid.PieceResult._fields)
    return ran, grid.PieceResult(*fields)


def _lanes(workdir: Path) -> Lanes | None:
    """Those that the sweep in a workdir began with, which it keeps to the end."""
    for path in sorted((workdir / "sweep").glob("*.nc")):
        text = sweeps.read_piece(path).attrs.get("lanes")
        return Lanes.from_json(text) if text else None
    return None


def _fit(experiment: Experiment, workdir: Path) -> None:
    dataset = sweeps.open_sweep(workdir)
    missing = [path.stem for path in _planned(experiment, workdir) if not path.exists()]
    if missing:
        logging.warning(
            "fit: the sweep is incomplete, without %d of its pieces (%s): "
            "run --stages=sweep,fit,report for the rest",
            len(missing),
            ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else ""),
        )
    fits = []
    for optimizer in map(str, dataset.optimizer.values):
        for objective in experiment.fit.objectives:
            rows = sweeps.rows(dataset, optimizer, objective)
            labels = {"optimizer": optimizer} | _labels(objective)
            remark = sweeps.why_unjudged(dataset, optimizer, objective.target_loss)
            remark = remark or _moving(experiment.optimizers[optimizer])
            if remark:
                logging.warning("fit: %s", remark)
                labels["remark"] = remark
            fits.append(fit_entry(rows, objective.judged_by, **labels))
    files.write_fits(workdir, fits, missing=missing)
    logging.info("fit: %d curves -> %s", len(fits), workdir / "fit.json")


def _moving(optimizer: OptimizerGrid) -> str:
    """What a law of the first batch size does not say."""
    if make_arm(optimizer.batches) is None:
        return ""
    return f"the batch size moves in these runs ({optimizer.batches}): B is that of the first step"


def _labels(objective: Objective) -> dict[str, Any]:
    """What tells an optimizer's curves apart."""
    labels: dict[str, Any] = {"target_loss": objective.target_loss}
    if isinstance(objective, FallAfter):
        labels["horizon"] = objective.steps
    return labels


def _attributes(experiment: Experiment, task: Task) -> dict[str, Any]:
    names = ("surge", "jax", "flax", "optax")
    versions = {name: importlib.metadata.version(name) for name in names}
    return {
        "config": json.dumps(experiment.plain(), sort_keys=True),
        "versions": json.dumps(versions),
        "devices": hardware.describe(),
        "parameters": hardware.parameters(task),
        "commit": origin.commit(),
    }
