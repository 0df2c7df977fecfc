"""The probe of `surge.suggest`: a few runs of the user's own task at the new batch size."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import logging

from surge.config import Experiment, check
from surge.evidence import Cost, Probed
from surge.measurement.states import INDEX, Training, restore, saved_states
from surge.optimizers import make_optimizer
from surge.tasks import Task, make_task
from surge.tasks.check import check_task
from surge.theory.probing import Try, hypotheses, likelihood
from surge.theory.transfer import Belief, Transfer
from surge.training.hardware import enable_compilation_cache
from surge.training.probe import Goal, Ran, run_probe
from surge.workdir.files import ResultError, read_json, write_json

DENSE = (5, 13, 3)  # batch sizes, rates √2 apart over a factor of 64, seeds: what a sweep runs
FILE = "probe.json"


class Asked(NamedTuple):
    """A probe as a user asks for it.

    Attributes:
      task: module:function of a Task, or a Task.
      target_loss: that runs are to reach.
      run_examples: of a run that is trained to its end.
      budget: share of the examples of a dense sweep: DENSE runs, each to its end.
      file: where finished runs are kept, to go on from.
      branch: workdir whose middle checkpoint runs branch from; None: from initialisation.
      seed: of all runs.
    """

    task: str | Task
    target_loss: float | None
    run_examples: float | None
    budget: float
    file: Path
    branch: Path | None = None
    seed: int = 0

    @property
    def dense(self) -> float:
        """Examples of a dense sweep."""
        return math.prod(DENSE) * (self.run_examples or math.nan)


def probe(asked: Asked, spec: str, batch_size: float, lr: float, told: Transfer) -> Probed:
    """Runs what narrows the answer most, or goes on with what an earlier call ran.

    Args:
      asked: what may be run.
      spec: of the optimizer.
      batch_size: B, a whole number.
      lr: ε0.
      told: what is known of ε(B)/ε0 before.

    Raises:
      ValueError: a number that is missing or out of its range, or a task that cannot be trained.
      ResultError: the file holds another probe, or the workdir no checkpoint.
    """
    goal = _goal(asked, spec, batch_size, lr)
    known = hypotheses(told.grid, told.mass)
    about = goal._asdict() | {"task": str(asked.task), "seed": asked.seed}
    about |= {"branch": str(asked.branch), "prior": [told.ratio, told.low, told.high]}
    ran = _finished(asked.file, about)
    enable_compilation_cache()
    task = _task(asked.task)
    params = None if asked.branch is None else _checkpoint(task, asked.branch, asked.target_loss)
    key = jax.random.key(asked.seed)
    for one in run_probe(task, goal, known, key, done=ran, params=params):
        ran.append(one)
        write_json(asked.file, {"about": about, "runs": [_plain(run) for run in ran]})
    tries = [one.outcome for one in ran]
    spent = sum(one.examples for one in ran)
    logging.info("probe: %d runs, %.3g examples (%s)", len(ran), spent, asked.file)
    belief = Belief("probe", 1.0, likelihood(known, tries, told.grid))
    start = "initialisation" if asked.branch is None else f"a checkpoint of {asked.branch}"
    sizes, rates, seeds = DENSE
    return Probed(
        belief if tries else None,
        f"a probe: {len(ran)} runs from {start} to loss {goal.target:g} at B = {batch_size:g}, "
        f"{spent:.3g} examples, {spent / asked.dense:.2%} of a dense sweep's ({sizes} batch sizes, "
        f"{rates} rates, {seeds} seeds, each run of {goal.run_examples:g} examples)",
        Cost(spent, spent / asked.dense),
    )


def _goal(asked: Asked, spec: str, batch_size: float, lr: float) -> Goal:
    if asked.target_loss is None:
        raise ValueError("to which loss shall the runs of the probe go? give target_loss")
    if asked.run_examples is None:
        raise ValueError(
            "on how many examples is a run trained? give run_examples: the budget is a share of "
            "a sweep of such runs"
        )
    if not 0 < asked.budget <= 1:
        raise ValueError(f"budget must be a share of at most 1, like 5%, got {asked.budget:g}")
    if batch_size != int(batch_size):
        raise ValueError(f"to_batch_size must be a whole number to be probed, got {batch_size:g}")
    budget = asked.budget * asked.dense
    if not batch_size <= asked.run_examples < math.inf:
        raise ValueError(
            f"run_examples must be finite and at least to_batch_size, got {asked.run_examples:g}"
        )
    return Goal(spec, int(batch_size), lr, asked.target_loss, asked.run_examples, budget)


def _task(given: str | Task) -> Task:
    try:
        task = make_task(given) if isinstance(given, str) else given
        check_task(task)
    except (TypeError, ValueError) as error:
        raise ValueError(f"probe {given}: {error}") from error
    return task


def _finished(path: Path, about: dict[str, Any]) -> list[Ran]:
    """The runs that an earlier call stored."""
    if not path.exists():
        return []
    stored = read_json(path)
    if stored.get("about") != about:
        raise ResultError(
            f"{path} holds another probe: give another probe_file, or remove it to begin anew"
        )
    return [
        Ran(
            Try(run["rate"], math.nan if run["steps"] is None else run["steps"], run["limit"]),
            run["examples"],
        )
        for run in stored["runs"]
    ]


def _plain(run: Ran) -> dict[str, float]:
    return run.outcome._asdict() | {"examples": run.examples}


def _checkpoint(task: Task, workdir: Path, target: float | None) -> Any:
    """Parameters at the middle checkpoint after the start, which its noise is measured at too."""
    directory = workdir / "checkpoints"
    if not (directory / INDEX).exists():
        raise ResultError(f"{workdir} holds no checkpoint to branch from: run --stages=measure")
    experiment: Experiment = check(read_json(workdir / "config.json"))
    chosen = experiment.measure
    training = Training(
        optimizer=make_optimizer(experiment.optimizers[chosen.optimizer].spec),
        learning_rate=chosen.learning_rate,
        batch_size=chosen.batch_size,
        max_steps=chosen.max_steps,
        levels=chosen.losses,
        seed=experiment.seed,
    )
    states = saved_states(task, training, directory)
    later = states[1:] or states
    middle = later[len(later) // 2]
    if target is not None and middle.loss <= target:
        raise ValueError(
            f"the checkpoint is at loss {middle.loss:.3g} already: give a lower target_loss"
        )
    return restore(task, training, directory, middle).params
