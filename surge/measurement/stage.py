"""The stage: train once, then measure at what was saved."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import xarray as xr
from absl import logging

from surge.config import ConfigError, Measure
from surge.measurement.drift import drift
from surge.measurement.point import Point, Problem
from surge.measurement.states import Training, restore, saved_states
from surge.measurement.statistics import STATISTICS
from surge.optimizers import make_optimizer
from surge.tasks import Task


def measure(
    task: Task,
    specs: Mapping[str, str],
    batch_sizes: Sequence[int],
    chosen: Measure,
    directory: Path,
    *,
    seed: int,
    trained: Task | None = None,
) -> xr.Dataset:
    """Trains to the chosen losses, unless that was done, and takes every statistic there.

    Args:
      task: what is measured.
      specs: label -> spec of each optimizer that is asked about.
      batch_sizes: B [b] at which it is.
      chosen: how the run is trained, and how finely is measured.
      directory: of the saved states.
      seed: of all that is drawn.
      trained: the same with master weights, whose values are measured in their own precision, for
        rounding hides what a small step does; None where it has none.

    Returns:
      Dataset of all STATISTICS with a dimension checkpoint, its loss and step, and how what moves
      with the loss does so.

    Raises:
      ConfigError: no optimizer has directions that can be sampled.
    """
    training = training_of(specs, chosen, seed)
    problem = Problem(
        task=task,
        specs=_measurable(specs),
        batch_sizes=batch_sizes,
        seed=seed,
        examples=chosen.examples,
        directions=chosen.directions,
        horizons=chosen.horizons,
        branch_examples=chosen.branch_examples,
    )
    trained = trained or task
    states = saved_states(trained, training, directory)
    rows = []
    for index, saved in enumerate(states):
        state = restore(trained, training, directory, saved)
        row = statistics_at(Point(problem, state.params, index))
        rows.append(row.assign(loss=saved.loss, step=saved.step))
        logging.info("measure: %d of %d checkpoints done", index + 1, len(states))
    dataset = xr.concat(rows, "checkpoint", combine_attrs="override")
    dataset = dataset.merge(drift(dataset))
    return dataset.assign_attrs(optimizer=chosen.optimizer)


def training_of(specs: Mapping[str, str], chosen: Measure, seed: int) -> Training:
    """How the run that is measured is trained; arguments as for `measure`."""
    return Training(
        optimizer=make_optimizer(specs[chosen.optimizer]),
        learning_rate=chosen.learning_rate,
        batch_size=chosen.batch_size,
        max_steps=chosen.max_steps,
        levels=chosen.losses,
        seed=seed,
    )


def _measurable(specs: Mapping[str, str]) -> dict[str, str]:
    """Those of optimizers whose directions can be sampled."""
    needs = {label: make_optimizer(spec).needs for label, spec in specs.items()}
    kept = {label: spec for label, spec in specs.items() if "gradient_fn" not in needs[label]}
    for label in specs.keys() - kept:
        logging.info("measure: %s takes gradients at points of its own, and is left out", label)
    if not kept:
        raise ConfigError(
            "config.optimizers holds only such as take gradients at points of their own, which"
            " cannot be measured: add one that does not, or give --stages=sweep,fit,report"
        )
    return kept


def statistics_at(point: Point) -> xr.Dataset:
    """All statistics at one checkpoint."""
    return xr.merge([statistic(point) for statistic in STATISTICS.values()], join="exact")
