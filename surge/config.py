"""One experiment: every field with its default, its meaning and its range.

A config file starts from `default()` and states what differs; `check` makes of it the `Experiment`
that everything else reads.
"""

import dataclasses
import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from surge import fields
from surge.fields import LONG, ConfigError
from surge.gradients.directions import GROUPS
from surge.optimizers import make_optimizer
from surge.theory.objective import (
    CROSSINGS,
    FallAfter,
    FinalLoss,
    LossAfter,
    Objective,
    StepsTo,
)
from surge.training.arm import MOST_EXAMPLES, make_arm
from surge.training.grid import powers

LABEL_BYTES = 100  # a label is part of file names, which are at most 255 bytes long


@dataclass(frozen=True)
class OptimizerGrid:
    """One optimizer and the learning rates it is run at."""

    spec: str  # as make_optimizer reads it: a name of optax with arguments, or module:function
    learning_rates: tuple[float, float]  # lowest and highest
    batches: str = "constant"  # as make_arm reads it: how B moves from each of batch_sizes


@dataclass(frozen=True)
class Measure:
    """One run with one optimizer, measured at its start and where its loss first meets a level."""

    optimizer: str = fields.text("adam")  # a label of `optimizers`
    learning_rate: float = fields.number(1e-3, above=0)
    batch_size: int = fields.whole(64, least=1)
    max_steps: int = fields.whole(10_000, least=1)
    losses: tuple[float, ...] = fields.numbers(())  # the levels; none: the start only
    # Examples whose gradients are taken at each checkpoint.
    examples: int = fields.whole(1_024, least=2 * GROUPS, most=2**24, factor=GROUPS)
    # Directions of one step, for each optimizer and batch size, that curvature is taken along.
    directions: int = fields.whole(32, least=GROUPS, most=2**14, factor=GROUPS)
    horizons: tuple[int, ...] = fields.wholes(
        (1, 10, 100)
    )  # steps after which branches are compared
    # Examples that all branches of one optimizer, batch size and horizon may train on.
    branch_examples: int = fields.whole(400_000, least=1, most=LONG)


@dataclass(frozen=True)
class Fit:
    """What runs are judged by, and so what the best learning rate is best for."""

    # "steps" to a target loss, "loss" at a run's end, or the "fall" in so many steps more from a
    # target loss.
    objective: str = fields.choice("steps", "loss", "fall")
    target_losses: tuple[float, ...] = fields.numbers(())  # for steps and fall, a curve each
    horizons: tuple[int, ...] = fields.wholes((), empty=True)  # steps of a fall, a curve each
    # By what a run has met the target that it falls from, a curve each: the "first" evaluation
    # there, one "half" of the evaluation set, or a running "mean" (theory/objective.py).
    crossings: tuple[str, ...] = fields.words(("first",), CROSSINGS)


def _grid_of(label: str, given: Any) -> OptimizerGrid:
    name = f"optimizers.{label}"
    if not re.fullmatch(r"\w[\w.-]*", label) or len(label.encode()) > LABEL_BYTES:
        raise ConfigError(
            f"config.optimizers has {fields.shown(label)}: a label is letters, digits, dots and "
            f"dashes, at most {LABEL_BYTES} of them"
        )
    values = fields.mapping(name, given)
    declared = dataclasses.fields(OptimizerGrid)
    names = [field.name for field in declared]
    for unknown in values.keys() - set(names):
        raise ConfigError(fields.no_field(f"{name}.{unknown}", unknown, names))
    needed = [field.name for field in declared if field.default is dataclasses.MISSING]
    for missing in (field for field in needed if field not in values):
        raise ConfigError(f"config.{name} lacks {missing}: give its {' and '.join(needed)}")
    spec = fields.read_text(f"{name}.spec", values["spec"])
    try:
        make_optimizer(spec)
    except ValueError as error:
        raise ConfigError(f"config.{name}.spec: {error}") from None
    bounds = fields.bounds(f"{name}.learning_rates", values["learning_rates"])
    batches = fields.read_text(f"{name}.batches", values.get("batches", "constant"))
    try:
        make_arm(batches)
    except ValueError as error:
        raise ConfigError(f"config.{name}.batches: {error}") from None
    return OptimizerGrid(spec, bounds, batches)


def _optimizers(name: str, given: Any) -> dict[str, OptimizerGrid]:
    grids = fields.mapping(name, given)
    if not grids:
        raise ConfigError(
            "config.optimizers is empty: name at least one, like {'adam': {'spec': 'adam', "
            "'learning_rates': (1e-4, 1e-1)}}"
        )
    return {label: _grid_of(label, grid) for label, grid in grids.items()}


def _task_args(name: str, given: Any) -> dict[str, Any]:
    return fields.read_plain(name, fields.mapping(name, given))


@dataclass(frozen=True)
class Experiment:
    """Everything that a run of the pipeline depends on."""

    seed: int = fields.whole(0, most=2**32 - 1)  # of initialisations, batches and all that is drawn
    task: str = fields.text("")  # module:function that builds the Task
    task_args: dict[str, Any] = fields.entries(_task_args)  # keyword arguments of that function

    # "float32": parameters narrower than that are trained as float32 ones, which the loss sees
    # rounded; "none": they are rounded after every step, and steps below their last digit are lost.
    master_weights: str = fields.choice("float32", "none")

    # Label -> spec, and the lowest and highest learning rate; the grid of each is every power of
    # learning_rate_ratio between the two.
    optimizers: dict[str, OptimizerGrid] = fields.entries(_optimizers)
    learning_rate_ratio: float = fields.number(2**0.5, above=1)
    # "dense" runs every cell; "adaptive" those around each optimum, for a fraction of the examples.
    grid: str = fields.choice("dense", "adaptive")
    batch_sizes: tuple[int, ...] = fields.wholes((4, 16, 64, 256, 1024))
    seeds: int = fields.whole(3, least=1)  # runs of each cell
    max_steps: int = fields.whole(10_000, least=1)  # a run ends here,
    max_examples: int = fields.whole(1_000_000, least=1, most=LONG)  # or here,
    stop_loss: float = fields.number(0.0)  # or here, so no target of the fit may be lower,
    further_steps: int = fields.whole(0)  # or so many steps after it was there
    # Runs branch from the state in which the measured run first met this one of measure.losses;
    # 0: each from its own initialisation.
    branch_loss: float = fields.number(0.0)
    evals: int = fields.whole(
        64, least=1, most=10_000
    )  # losses taken of a run, evenly in log steps
    # Of float32 products on GPU and TPU, where only "highest" is float32: below it are TF32, and
    # one or three passes of bfloat16, which signs and small variances see. A CPU has one precision.
    matmul_precision: str = fields.choice("highest", "high", "default")
    max_cells: int = fields.whole(100_000, least=1, most=LONG)  # a grid of more runs is refused

    # Seeds are added until the standard error of log ε_opt is at most this at every batch size, and
    # then batch sizes, each 4 times the last, until a fall or a plateau is seen, to `reach`; all as
    # far as max_examples_total go. 0: none.
    precision: float = fields.number(0.0)
    reach: int = fields.whole(0)
    max_examples_total: int = fields.whole(10**9, least=1, most=LONG)  # of all runs together

    measure: Measure = fields.part(Measure)
    fit: Fit = fields.part(Fit)

    @property
    def optimizer_specs(self) -> dict[str, str]:
        """Label -> spec."""
        return {label: optimizer.spec for label, optimizer in self.optimizers.items()}

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """One for each curve of the fit."""
        fit = self.fit
        if fit.objective == "loss":
            return (FinalLoss(),)
        if fit.objective == "steps":
            return tuple(StepsTo(target) for target in fit.target_losses)
        if self.branch_loss:
            return tuple(LossAfter(self.branch_loss, steps) for steps in fit.horizons)
        return tuple(
            FallAfter(target, steps, crossing)
            for target in fit.target_losses
            for steps in fit.horizons
            for crossing in fit.crossings
        )

    def plain(self) -> dict[str, Any]:
        """The fields as a config holds them."""
        return dataclasses.asdict(self)

    def lacking(self) -> dict[str, Any]:
        """What an older config, without some of the fields, has in their place."""
        grid = {
            field.name: field.default
            for field in dataclasses.fields(OptimizerGrid)
            if field.default is not dataclasses.MISSING
        }
        return default().to_dict() | {"optimizers": {label: grid for label in self.optimizers}}


class Fields(ConfigDict):
    """A ConfigDict that leaves types to `check`, whose sentences name the field and its range.

    Numbers of numpy become plain ones, and a whole number that is given for another one becomes a
    float, for flags read what they are given as the type that stands there.
    """

    def __setitem__(self, key: str, value: Any) -> None:
        if self.is_locked and key not in self:
            raise AttributeError(fields.no_field(key, key, list(self)))
        if isinstance(value, np.generic):
            value = value.item()
        if not isinstance(value, fields.SCALARS):
            super().__setitem__(key, value)
            return
        if type(value) is int and abs(value) <= LONG and isinstance(self.get(key), float):
            value = float(value)
        self._fields[key] = value  # ConfigDict itself would make a float of True


def default() -> ConfigDict:
    """Every field with its default, locked: a misspelt field is an error where it is written.

    A task and its optimizers have none, and may be given any entries.
    """
    config = _unlocked(Experiment)
    config.lock()
    return config


def _unlocked(kind: type) -> ConfigDict:
    config = Fields(type_safe=False)
    for field in dataclasses.fields(kind):
        if "part" in field.metadata:
            config[field.name] = _unlocked(field.metadata["part"])
        elif field.default is dataclasses.MISSING:
            config[field.name] = ConfigDict(type_safe=False)
        else:
            config[field.name] = field.default
    return config


def scale(variant: str, file: str) -> str:
    """The variant of a config file that has a "quick" and a "full" scale; "" asks the devices.

    Raises:
      ValueError: it is another one.
    """
    if variant not in ("", "quick", "full"):
        raise ValueError(f"{file} has no variant {variant!r}: choose quick, full, or none")
    if not variant:
        variant = "quick" if jax.default_backend() == "cpu" else "full"
        logging.info("%s: %s scale, by the devices found", file, variant)
    return variant


def check(config: ConfigDict | Mapping[str, Any]) -> Experiment:
    """The experiment that a config asks for; a field that it lacks has its default.

    Raises:
      ConfigError: it cannot be run; one sentence for the first thing that is in the way. Nothing
        has been allocated by then.
    """
    given = config.to_dict() if isinstance(config, ConfigDict) else config
    experiment: Experiment = fields.read(Experiment, given)
    _check_names(experiment)
    _check_objective(experiment)
    _check_branch(experiment)
    _check_size(experiment)
    _check_arms(experiment)
    return experiment


def _check_names(experiment: Experiment) -> None:
    labels = list(experiment.optimizers)
    chosen = experiment.measure.optimizer
    if chosen not in labels:
        near = difflib.get_close_matches(chosen, labels) or labels
        raise ConfigError(
            f"config.measure.optimizer {chosen!r} is not in config.optimizers: {near}"
        )


def _check_objective(experiment: Experiment) -> None:
    fit = experiment.fit
    if fit.objective != "loss" and not fit.target_losses:
        raise ConfigError(
            "config.fit.target_losses is empty: give at least one loss, or "
            "config.fit.objective='loss'"
        )
    low = [target for target in fit.target_losses if target < experiment.stop_loss]
    if low:
        raise ConfigError(
            f"config.fit.target_losses {fields.shown(low)} lie below config.stop_loss "
            f"({experiment.stop_loss}), where runs end"
        )
    if fit.objective == "fall" and not fit.horizons:
        raise ConfigError(
            "config.fit.horizons is empty: give the steps of a fall, like (1, 10, 100)"
        )
    if fit.objective == "fall" and max(fit.horizons) >= experiment.max_steps:
        raise ConfigError(
            f"config.fit.horizons ({max(fit.horizons)}) must be below config.max_steps "
            f"({experiment.max_steps}): no run is longer"
        )


def _check_branch(experiment: Experiment) -> None:
    branch = experiment.branch_loss
    if branch and branch not in experiment.measure.losses:
        raise ConfigError(
            f"config.branch_loss {branch:g} is not in config.measure.losses "
            f"{experiment.measure.losses}: the measured run saves its state at those"
        )
    if branch and experiment.fit.objective == "fall":
        other = [loss for loss in experiment.fit.target_losses if loss != branch]
        if other:
            raise ConfigError(
                f"config.fit.target_losses {fields.shown(other)} are not config.branch_loss "
                f"({branch:g}), where all runs of a fall begin"
            )


def _check_size(experiment: Experiment) -> None:
    """Counts before anything is made: a grid may be asked for that no memory holds."""
    largest = max(experiment.batch_sizes)
    if largest > experiment.max_examples:
        raise ConfigError(
            f"config.max_examples ({experiment.max_examples}) allows no step at batch size "
            f"{largest}: raise it"
        )
    for label, optimizer in experiment.optimizers.items():
        least = make_optimizer(optimizer.spec).least_batch
        if min(*experiment.batch_sizes, experiment.measure.batch_size) < least:
            raise ConfigError(
                f"config.optimizers.{label} needs batches of at least {least} examples, one for "
                "each worker: see config.batch_sizes and config.measure.batch_size"
            )
    rates = {}
    ratio = experiment.learning_rate_ratio
    for label, optimizer in experiment.optimizers.items():
        low, high = optimizer.learning_rates
        rates[label] = len(powers(low, high, ratio))
        if not rates[label]:
            raise ConfigError(
                f"config.optimizers.{label}: no power of {ratio:g} lies in [{low:g}, {high:g}]: "
                "widen it"
            )
    cells = sum(rates.values()) * len(experiment.batch_sizes) * experiment.seeds
    if cells > experiment.max_cells:
        raise ConfigError(
            f"the grid has {cells:,} runs, {sum(rates.values()):,} learning rates "
            f"(config.learning_rate_ratio) x {len(experiment.batch_sizes):,} config.batch_sizes x "
            f"{experiment.seeds:,} config.seeds, more than config.max_cells "
            f"({experiment.max_cells:,}): make it smaller, or raise config.max_cells"
        )


def _check_arms(experiment: Experiment) -> None:
    """What a run of a moving batch size cannot have."""
    arms = {label: make_arm(grid.batches) for label, grid in experiment.optimizers.items()}
    largest = max(experiment.batch_sizes)
    for label, arm in arms.items():
        if arm is None:
            continue
        name = f"config.optimizers.{label}.batches"
        scheduled = make_optimizer(experiment.optimizers[label].spec).scheduled
        if scheduled:
            raise ConfigError(
                f"{name} moves the batch size, so that a run's steps are not known when it starts: "
                f"take {scheduled} out of its spec"
            )
        if min(experiment.batch_sizes) < arm.least_batch:
            raise ConfigError(
                f"{name} needs the variance of a batch: config.batch_sizes must be at least "
                f"{arm.least_batch}"
            )
        if largest > arm.most:
            raise ConfigError(
                f"{name} allows at most {arm.most} examples: give most={largest} or more, or lower "
                "config.batch_sizes"
            )
        if experiment.max_examples > MOST_EXAMPLES:
            raise ConfigError(
                f"{name} counts examples in 32 bits: config.max_examples must be below 2**32"
            )
