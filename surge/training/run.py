"""One training run as a pure function of its learning rate and key."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from surge.gradients.batch import mean_gradient, weighted
from surge.tasks import Task

DIVERGED = 1e3  # a loss this many times the starting loss counts as diverged, and so does one that is not finite


class State(NamedTuple):
    """A point of a run to go on from: parameters, optimizer state, steps done."""

    params: Any
    opt_state: Any
    step: jax.Array


class RunResult(NamedTuple):
    """loss [evals] on the evaluation subset, nan after the run's end; diverged, a bool; state at the end."""

    loss: jax.Array
    diverged: jax.Array
    state: State


Optimizer = Callable[[Any, Any, Any], optax.GradientTransformation]


def evaluate(task: Task, params: Any, evaluation: Any) -> jax.Array:
    """Mean loss on an evaluation batch."""
    if task.batch_loss is not None:
        return task.batch_loss(params, evaluation)
    return jax.vmap(task.loss, (None, 0))(params, evaluation).mean()


def batch_gradient(
    task: Task, params: Any, data: Any, key: jax.Array, batch_size: jax.Array | int, microbatch_size: int
) -> Any:
    """Gradient of the mean loss of one batch of a task, drawn by key; see `mean_gradient`.

    Args:
      task: whose `draw` and `loss` are used; with `batch_loss`, batch_size must be a multiple of microbatch_size.
      params, data, key, batch_size, microbatch_size: as for `mean_gradient`.
    """
    coupled = task.batch_loss

    def share(params: Any, examples: Any, weight: jax.Array) -> jax.Array:
        if coupled is None:
            return weighted(task.loss)(params, examples, weight)
        return coupled(params, examples) * microbatch_size / batch_size

    return mean_gradient(share, task.draw, params, data, key, batch_size, microbatch_size)


def make_train(
    task: Task, optimizer: Optimizer, *, microbatch_size: int, axis_name: Sequence[str] = ()
) -> Callable[..., RunResult]:
    """A whole training run as a pure function.

    Args:
      task: what is trained.
      optimizer: (learning_rate, batch_size, total_steps) -> optax transformation.
      microbatch_size: static number of examples per gradient; one program serves every batch size.
      axis_name: axes that the run will be mapped over by vmap. A run then goes on until every lane on these axes
        has ended, which keeps step counters and data draws common to all learning rates.

    Returns:
      train(learning_rate, key, batch_size, eval_steps, stop_loss, data, evaluation, start=None, limit=None)
      -> RunResult: trains to each step of eval_steps [evals] (absolute, increasing, all after start's) in turn and
      records the loss there; ends early at a loss of at most stop_loss, when diverged, or after `limit` of the
      evals (schedules still count to the last). start is a State, from initialisation if None: a run of any length
      branches from it, with the batches that the whole run would have seen.
    """

    def train(
        learning_rate: jax.Array,
        key: jax.Array,
        batch_size: jax.Array,
        eval_steps: jax.Array,
        stop_loss: jax.Array,
        data: Any,
        evaluation: Any,
        start: State | None = None,
        limit: jax.Array | int | None = None,
    ) -> RunResult:
        transform = optimizer(learning_rate, batch_size, eval_steps[-1])
        init_key, data_key = jax.random.split(key)
        if start is None:
            params = task.init(init_key)
            start = State(params, transform.init(params), jnp.zeros((), jnp.int32))
        start_loss = evaluate(task, start.params, evaluation)

        def step(index: jax.Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
            params, opt_state = carry
            step_key = jax.random.fold_in(data_key, index)
            gradient = batch_gradient(task, params, data, step_key, batch_size, microbatch_size)
            updates, opt_state = transform.update(gradient, opt_state, params)
            return optax.apply_updates(params, updates), opt_state

        def go_on(carry: tuple) -> jax.Array:
            index, _, ended, _, _ = carry
            running = (~ended).astype(jnp.int32)
            anyone = jax.lax.psum(running, tuple(axis_name)) if axis_name else running
            return (index < (len(eval_steps) if limit is None else limit)) & (anyone > 0)

        def segment(carry: tuple) -> tuple:
            index, state, ended, diverged, losses = carry
            since = jnp.where(index == 0, first_step, eval_steps[index - 1])
            params, opt_state = jax.lax.fori_loop(since, eval_steps[index], step, (state.params, state.opt_state))
            after = State(params, opt_state, eval_steps[index])
            state = jax.tree.map(lambda old, new: jnp.where(ended, old, new), state, after)
            loss = evaluate(task, state.params, evaluation)
            losses = losses.at[index].set(jnp.where(ended, jnp.nan, loss))
            broke = ~(loss <= DIVERGED * jnp.abs(start_loss))
            return index + 1, state, ended | broke | (loss <= stop_loss), diverged | broke, losses

        no = jnp.zeros((), bool)
        losses = jnp.full(eval_steps.shape, jnp.nan, start_loss.dtype)
        first_step = start.step
        _, state, _, diverged, losses = jax.lax.while_loop(
            go_on, segment, (jnp.zeros((), jnp.int32), start, no, no, losses)
        )
        return RunResult(losses, diverged, state)

    return train
