"""The truth beyond one step: runs branch from a checkpoint.

The learning rate that got lowest is the answer.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from surge.gradients.curvature import widened
from surge.optimizers import Optimizer, make_optimizer
from surge.tasks import Task
from surge.theory.basin import optimal_lr
from surge.theory.optimum import Optimum
from surge.training.engine import Engine
from surge.training.grid import Piece
from surge.training.lanes import spread
from surge.training.run import State

POWERS = range(-6, 6)  # of 2: learning rates tried, in units of the one-step optimum
SEEDS = (2, 16)  # fewest and most per learning rate
SETTLE = 32  # steps in which an optimizer's moments settle before parameters move: at least these


class Branch(NamedTuple):
    """optima: horizon -> Optimum; examples that were trained on."""

    optima: Mapping[int, Optimum]
    examples: int


class BranchOracle:
    """ε_opt(B; K): the learning rate whose loss is lowest K steps after a checkpoint.

    All learning rates of a batch size share their batches, seed by seed, and batches are nested
    across batch sizes. Where the optimizer has a state, it settles at rate 0 first, on batches of
    the size that is asked about.

    Args:
      task: what is trained.
      key: of the batches.
      budget: examples that one batch size may cost; more seeds as far as it goes, and horizons that
        it has no room for are left out.
    """

    def __init__(self, task: Task, key: jax.Array, budget: int):
        self.task = task
        self.budget = budget
        lanes = spread(task, len(POWERS), SEEDS[0])
        self._engine = Engine(task, key, lanes, stop_loss=-np.inf)

    def __call__(
        self, spec: str, params: Any, batch_size: int, centre: float, horizons: Sequence[int]
    ) -> Branch:
        """Branches from params with one optimizer and batch size.

        Args:
          spec: of the optimizer; schedules and warmup are left out.
          params: the checkpoint.
          batch_size: B.
          centre: one-step optimum, which the learning rates are placed around.
          horizons: steps K.
        """
        optimizer = make_optimizer(spec)
        hold = steps_to_settle(optimizer, params, batch_size)
        cost = {
            horizon: len(POWERS) * (hold + horizon) * batch_size for horizon in sorted(horizons)
        }
        fitting = [horizon for horizon in cost if SEEDS[0] * cost[horizon] <= self.budget]
        if not fitting or not np.isfinite(centre):
            return Branch({}, 0)

        seeds = min(SEEDS[1], self.budget // cost[fitting[-1]])
        rates = tuple(centre * 2.0**power for power in POWERS)
        steps = tuple(hold + horizon for horizon in fitting)
        held = optimizer.held(hold)
        piece = Piece("branch", held.spec, batch_size, rates, tuple(range(seeds)), steps)
        opt_state = held(1.0, batch_size, 1).init(widened(params))
        start = State(params, opt_state, jnp.zeros((), jnp.int32))
        loss = self._engine.run(piece, start=start).loss

        rate, seed = np.meshgrid(rates, piece.seeds, indexing="ij")
        optima = {
            horizon: optimal_lr(rate.ravel(), loss[..., index].ravel(), seed.ravel())
            for index, horizon in enumerate(fitting)
        }
        return Branch(optima, piece.examples)


def steps_to_settle(optimizer: Optimizer, params: Any, batch_size: int) -> int:
    """Steps at rate 0 after which the optimizer's state has forgotten that it began empty."""
    if not jax.tree.leaves(optimizer(1.0, batch_size, None).init(params)):
        return 0
    return max(SETTLE, len(optimizer.weights(batch_size)))
