"""The states that are measured: of one run, saved with their losses, trained once."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from surge.optimizers import Optimizer
from surge.tasks import Task
from surge.training import checkpoint
from surge.training.grid import geometric_steps
from surge.training.hardware import microbatch, size_classes
from surge.training.run import Cell, Run, Shared, State, make_advance, make_begin
from surge.workdir import files

INDEX = "states.json"  # names the states of a directory
EVALS = 64  # losses taken of the run, evenly in log steps


class Saved(NamedTuple):
    """A state on disk: its name, the steps before it, its loss on the evaluation subset."""

    name: str
    step: int
    loss: float


class Training(NamedTuple):
    """How the run that is measured is trained.

    Attributes:
      optimizer: that trains it.
      learning_rate, batch_size: of all its steps.
      max_steps: it ends here, or at the last level.
      levels: losses at which its state is saved, beside its start.
      seed: of initialisation and batches.
    """

    optimizer: Optimizer
    learning_rate: float
    batch_size: int
    max_steps: int
    levels: Sequence[float]
    seed: int

    @property
    def record(self) -> dict[str, Any]:
        """What the index says of it."""
        levels = [float(level) for level in self.levels]
        return self._asdict() | {"optimizer": self.optimizer.spec, "levels": levels}


def saved_states(task: Task, training: Training, directory: Path) -> list[Saved]:
    """The states of a run: the start, then each level that it reached.

    Trained where they are not on disk.

    Args:
      task: what is trained.
      training: how.
      directory: of the states; what an other run left there is replaced.
    """
    index = directory / INDEX
    if index.exists():
        record, states = _read_index(index)
        whole = all((directory / state.name).is_dir() for state in states)
        if record == training.record and whole:
            logging.info("measure: %d states are there, kept (%s)", len(states), directory)
            return states
    states = _train(task, training, directory)
    content = {"training": training.record, "states": [state._asdict() for state in states]}
    files.write_json(index, content)
    return states


def _read_index(path: Path) -> tuple[Any, list[Saved]]:
    """How the states that an index names were trained, and they.

    Raises:
      ResultError: it is no index of states.
    """
    known = files.read_json(path)
    try:
        return known["training"], [Saved(**state) for state in known["states"]]
    except (KeyError, TypeError):
        raise files.unreadable(path, "it names no states") from None


def restore(task: Task, training: Training, directory: Path, saved: Saved) -> State:
    """One of the saved states.

    Raises:
      ResultError: it cannot be read.
    """
    begin = make_begin(task, training.optimizer)
    shared = Shared(-np.inf, task.data, task.evaluation)
    like = jax.eval_shape(begin, _cell(training), shared).state
    try:
        return checkpoint.restore(directory, saved.name, like)
    except Exception:  # orbax and tensorstore each raise their own kinds for a broken file
        raise files.unreadable(directory / saved.name) from None


def _cell(training: Training) -> Cell:
    key = jax.random.fold_in(jax.random.key(training.seed), 0)
    steps = np.asarray(geometric_steps(training.max_steps, EVALS), np.int32)
    return Cell(training.learning_rate, key, training.batch_size, steps)


def _train(task: Task, training: Training, directory: Path) -> list[Saved]:
    optimizer = training.optimizer
    size = microbatch(task, size_classes(task), training.batch_size)
    begin = jax.jit(make_begin(task, optimizer))
    advance = jax.jit(make_advance(task, optimizer, microbatch_size=size))
    cell = _cell(training)
    shared = Shared(-np.inf, task.data, task.evaluation)
    run: Run = begin(cell, shared)
    states = [_save(directory, run.state, float(run.start_loss))]
    levels = [level for level in training.levels if level < states[0].loss]
    for level in sorted(levels, reverse=True):
        run = run._replace(ended=jnp.zeros((), bool))
        sought = shared._replace(stop_loss=level)
        run = advance(run, cell, sought, run.state.step, cell.eval_steps[-1])
        if run.diverged or not run.ended:
            logging.info("measure: loss %g is not reached in %d steps", level, training.max_steps)
            break
        losses = run.loss[np.isfinite(run.loss)]
        states.append(_save(directory, run.state, float(losses[-1])))
    return states


def _save(directory: Path, state: State, loss: float) -> Saved:
    saved = Saved(f"step-{int(state.step)}", int(state.step), loss)
    checkpoint.save(directory, saved.name, state)
    logging.info("measure: checkpoint at step %d, loss %.3g", saved.step, loss)
    return saved
