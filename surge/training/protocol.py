"""What all runs of a sweep have in common beside their task: where they begin, what they record."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from surge.gradients.curvature import widened
from surge.optimizers import Optimizer, make_optimizer
from surge.tasks import Task, count_rows
from surge.training.grid import Piece
from surge.training.run import Shared, State

SETTLE = 32  # steps in which an optimizer's moments settle before parameters move: at least these


class Protocol(NamedTuple):
    """What all runs of a sweep have in common.

    Attributes:
      params: that all runs branch from; None is each run's own initialisation.
      halves: the loss of one half of the evaluation set is recorded beside that of all.
      further_steps: that a run goes on for after the loss where it would end.
    """

    params: Any = None
    halves: bool = False
    further_steps: int = 0

    def shared(self, task: Task, stop_loss: float) -> Shared:
        """As programs take it."""
        half = None
        if self.halves:
            rows = count_rows(task.evaluation) // 2
            half = jax.tree.map(lambda leaf: leaf[:rows], task.evaluation)
        further = np.int32(self.further_steps) if self.further_steps else None
        return Shared(np.float32(stop_loss), task.data, task.evaluation, half, further)

    def start(self, piece: Piece) -> State | None:
        """What the runs of a piece branch from; None is initialisation."""
        return None if self.params is None else settling(piece, self.params)


PLAIN = Protocol()


def branched(piece: Piece, params: Any) -> Piece:
    """The piece whose optimizer settles at rate 0 first, its steps counted from there on.

    Args:
      piece: of runs from initialisation.
      params: that runs are to branch from, or their shapes.
    """
    optimizer = make_optimizer(piece.spec)
    hold = steps_to_settle(optimizer, params, piece.batch_size)
    steps = tuple(hold + step for step in piece.eval_steps)
    spec = optimizer.held(hold).spec
    return piece._replace(spec=spec, eval_steps=steps, start_step=hold)


def settling(piece: Piece, params: Any) -> State:
    """A checkpoint's parameters with an optimizer state that has yet to settle."""
    transform = make_optimizer(piece.spec)(1.0, piece.batch_size, 1)
    return State(params, transform.init(widened(params)), jnp.zeros((), jnp.int32))


def steps_to_settle(optimizer: Optimizer, params: Any, batch_size: int) -> int:
    """Steps at rate 0 after which the optimizer's state has forgotten that it began empty."""
    state = jax.eval_shape(optimizer(1.0, batch_size, None).init, params)
    if not jax.tree.leaves(state):
        return 0
    return max(SETTLE, len(optimizer.weights(batch_size)))
