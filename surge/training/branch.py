"""The truth beyond one step: runs branch from a checkpoint.

The learning rate that got lowest is the answer.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from surge.tasks import Task
from surge.theory.basin import optimal_lr
from surge.theory.optimum import Optimum
from surge.training.engine import Engine
from surge.training.grid import Piece
from surge.training.lanes import spread
from surge.training.protocol import branched, settling

POWERS = range(-6, 6)  # of 2: learning rates tried, in units of the one-step optimum
SEEDS = (2, 16)  # fewest and most per learning rate


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
        ends = tuple(sorted(horizons))
        piece = branched(Piece("branch", spec, batch_size, (), (), ends), params)
        hold = piece.start_step
        cost = {
            horizon: len(POWERS) * (hold + horizon) * batch_size for horizon in sorted(horizons)
        }
        fitting = [horizon for horizon in cost if SEEDS[0] * cost[horizon] <= self.budget]
        if not fitting or not np.isfinite(centre):
            return Branch({}, 0)

        seeds = min(SEEDS[1], self.budget // cost[fitting[-1]])
        rates = tuple(centre * 2.0**power for power in POWERS)
        steps = tuple(hold + horizon for horizon in fitting)
        piece = piece._replace(
            learning_rates=rates, seeds=tuple(range(seeds)), eval_steps=steps, start_step=0
        )
        start = settling(piece, params)
        loss = self._engine.run(piece, start=start).loss

        rate, seed = np.meshgrid(rates, piece.seeds, indexing="ij")
        optima = {
            horizon: optimal_lr(rate.ravel(), loss[..., index].ravel(), seed.ravel())
            for index, horizon in enumerate(fitting)
        }
        return Branch(optima, piece.examples)
