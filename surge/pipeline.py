"""The stages in order: measure, sweep, fit, report. Each reads and writes the workdir only."""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from surge.config import ConfigError, Experiment, OptimizerGrid, check
from surge.entries import fit_entry
from surge.gradients.directions import GROUPS
from surge.launch import HERE, Launch
from surge.measurement.stage import measure
from surge.moves import typical_moves
from surge.report import page, summary
from surge.sweep import attributes, missing, sweep
from surge.tasks import Task, count_rows, draw_from_arrays, make_task
from surge.tasks.check import check_task
from surge.theory.objective import FallAfter, LossAfter, Objective
from surge.training import hardware
from surge.training.arm import make_arm
from surge.training.precision import with_master_weights
from surge.training.workers import LostWorkers
from surge.workdir import claim, files, sweeps
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
            sweep(experiment, trained, workdir, launch)
    if "fit" in stages:
        _fit(experiment, workdir)
    if "report" in stages:
        page.write(workdir, typical_moves(workdir, experiment.optimizer_specs))
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
    sizes, chosen = experiment.batch_sizes, experiment.measure
    directory = workdir / "checkpoints"
    dataset = measure(
        task,
        experiment.optimizer_specs,
        sizes,
        chosen,
        directory,
        seed=experiment.seed,
        trained=trained,
    )
    dataset.attrs |= attributes(experiment, task)
    files.write_dataset(path, dataset)


def _fit(experiment: Experiment, workdir: Path) -> None:
    dataset = sweeps.open_sweep(workdir)
    absent = missing(experiment, workdir)
    if absent:
        logging.warning(
            "fit: the sweep is incomplete, without %d of its pieces (%s): "
            "run --stages=sweep,fit,report for the rest",
            len(absent),
            ", ".join(absent[:3]) + (", ..." if len(absent) > 3 else ""),
        )
    fits = []
    for optimizer in map(str, dataset.optimizer.values):
        for objective in experiment.objectives:
            rows = sweeps.rows(dataset, optimizer, objective)
            labels = {"optimizer": optimizer} | _labels(objective)
            remark = sweeps.why_unjudged(dataset, optimizer, objective.target_loss)
            remark = remark or _moving(experiment.optimizers[optimizer])
            if remark:
                logging.warning("fit: %s", remark)
                labels["remark"] = remark
            fits.append(fit_entry(rows, objective.judged_by, **labels))
    files.write_fits(workdir, fits, missing=absent)
    logging.info("fit: %d curves -> %s", len(fits), workdir / "fit.json")


def _moving(optimizer: OptimizerGrid) -> str:
    """What a law of the first batch size does not say."""
    if make_arm(optimizer.batches) is None:
        return ""
    return f"the batch size moves in these runs ({optimizer.batches}): B is that of the first step"


def _labels(objective: Objective) -> dict[str, Any]:
    """What tells an optimizer's curves apart."""
    labels: dict[str, Any] = {"target_loss": objective.target_loss}
    if isinstance(objective, FallAfter | LossAfter):
        labels["horizon"] = objective.steps
        if objective.crossing != "first":
            labels["crossing"] = objective.crossing
    return labels
