"""The stages in order: measure, sweep, fit, report. Each reads and writes the workdir only."""

import difflib
import importlib.metadata
import json
import math
import re
import time
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import jax
import ml_collections
import tqdm
from absl import logging

from surge import measurement
from surge.entries import fit_entry
from surge.gradients import one_step
from surge.optimizers import make_optimizer
from surge.report import page, summary
from surge.tasks import Task, count_rows, draw_from_arrays, make_task
from surge.theory.objective import FinalLoss, Objective, StepsTo
from surge.training import grid, hardware, sweep
from surge.training.adaptive import run_adaptive
from surge.workdir import claim, files, sweeps
from surge.workdir.files import ResultError

NUMBERS = {  # field -> (least, what it is a multiple of)
    "seed": (0, 1),
    "seeds": (1, 1),
    "max_steps": (1, 1),
    "max_examples": (1, 1),
    "evals": (1, 1),
    "measure.batch_size": (1, 1),
    "measure.max_steps": (1, 1),
    "measure.examples": (2 * measurement.GROUPS, measurement.GROUPS),
    "measure.directions": (one_step.GROUPS, one_step.GROUPS),
    "measure.branch_examples": (1, 1),
}

FIELDS = (
    *NUMBERS,
    *("task", "task_args", "optimizers", "learning_rate_ratio", "grid", "batch_sizes", "stop_loss"),
    *("measure.optimizer", "measure.learning_rate", "measure.losses", "measure.horizons"),
    *("fit.objective", "fit.target_losses"),
)


class ConfigError(ValueError):
    """A config that cannot be run; the message is one sentence for the user."""


UserError = (ConfigError, ResultError, MemoryError)


def check(config: ml_collections.ConfigDict) -> None:
    """Raises ConfigError with one sentence for the first thing in a config that cannot be run."""
    for name in FIELDS:
        try:
            attrgetter(name)(config)
        except AttributeError:
            raise ConfigError(
                f"the config has no field {name}: see configs/mnist1d.py for all of them"
            ) from None
    _check_numbers(config)
    _check_optimizers(config)
    if max(config.batch_sizes) > config.max_examples:
        raise ConfigError(
            f"config.max_examples ({config.max_examples}) allows no step at batch size {max(config.batch_sizes)}: "
            "raise it"
        )
    if config.grid not in ("dense", "adaptive"):
        raise ConfigError(f"config.grid must be 'dense' or 'adaptive', got {config.grid!r}")
    if config.fit.objective not in ("steps", "loss"):
        raise ConfigError(
            f"config.fit.objective must be 'steps' or 'loss', got {config.fit.objective!r}"
        )
    if config.fit.objective == "steps" and not config.fit.target_losses:
        raise ConfigError(
            "config.fit.target_losses is empty: give at least one loss, or config.fit.objective='loss'"
        )
    low_targets = [target for target in config.fit.target_losses if target < config.stop_loss]
    if low_targets:
        raise ConfigError(
            f"config.fit.target_losses {low_targets} lie below config.stop_loss ({config.stop_loss}), where runs end"
        )
    try:
        plan(config)
    except ValueError as error:
        raise ConfigError(f"config.optimizers: {error}") from None


def _check_numbers(config: ml_collections.ConfigDict) -> None:
    for name, (least, factor) in NUMBERS.items():
        value = attrgetter(name)(config)
        if not isinstance(value, int) or value < least or value % factor:
            also = f", a multiple of {factor}" if factor > 1 else ""
            raise ConfigError(
                f"config.{name} must be a whole number of at least {least}{also}; got {value!r}"
            )
    for name in ("batch_sizes", "measure.horizons"):
        values = attrgetter(name)(config)
        if not values or not all(isinstance(each, int) and each > 0 for each in values):
            raise ConfigError(f"config.{name} must be whole numbers of at least 1, got {values!r}")
        if len(set(values)) < len(values):
            raise ConfigError(f"config.{name} holds a number twice: {values!r}")
    for name in ("measure.losses", "fit.target_losses"):
        if not all(map(_is_number, attrgetter(name)(config))):
            raise ConfigError(f"config.{name} must be numbers, got {attrgetter(name)(config)!r}")
    if not config.measure.learning_rate > 0:
        raise ConfigError(
            f"config.measure.learning_rate must be above 0, got {config.measure.learning_rate}"
        )
    if not config.learning_rate_ratio > 1:
        raise ConfigError(
            f"config.learning_rate_ratio must be above 1, got {config.learning_rate_ratio}"
        )


def _check_optimizers(config: ml_collections.ConfigDict) -> None:
    if not config.optimizers:
        raise ConfigError(
            "config.optimizers is empty: name at least one, like {'adam': {'spec': 'adam', ...}}"
        )
    for label, optimizer in config.optimizers.items():
        rates = optimizer.learning_rates
        if not re.fullmatch(r"[\w.-]+", label):
            raise ConfigError(
                f"config.optimizers has {label!r}: a label is letters, digits, dots and dashes"
            )
        if not isinstance(rates, tuple | list):
            raise ConfigError(
                f"config.optimizers.{label}.learning_rates must be (low, high), got {rates!r}"
            )
        if len(rates) != 2 or not all(map(_is_number, rates)) or not 0 < rates[0] < rates[1]:
            raise ConfigError(
                f"config.optimizers.{label}.learning_rates must be 0 < low < high, got {rates!r}"
            )
        try:
            make_optimizer(optimizer.spec)
        except ValueError as error:
            raise ConfigError(f"config.optimizers.{label}.spec: {error}") from None
    if config.measure.optimizer not in config.optimizers:
        near = difflib.get_close_matches(config.measure.optimizer, list(config.optimizers)) or list(
            config.optimizers
        )
        raise ConfigError(
            f"config.measure.optimizer {config.measure.optimizer!r} is not in config.optimizers: {near}"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def run(config: ml_collections.ConfigDict, workdir: Path, stages: Sequence[str]) -> None:
    """Runs the named stages of one experiment; whatever is already in the workdir is not computed
    again.

    Raises:
      ConfigError: the config cannot be run.
      ResultError: the workdir is in use or belongs to another config, lacks what a stage reads, or
        holds a broken file.
      MemoryError: one run alone does not fit.
      OSError: the workdir cannot be written.
    """
    check(config)
    started = time.monotonic()
    with claim.lock_workdir(workdir):
        claim.claim_workdir(workdir, json.loads(config.to_json()))
        _run(config, workdir, stages)
    logging.info("done in %.0f s", time.monotonic() - started)


def _run(config: ml_collections.ConfigDict, workdir: Path, stages: Sequence[str]) -> None:
    hardware.enable_compilation_cache()
    if {"measure", "sweep"} & set(stages):
        task = _task(config)
        logging.info(
            "%s on %d %s device(s)", config.task, jax.local_device_count(), jax.default_backend()
        )
        if "measure" in stages:
            _measure(config, task, workdir)
        if "sweep" in stages:
            _sweep(config, task, workdir)
    if "fit" in stages:
        _fit(config, workdir)
    if "report" in stages:
        page.write(workdir)
        logging.info("report: %s", workdir / "report.html")
    if {"fit", "report"} & set(stages):
        for line in summary.lines(workdir):
            logging.info("%s", line)


def _task(config: ml_collections.ConfigDict) -> Task:
    try:
        task = make_task(config.task, **config.task_args.to_dict())
    except (TypeError, ValueError) as error:
        raise ConfigError(f"config.task {config.task}: {error}") from error
    sizes = sorted({*config.batch_sizes, config.measure.batch_size})
    rows = count_rows(task.data) if task.draw is draw_from_arrays else task.rows
    if rows is not None and rows < sizes[-1]:
        raise ConfigError(
            f"config.task {config.task} has {rows} examples to train on, fewer than the batch size {sizes[-1]}: "
            "give it more, or lower config.batch_sizes and config.measure.batch_size"
        )
    counts = [*sizes, count_rows(task.evaluation), config.measure.examples // measurement.GROUPS]
    uneven = [each for each in counts if each % task.ghost]
    if task.batch_loss is not None and uneven:
        raise ConfigError(
            f"config.task {config.task} couples ghost batches of {task.ghost} examples: batch sizes, the evaluation "
            f"and an eighth of config.measure.examples must be multiples of that, and {uneven} are not"
        )
    return task


def _measure(config: ml_collections.ConfigDict, task: Task, workdir: Path) -> None:
    path = workdir / "measure.nc"
    if path.exists():
        files.read_dataset(path)
        logging.info("measure: done before, kept (%s)", path)
        return
    dataset = measurement.run(config, task, workdir / "checkpoints")
    dataset.attrs |= _attributes(config)
    files.write_dataset(path, dataset)


def plan(config: ml_collections.ConfigDict) -> list[grid.Piece]:
    """The pieces of a config's grid, largest batch size first within an optimizer."""
    return grid.plan(
        optimizers={
            name: (each.spec, tuple(each.learning_rates))
            for name, each in config.optimizers.items()
        },
        learning_rate_ratio=config.learning_rate_ratio,
        batch_sizes=config.batch_sizes,
        seeds=config.seeds,
        max_steps=config.max_steps,
        max_examples=config.max_examples,
        evals=config.evals,
    )


def _objectives(config: ml_collections.ConfigDict) -> tuple[Objective, ...]:
    """What runs are judged by."""
    if config.fit.objective == "loss":
        return (FinalLoss(),)
    return tuple(StepsTo(target) for target in config.fit.target_losses)


def _sweep(config: ml_collections.ConfigDict, task: Task, workdir: Path) -> None:
    pieces = {
        sweeps.sweep_path(workdir, piece.optimizer, piece.batch_size): piece
        for piece in plan(config)
    }
    done = {piece: _finished(piece, path) for path, piece in pieces.items() if path.exists()}
    todo = [piece for piece in pieces.values() if piece not in done]
    if done:
        logging.info("sweep: %d of %d pieces done before, kept", len(done), len(pieces))
    if not todo:
        return
    attributes, key, stop_loss = _attributes(config), jax.random.key(config.seed), config.stop_loss
    if config.grid == "dense":
        # The block of the whole grid, also for its rest: a resumed sweep is then the same to the
        # last bit.
        block = sweep.whole_block(list(pieces.values()), hardware.fastest_form(task))
        found = sweep.run_pieces(task, todo, key, stop_loss=stop_loss, block=block)
    else:
        judged = {"ratio": config.learning_rate_ratio, "objectives": _objectives(config)}
        found = run_adaptive(
            task, list(pieces.values()), key, **judged, stop_loss=stop_loss, done=done
        )
    total, cells, ran = sum(piece.examples for piece in todo), sum(piece.cells for piece in todo), 0
    with tqdm.tqdm(
        total=total, unit=" examples", unit_scale=True, desc="sweep", smoothing=0.1
    ) as progress:
        progress.set_postfix_str(f"0 of {cells} cells")
        for piece, result in found:
            path = sweeps.sweep_path(workdir, piece.optimizer, piece.batch_size)
            axes = piece.learning_rates, piece.seeds, piece.eval_steps
            dataset = sweeps.piece_dataset(
                piece.optimizer, piece.batch_size, *axes, *result, attributes
            )
            files.write_dataset(path, dataset)
            ran += pieces[path].cells
            progress.set_postfix_str(f"{ran} of {cells} cells", refresh=False)
            progress.update(pieces[path].examples)


def _finished(piece: grid.Piece, path: Path) -> tuple[grid.Piece, grid.PieceResult]:
    stored = sweeps.read_piece(path)
    ran = piece._replace(learning_rates=tuple(stored.learning_rate.values.tolist()))
    return ran, grid.PieceResult(stored.loss.values[0, 0], stored.diverged.values[0, 0])


def _fit(config: ml_collections.ConfigDict, workdir: Path) -> None:
    dataset = sweeps.open_sweep(workdir)
    fits = []
    for optimizer in dataset.optimizer.values:
        for objective in _objectives(config):
            rows = sweeps.rows(dataset, str(optimizer), objective)
            labels = {"optimizer": str(optimizer), "target_loss": objective.target_loss}
            fits.append(fit_entry(rows, objective.judged_by, **labels))
    files.write_json(workdir / "fit.json", {"fits": fits})
    logging.info("fit: %d curves -> %s", len(fits), workdir / "fit.json")


def _attributes(config: ml_collections.ConfigDict) -> dict[str, Any]:
    versions = {
        name: importlib.metadata.version(name) for name in ("surge", "jax", "flax", "optax")
    }
    return {
        "config": config.to_json(sort_keys=True),
        "versions": json.dumps(versions),
        "devices": f"{jax.local_device_count()} x {jax.devices()[0].device_kind}",
    }
