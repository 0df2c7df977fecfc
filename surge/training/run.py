"""One training run as a pure function of its cell: how it begins, and how it gets further."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from surge.gradients.curvature import widened
from surge.tasks import Task
from surge.training.arm import Arm, Controlled
from surge.training.step import Cell, Optimizer, make_step

# A loss this many times the starting loss counts as diverged, and so does one that is not finite.
DIVERGED = 1e3
NEVER = 2**31 - 1  # a step that no run gets to


class Shared(NamedTuple):
    """What all runs of a grid have in common.

    Attributes:
      stop_loss: a run ends at a loss of at most this; -inf for never.
      data: that batches are drawn from.
      evaluation: examples whose mean loss is recorded.
      half: examples, half of those, whose mean loss is recorded as well; None for none.
      further_steps: that a run goes on for after stop_loss; None for none.
    """

    stop_loss: Any
    data: Any
    evaluation: Any
    half: Any = None
    further_steps: Any = None


class State(NamedTuple):
    """A point of a run to go on from: parameters, optimizer state (of an arm: `Controlled`), steps
    done."""

    params: Any
    opt_state: Any
    step: jax.Array


class Run(NamedTuple):
    """A run so far.

    Attributes:
      state: after the last step before the run's end.
      start_loss: on the evaluation subset, before the first step.
      loss: [evals] on the evaluation subset; nan where not reached, or after the end.
      examples: [evals] trained on since the evaluation before; 0 where none were. Counted between
        evaluations, since the sum over a long run may have no room in 32 bits.
      ended: at the loss that was sought, or diverged.
      diverged: the loss stopped being finite, or was DIVERGED times the start's.
      half_loss: [evals] on one half of the evaluation subset; None where it is not recorded.
      met: step at which the loss that was sought was first met, NEVER before; None where a run
        ends there.
    """

    state: State
    start_loss: jax.Array
    loss: jax.Array
    examples: jax.Array
    ended: jax.Array
    diverged: jax.Array
    half_loss: Any = None
    met: Any = None


def evaluate(task: Task, params: Any, evaluation: Any) -> jax.Array:
    """Mean loss on an evaluation batch, over its tokens where examples have weights.

    In float32 or better, as it is written: a mean of bfloat16 losses has two digits.
    """
    if task.batch_loss is not None:
        return widened(task.batch_loss(params, evaluation))
    losses = widened(jax.vmap(task.loss, (None, 0))(params, evaluation))
    if task.weight is None:
        return losses.mean()
    weights = jax.vmap(task.weight)(evaluation)
    return weights @ losses / weights.sum()


def make_begin(task: Task, optimizer: Optimizer, arm: Arm | None = None) -> Callable[..., Run]:
    """How a training run begins, as a pure function.

    Args:
      task: what is trained.
      optimizer: (learning_rate, batch_size, total_steps) -> optax transformation.
      arm: that moves its batch size; None for none.

    Returns:
      begin(cell, shared, start=None) -> Run. start is a State that the run branches from, with the
      batches that the whole run would have seen; None is initialisation.
    """

    def begin(cell: Cell, shared: Shared, start: State | None = None) -> Run:
        if start is None:
            params = task.init(jax.random.split(cell.key)[0])
            transform = optimizer(cell.learning_rate, cell.batch_size, cell.eval_steps[-1])
            opt_state = transform.init(widened(params))  # averages of bfloat16 would stand still
            start = State(params, opt_state, jnp.zeros((), jnp.int32))
        if arm is not None and not isinstance(start.opt_state, Controlled):
            controlled = Controlled(start.opt_state, arm.begin(cell.batch_size))
            start = start._replace(opt_state=controlled)
        evals = cell.eval_steps.shape
        loss = evaluate(task, start.params, shared.evaluation)
        unknown = jnp.full(evals, jnp.nan, loss.dtype)
        return Run(
            state=start,
            start_loss=loss,
            loss=unknown,
            examples=jnp.zeros(evals, jnp.uint32),
            ended=jnp.zeros((), bool),
            diverged=jnp.zeros((), bool),
            half_loss=None if shared.half is None else unknown,
            met=None if shared.further_steps is None else jnp.int32(NEVER),
        )

    return begin


def make_advance(
    task: Task,
    optimizer: Optimizer,
    *,
    microbatch_size: int,
    axis_name: Sequence[str] = (),
    arm: Arm | None = None,
    devices: str | None = None,
) -> Callable[..., Run]:
    """How a training run gets further, as a pure function.

    Args:
      task, optimizer: those that it began with.
      microbatch_size: static number of examples per gradient; one program serves every batch size.
      axis_name: axes that the run will be mapped over by vmap. A run then goes on until every lane
        on these axes has ended, which keeps step counters and data draws common to all lanes.
      arm: that it began with. Its run ends when its examples are used up.
      devices: a mapped axis whose devices share the micro-batches of this one run, each with a
        copy of its state; None: the run is on one device.

    Returns:
      advance(run, cell, shared, since, until) -> Run, from step `since`, where the run has got to,
      to step `until`. It records the loss at those of the cell's eval_steps (all after start's)
      that it passes, and ends early at a loss of at most stop_loss, or diverged. How a run is cut
      into advances does not change a bit of it; a cell of another batch size changes it from there.
    """

    def advance(run: Run, cell: Cell, shared: Shared, since: jax.Array, until: jax.Array) -> Run:
        options: dict[str, Any] = {"arm": arm, "devices": devices}
        size = microbatch_size
        step = make_step(task, optimizer, cell, shared.data, microbatch_size=size, **options)
        batch_size = jnp.asarray(cell.batch_size).astype(jnp.uint32)

        def go_on(carry: tuple[jax.Array, Run]) -> jax.Array:
            now, run = carry
            running = (~run.ended).astype(jnp.int32)
            anyone = jax.lax.psum(running, tuple(axis_name)) if axis_name else running
            return (now < until) & (anyone > 0)

        def segment(carry: tuple[jax.Array, Run]) -> tuple[jax.Array, Run]:
            """To the next evaluation, or to `until` where that comes first."""
            now, run = carry
            index = (cell.eval_steps <= now).sum()
            end = jnp.minimum(cell.eval_steps[index], until)
            params, opt_state = jax.lax.fori_loop(now, end, step, run.state[:2])
            after = State(params, opt_state, end)
            if arm is None:
                trained = (end - now).astype(jnp.uint32) * batch_size
            else:
                trained = opt_state.control.examples - run.state.opt_state.control.examples
            # A lane that has ended goes along with the others, and keeps what it ended with.
            run = run._replace(
                state=jax.tree.map(lambda a, b: jnp.where(run.ended, a, b), run.state, after),
                examples=run.examples.at[index].add(jnp.where(run.ended, 0, trained)),
            )
            at_eval = end == cell.eval_steps[index]
            return end, jax.lax.cond(at_eval, record, lambda run, _: run, run, index)

        def record(run: Run, index: jax.Array) -> Run:
            loss = evaluate(task, run.state.params, shared.evaluation)
            broke = ~(loss <= DIVERGED * jnp.abs(run.start_loss))
            arrived = loss <= shared.stop_loss
            if shared.half is not None:
                half = evaluate(task, run.state.params, shared.half)
                half = jnp.where(run.ended, jnp.nan, half)
                run = run._replace(half_loss=run.half_loss.at[index].set(half))
            if shared.further_steps is not None:
                met = jnp.where(arrived, jnp.minimum(run.met, run.state.step), run.met)
                arrived = run.state.step - met >= shared.further_steps
                run = run._replace(met=met)
            ended = run.ended | broke | arrived
            if arm is not None:
                ended |= run.state.opt_state.control.spent
            return run._replace(
                loss=run.loss.at[index].set(jnp.where(run.ended, jnp.nan, loss)),
                ended=ended,
                diverged=run.diverged | broke,
            )

        return jax.lax.while_loop(go_on, segment, (since, run))[1]

    return advance


def make_train(task: Task, optimizer: Optimizer, *, microbatch_size: int) -> Callable[..., Run]:
    """A whole run as one pure function.

    Args: those of `make_advance`.

    Returns:
      train(cell, shared, start=None) -> Run, to the last of the cell's eval_steps.
    """
    begin = make_begin(task, optimizer)
    advance = make_advance(task, optimizer, microbatch_size=microbatch_size)

    def train(cell: Cell, shared: Shared, start: State | None = None) -> Run:
        run = begin(cell, shared, start)
        return advance(run, cell, shared, run.state.step, cell.eval_steps[-1])

    return train
