"""One step of training: the gradient of a batch, the optimizer's update of it, new parameters."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from surge import optimizers
from surge.gradients.batch import mean_gradient, weighted
from surge.gradients.curvature import widened
from surge.gradients.signals import example_moments, gradients_elsewhere
from surge.tasks import Task
from surge.training.arm import Arm, Controlled

# One of surge.optimizers, or a plain function that makes an optax transformation.
Optimizer = Callable[[Any, Any, Any], optax.GradientTransformation]


class Cell(NamedTuple):
    """What a run has of its own; all may be traced.

    Attributes:
      learning_rate: of the optimizer.
      key: of the initial parameters and of all batches.
      batch_size: examples B a step.
      eval_steps: [evals], absolute and increasing, where the loss is recorded; the last ends the
        run, and is the horizon of its schedule.
      max_examples: of a run whose batch size moves, which ends at the evaluation after them.
    """

    learning_rate: Any
    key: Any
    batch_size: Any
    eval_steps: Any
    max_examples: Any = None


def batch_gradient(
    task: Task,
    params: Any,
    data: Any,
    key: jax.Array,
    batch_size: jax.Array | int,
    microbatch_size: int,
    devices: str | None = None,
) -> Any:
    """Gradient of the loss of one batch of a task, drawn by key; see `mean_gradient`.

    Args:
      task: whose `draw` and `loss` are used; with `batch_loss`, batch_size must be a multiple of
        microbatch_size.
      params, data, key, batch_size, microbatch_size, devices: as for `mean_gradient`.
    """
    coupled = task.batch_loss

    def share(params: Any, examples: Any, weight: jax.Array) -> jax.Array:
        if coupled is None:
            return weighted(task.loss)(params, examples, weight)
        return coupled(params, examples) * microbatch_size / batch_size

    batch = data, key, batch_size, microbatch_size
    draw = task.draw
    return mean_gradient(share, draw, params, *batch, devices=devices, weigh=task.weight)


def _with_signals(
    optimizer: Any,
    arm: Arm | None,
    task: Task,
    params: Any,
    data: Any,
    key: jax.Array,
    batch_size: jax.Array | int,
    microbatch_size: int,
    devices: str | None,
) -> tuple[Any, dict[str, Any]]:
    """The gradient of one batch, and what an optimizer and an arm ask for beside it.

    Signals of single examples are taken on every device, whole.

    Raises:
      ValueError: it asks of single examples where the task has only a loss of batches, or for what
        a step does not have.
    """
    batch = data, key, batch_size, microbatch_size
    ours = isinstance(optimizer, optimizers.Optimizer)
    needs = set(optimizer.needs if ours else ())
    asked = set(arm.needs if arm else ())
    if not needs | asked:
        return batch_gradient(task, params, *batch, devices), {}
    if task.batch_loss is not None:
        spec = arm.spec if arm and asked else optimizer.spec
        raise ValueError(
            f"{spec} needs the loss of single examples, and the examples of this task"
            " are coupled (batch_loss)"
        )
    if task.weight is not None:
        spec = arm.spec if arm and asked else optimizer.spec
        raise ValueError(
            f"{spec} needs examples that count alike, and those of this task have a weight"
        )
    if unknown := needs - {"moments", "gradient_fn"}:
        raise ValueError(f"{optimizer.spec} needs {unknown.pop()}, which training does not supply")
    signals: dict[str, Any] = {}
    if "gradient_fn" in needs:
        signals["gradient_fn"] = gradients_elsewhere(task.loss, task.draw, *batch)
    if "moments" not in needs and not asked:
        return batch_gradient(task, params, *batch, devices), signals
    point = task.loss, task.draw, params
    norm_batch = optimizer.norm_batch if ours else 1
    gradient, moments = example_moments(*point, *batch, norm_batch, inner="inner" in asked)
    return gradient, signals | {"moments": moments}


def _moved(
    transform: optax.GradientTransformation,
    gradient: Any,
    opt_state: Any,
    params: Any,
    signals: dict[str, Any],
) -> tuple[Any, Any]:
    """New parameters and state; the optimizer sees float32 whatever the parameters are."""
    wide = widened(gradient), opt_state, widened(params)
    updates, opt_state = optimizers.update(transform, *wide, **signals)
    return optax.apply_updates(params, updates), opt_state


def make_step(
    task: Task,
    optimizer: Optimizer,
    cell: Cell,
    data: Any,
    *,
    microbatch_size: int,
    arm: Arm | None = None,
    devices: str | None = None,
) -> Callable[[jax.Array, tuple[Any, Any]], tuple[Any, Any]]:
    """The step of one run.

    Args:
      task, optimizer, microbatch_size, arm, devices: as for `surge.training.run.make_advance`.
      cell: of the run.
      data: that batches are drawn from.

    Returns:
      step(index, (params, opt_state)) -> (params, opt_state), on batch number `index` of the run.
    """
    if arm is not None:
        return _make_moving_step(task, optimizer, arm, cell, data, microbatch_size, devices)
    # Outside of the step, so that a loop over steps makes them once.
    transform = optimizer(cell.learning_rate, cell.batch_size, cell.eval_steps[-1])
    data_key = jax.random.split(cell.key)[1]

    def step(index: jax.Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        params, opt_state = carry
        key = jax.random.fold_in(data_key, index)
        batch = data, key, cell.batch_size, microbatch_size, devices
        gradient, signals = _with_signals(optimizer, None, task, params, *batch)
        return _moved(transform, gradient, opt_state, params, signals)

    return step


def _make_moving_step(
    task: Task,
    optimizer: Optimizer,
    arm: Arm,
    cell: Cell,
    data: Any,
    microbatch_size: int,
    devices: str | None,
) -> Callable[[jax.Array, tuple[Any, Any]], tuple[Any, Any]]:
    """A step of the batch size and rate that the last one chose."""
    data_key = jax.random.split(cell.key)[1]

    def step(index: jax.Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        params, (opt_state, control) = carry
        key = jax.random.fold_in(data_key, index)
        batch = data, key, control.batch_size, microbatch_size, devices
        rate = cell.learning_rate * control.rate
        transform = optimizer(rate, control.batch_size, cell.eval_steps[-1])
        gradient, signals = _with_signals(optimizer, arm, task, params, *batch)
        moments = signals.get("moments")
        moved, opt_state = _moved(transform, gradient, opt_state, params, signals)
        chosen = arm.update(control, gradient, moments, cell.max_examples)
        # A run without examples left waits for its evaluation as it is.
        after = moved, Controlled(opt_state, chosen)
        return jax.tree.map(lambda old, new: jnp.where(control.spent, old, new), carry, after)

    return step
