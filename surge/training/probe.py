"""A few short runs at a new batch size, each at the rate that tells most: the next is chosen when
the one before has ended."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from surge.optimizers import make_optimizer
from surge.tasks import Task
from surge.theory import probing
from surge.theory.objective import StepsTo
from surge.theory.probing import Hypotheses, Try
from surge.training.engine import Engine
from surge.training.grid import Piece, geometric_steps
from surge.training.lanes import Lanes, fastest_form
from surge.training.protocol import steps_to_settle
from surge.training.run import State

EVALS = 64  # losses taken of a run
FEWEST = 4  # runs that a budget has room for, whatever the first ones do
NARROW = math.log(2)  # between the ends of an interval of log ε: ±√2, which is enough


class Goal(NamedTuple):
    """What is probed.

    Attributes:
      spec: of the optimizer.
      batch_size: B.
      lr: rate that was tuned at B0, in units of which rates are tried.
      target: loss that runs are to reach.
      run_examples: longest run.
      budget: examples that all runs together may train on.
    """

    spec: str
    batch_size: int
    lr: float
    target: float
    run_examples: float
    budget: float


class Ran(NamedTuple):
    """A run of a probe: what it came to, and the examples that it was trained on."""

    outcome: Try
    examples: float


def run_probe(
    task: Task,
    goal: Goal,
    known: Hypotheses,
    key: jax.Array,
    *,
    done: Sequence[Ran] = (),
    params: jax.Array | None = None,
) -> Iterator[Ran]:
    """Runs until the interval is within ±√2, or the budget has no room for one that arrives.

    Every run has a seed of its own. With what an earlier call yielded, a call goes on to the same
    result: the next rate is a function of the outcomes so far.

    Args:
      task: what is trained.
      goal: what is asked.
      known: what may be, before any run.
      key: of all seeds.
      done: what an earlier call yielded.
      params: checkpoint to branch from, where moments settle first; None is initialisation.
    """
    engine = Engine(task, key, Lanes(fastest_form(task), 1, 1), stop_loss=goal.target)
    optimizer = make_optimizer(goal.spec)
    hold = 0
    start = None
    if params is not None:
        hold = steps_to_settle(optimizer, params, goal.batch_size)
        optimizer = optimizer.held(hold)
        opt_state = optimizer(1.0, goal.batch_size, 1).init(params)
        start = State(params, opt_state, jnp.zeros((), jnp.int32))

    def runs() -> Iterator[Ran]:
        ran = [*done]
        while (longest := _longest(goal, known, ran) - hold) >= 1:
            tries = [one.outcome for one in ran]
            rate = probing.next_rate(known, tries, longest)
            limit = int(math.exp(probing.limit_of(tries, longest)) + 1e-6)
            steps = np.array(geometric_steps(limit, EVALS))
            piece = Piece(
                "probe",
                optimizer.spec,
                goal.batch_size,
                (goal.lr * math.exp(rate),),
                (len(ran),),
                tuple((steps + hold).tolist()),
            )
            result = engine.run(piece, start=start)
            value = StepsTo(goal.target).value(result.loss, result.diverged, steps)[0, 0]
            arrived = float(value) if np.isfinite(value) else math.nan
            outcome = Try(rate, arrived, math.log(limit))
            ran.append(Ran(outcome, float(np.nanmax(result.examples))))
            _say(goal, known, ran)
            yield ran[-1]

    return engine.finish(runs())


def _longest(goal: Goal, known: Hypotheses, ran: Sequence[Ran]) -> int:
    """Steps that the next run may take, 0 where there is none to come."""
    tries = [one.outcome for one in ran]
    _, low, high = probing.interval(known, tries)
    left = goal.budget - sum(one.examples for one in ran)
    arrived = [one.steps for one in tries if math.isfinite(one.steps)]
    fewest = math.exp(min(arrived, default=0.0))
    examples = min(goal.run_examples, left, goal.budget / FEWEST)
    steps = int(examples / goal.batch_size)
    return 0 if high - low <= NARROW or steps < fewest else steps


def _say(goal: Goal, known: Hypotheses, ran: Sequence[Ran]) -> None:
    """A line on the run that has just ended."""
    tries = [one.outcome for one in ran]
    rate = goal.lr * math.exp(tries[-1].rate)
    ended = math.exp(tries[-1].steps)
    _, low, high = probing.interval(known, tries)
    logging.info(
        "probe: run %d at rate %.3g %s; the rate lies in [%.3g, %.3g], %.0f%% of the budget spent",
        len(ran),
        rate,
        f"took {ended:.4g} steps" if math.isfinite(ended) else "did not arrive",
        goal.lr * math.exp(low),
        goal.lr * math.exp(high),
        100 * sum(one.examples for one in ran) / goal.budget,
    )
