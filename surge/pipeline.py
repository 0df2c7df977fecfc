"""The stages in order: measure, sweep, fit, report. Each reads and writes the workdir only."""

import difflib
import importlib.metadata
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
import tqdm
from absl import logging

from surge import measurement, results
from surge.optimizers import make_optimizer
from surge.report import page, summary
from surge.results import ResultError
from surge.tasks import Task, make_task
from surge.theory.table import fit_table
from surge.training import sweep
from surge.training.adaptive import run_adaptive

NUMBERS = {"seed": 0, "seeds": 1, "max_steps": 1, "max_examples": 1, "evals": 1}


class ConfigError(ValueError):
    """A config that cannot be run; the message is one sentence for the user."""


UserError = (ConfigError, ResultError)


def check(config: ml_collections.ConfigDict) -> None:
    """Raises ConfigError with one sentence for the first thing in a config that cannot be run."""
    for name, least in NUMBERS.items():
        if not isinstance(config[name], int) or config[name] < least:
            raise ConfigError(f"config.{name} must be a whole number of at least {least}, got {config[name]!r}")
    sizes = config.batch_sizes
    if not sizes or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise ConfigError(f"config.batch_sizes must be whole numbers of at least 1, got {sizes!r}")
    if max(sizes) > config.max_examples:
        raise ConfigError(
            f"config.max_examples ({config.max_examples}) allows no step at batch size {max(sizes)}: raise it"
        )
    if config.learning_rate_ratio <= 1:
        raise ConfigError(f"config.learning_rate_ratio must be above 1, got {config.learning_rate_ratio}")
    if not config.optimizers:
        raise ConfigError("config.optimizers is empty: name at least one, like {'adam': {'spec': 'adam', ...}}")
    for label, optimizer in config.optimizers.items():
        low, high = optimizer.learning_rates
        if not 0 < low < high:
            raise ConfigError(f"config.optimizers.{label}.learning_rates must be 0 < low < high, got ({low}, {high})")
        try:
            make_optimizer(optimizer.spec)
        except ValueError as error:
            raise ConfigError(f"config.optimizers.{label}.spec: {error}") from None
    if config.measure.optimizer not in config.optimizers:
        near = difflib.get_close_matches(config.measure.optimizer, list(config.optimizers)) or list(config.optimizers)
        raise ConfigError(f"config.measure.optimizer {config.measure.optimizer!r} is not in config.optimizers: {near}")
    if config.grid not in ("dense", "adaptive"):
        raise ConfigError(f"config.grid must be 'dense' or 'adaptive', got {config.grid!r}")
    if config.fit.objective not in ("steps", "loss"):
        raise ConfigError(f"config.fit.objective must be 'steps' or 'loss', got {config.fit.objective!r}")
    low_targets = [target for target in config.fit.target_losses if target < config.stop_loss]
    if low_targets:
        raise ConfigError(
            f"config.fit.target_losses {low_targets} lie below config.stop_loss ({config.stop_loss}), where runs end"
        )


def run(config: ml_collections.ConfigDict, workdir: Path, stages: Sequence[str]) -> None:
    """Runs the named stages of one experiment; whatever is already in the workdir is not computed again.

    Raises:
      ConfigError: the config cannot be run.
      ResultError: the workdir is in use or belongs to another config, lacks what a stage reads, or holds a broken
        file.
      OSError: the workdir cannot be written.
    """
    check(config)
    started = time.monotonic()
    with results.lock_workdir(workdir):
        results.claim_workdir(workdir, json.loads(config.to_json()))
        _run(config, workdir, stages)
    logging.info("done in %.0f s", time.monotonic() - started)


def _run(config: ml_collections.ConfigDict, workdir: Path, stages: Sequence[str]) -> None:
    sweep.enable_compilation_cache()
    if {"measure", "sweep"} & set(stages):
        task = _task(config)
        logging.info("%s on %d %s device(s)", config.task, jax.local_device_count(), jax.default_backend())
        if "measure" in stages:
            _measure(config, task, workdir)
        if "sweep" in stages:
            _sweep(config, task, workdir)
    if "fit" in stages:
        _fit(config, workdir)
    if "report" in stages:
        page.write(workdir)
        logging.info("report: %s", workdir / "report.html")
    for line in summary.lines(workdir):
        logging.info("%s", line)


def _task(config: ml_collections.ConfigDict) -> Task:
    try:
        return make_task(config.task, **config.task_args.to_dict())
    except (TypeError, ValueError) as error:
        raise ConfigError(f"config.task {config.task}: {error}") from error


def _measure(config: ml_collections.ConfigDict, task: Task, workdir: Path) -> None:
    path = workdir / "measure.nc"
    if path.exists():
        results.read_dataset(path)
        logging.info("measure: done before, kept (%s)", path)
        return
    if task.loss is None:
        raise ConfigError(
            f"{config.task} has no loss of one example, so nothing to measure: run --stages=sweep,fit,report"
        )
    dataset = measurement.run(config, task, workdir / "checkpoints")
    dataset.attrs |= _attributes(config)
    results.write_dataset(path, dataset)


def plan(config: ml_collections.ConfigDict) -> list[sweep.Piece]:
    """The pieces of a config's grid, largest batch size first within an optimizer."""
    return sweep.plan(
        optimizers={name: (each.spec, tuple(each.learning_rates)) for name, each in config.optimizers.items()},
        learning_rate_ratio=config.learning_rate_ratio,
        batch_sizes=config.batch_sizes,
        seeds=config.seeds,
        max_steps=config.max_steps,
        max_examples=config.max_examples,
        evals=config.evals,
    )


def _targets(config: ml_collections.ConfigDict) -> tuple[float | None, ...]:
    """The losses that runs are judged by their steps to; None is the loss at a run's end."""
    return tuple(config.fit.target_losses) if config.fit.objective == "steps" else (None,)


def _sweep(config: ml_collections.ConfigDict, task: Task, workdir: Path) -> None:
    grid = {results.sweep_path(workdir, piece.optimizer, piece.batch_size): piece for piece in plan(config)}
    done = {piece: _finished(piece, path) for path, piece in grid.items() if path.exists()}
    todo = [piece for piece in grid.values() if piece not in done]
    if done:
        logging.info("sweep: %d of %d pieces done before, kept", len(done), len(grid))
    if not todo:
        return
    attributes, key, stop_loss = _attributes(config), jax.random.key(config.seed), config.stop_loss
    if config.grid == "dense":
        found = sweep.run_pieces(task, todo, key, stop_loss=stop_loss)
    else:
        judged = {"ratio": config.learning_rate_ratio, "targets": _targets(config)}
        found = run_adaptive(task, list(grid.values()), key, **judged, stop_loss=stop_loss, done=done)
    total = sum(piece.examples for piece in todo)
    with tqdm.tqdm(total=total, unit=" examples", unit_scale=True, desc="sweep", smoothing=0.1) as progress:
        for piece, result in found:
            path = results.sweep_path(workdir, piece.optimizer, piece.batch_size)
            axes = piece.learning_rates, piece.seeds, piece.eval_steps
            dataset = results.piece_dataset(piece.optimizer, piece.batch_size, *axes, *result, attributes)
            results.write_dataset(path, dataset)
            progress.update(grid[path].examples)


def _finished(piece: sweep.Piece, path: Path) -> tuple[sweep.Piece, sweep.PieceResult]:
    stored = results.read_dataset(path)
    ran = piece._replace(learning_rates=tuple(stored.learning_rate.values.tolist()))
    return ran, sweep.PieceResult(stored.loss.values[0, 0], stored.diverged.values[0, 0])


def _fit(config: ml_collections.ConfigDict, workdir: Path) -> None:
    dataset = results.open_sweep(workdir)
    fits = []
    for optimizer in dataset.optimizer.values:
        for target in _targets(config):
            rows = results.rows(dataset, str(optimizer), target)
            fits.append(fit_table(rows, config.fit.objective, optimizer=str(optimizer), target_loss=target))
    results.write_json(workdir / "fit.json", {"fits": fits})
    logging.info("fit: %d curves -> %s", len(fits), workdir / "fit.json")


def _attributes(config: ml_collections.ConfigDict) -> dict[str, Any]:
    versions = {name: importlib.metadata.version(name) for name in ("surge", "jax", "flax", "optax")}
    return {
        "config": config.to_json(sort_keys=True),
        "versions": json.dumps(versions),
        "devices": f"{jax.local_device_count()} x {jax.devices()[0].device_kind}",
    }
