"""Parameters narrower than float32, and the float32 ones that learn in their stead."""

from collections.abc import Callable
from typing import Any

import jax

from surge.gradients.curvature import cast_like, widened
from surge.tasks import Task

Loss = Callable[[Any, Any], jax.Array]


def with_master_weights(task: Task) -> Task:
    """The task with float32 parameters, which its losses see rounded to their own dtypes.

    A step that is smaller than the last digit of a parameter is kept until steps add up to it;
    without master weights it is lost, and the best learning rate is one that rounding lets through
    (Micikevicius et al., arXiv 1710.03740). A task without narrow parameters is returned as it is.
    """
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    if jax.eval_shape(widened, shapes) == shapes:
        return task

    def init(key: jax.Array) -> Any:
        return widened(task.init(key))

    def rounded(loss: Loss) -> Loss:
        return lambda params, examples: loss(cast_like(params, shapes), examples)

    coupled = task.batch_loss
    return task._replace(
        init=init,
        loss=rounded(task.loss),
        batch_loss=None if coupled is None else rounded(coupled),
    )
