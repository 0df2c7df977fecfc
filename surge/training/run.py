"""One training run as a pure function of its learning rate and key."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from surge.gradients.batch import mean_gradient, weighted
from surge.optimizers import update
from surge.tasks import Task

DIVERGED = 1e3  # a loss this many times the starting loss counts as diverged, and so does one that is not finite


class State(NamedTuple):
    """A point of a run to go on from: parameters, optimizer state, steps done."""

    params: Any
    opt_state: Any
    step: jax.Array


class Run(NamedTuple):
    """A run so far.

    state, after the last step before the run's end; start_loss; loss [evals] on the evaluation
    subset, nan where not reached or after the end; ended, at the loss that was sought or diverged;
    diverged.
    """

    state: State
    start_loss: jax.Array
    loss: jax.Array
    ended: jax.Array
    diverged: jax.Array


Optimizer = Callable[[Any, Any, Any], optax.GradientTransformation]


def evaluate(task: Task, params: Any, evaluation: Any) -> jax.Array:
    """Mean loss on an evaluation batch."""
    if task.batch_loss is not None:
        return task.batch_loss(params, evaluation)
    return jax.vmap(task.loss, (None, 0))(params, evaluation).mean()


def batch_gradient(
    task: Task,
    params: Any,
    data: Any,
    key: jax.Array,
    batch_size: jax.Array | int,
    microbatch_size: int,
) -> Any:
    """Gradient of the mean loss of one batch of a task, drawn by key; see `mean_gradient`.

    Args:
      task: whose `draw` and `loss` are used; with `batch_loss`, batch_size must be a multiple of
        microbatch_size.
      params, data, key, batch_size, microbatch_size: as for `mean_gradient`.
    """
    coupled = task.batch_loss

    def share(params: Any, examples: Any, weight: jax.Array) -> jax.Array:
        if coupled is None:
            return weighted(task.loss)(params, examples, weight)
        return coupled(params, examples) * microbatch_size / batch_size

    return mean_gradient(share, task.draw, params, data, key, batch_size, microbatch_size)


def make_begin(task: Task, optimizer: Optimizer) -> Callable[..., Run]:
    """How a training run begins, as a pure function.

    Args:
      task: what is trained.
      optimizer: (learning_rate, batch_size, total_steps) -> optax transformation.

    Returns:
      begin(learning_rate, key, batch_size, eval_steps, evaluation, start=None) -> Run: start is a
        State, from
      initialisation if None. A run branches from it with the batches that the whole run would have
      seen.
    """

    def begin(
        learning_rate: jax.Array,
        key: jax.Array,
        batch_size: jax.Array,
        eval_steps: jax.Array,
        evaluation: Any,
        start: State | None = None,
    ) -> Run:
        if start is None:
            params = task.init(jax.random.split(key)[0])
            transform = optimizer(learning_rate, batch_size, eval_steps[-1])
            start = State(params, transform.init(params), jnp.zeros((), jnp.int32))
        loss, no = evaluate(task, start.params, evaluation), jnp.zeros((), bool)
        return Run(start, loss, jnp.full(eval_steps.shape, jnp.nan, loss.dtype), no, no)

    return begin


def make_advance(
    task: Task, optimizer: Optimizer, *, microbatch_size: int, axis_name: Sequence[str] = ()
) -> Callable[..., Run]:
    """How a training run gets further, as a pure function.

    Args:
      task, optimizer: those that it began with.
      microbatch_size: static number of examples per gradient; one program serves every batch size.
      axis_name: axes that the run will be mapped over by vmap. A run then goes on until every lane
        on these axes has ended, which keeps step counters and data draws common to all learning
        rates.

    Returns:
      advance(run, learning_rate, key, batch_size, eval_steps, stop_loss, data, evaluation, since,
        until) -> Run: from
      step `since`, where the run has got to, to step `until`; records the loss at those of
      eval_steps [evals] (absolute, increasing, all after start's) that it passes; ends early at a
      loss of at most stop_loss, or diverged. How a run is cut into advances does not change a bit
      of it.
    """

    def advance(
        run: Run,
        learning_rate: jax.Array,
        key: jax.Array,
        batch_size: jax.Array,
        eval_steps: jax.Array,
        stop_loss: jax.Array,
        data: Any,
        evaluation: Any,
        since: jax.Array,
        until: jax.Array,
    ) -> Run:
        transform = optimizer(learning_rate, batch_size, eval_steps[-1])
        data_key = jax.random.split(key)[1]

        def step(index: jax.Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
            params, opt_state = carry
            step_key = jax.random.fold_in(data_key, index)
            gradient = batch_gradient(task, params, data, step_key, batch_size, microbatch_size)
            updates, opt_state = update(transform, gradient, opt_state, params)
            return optax.apply_updates(params, updates), opt_state

        def go_on(carry: tuple[jax.Array, Run]) -> jax.Array:
            now, run = carry
            running = (~run.ended).astype(jnp.int32)
            anyone = jax.lax.psum(running, tuple(axis_name)) if axis_name else running
            return (now < until) & (anyone > 0)

        def segment(carry: tuple[jax.Array, Run]) -> tuple[jax.Array, Run]:
            now, run = carry
            index = (eval_steps <= now).sum()
            end = jnp.minimum(eval_steps[index], until)
            params, opt_state = jax.lax.fori_loop(
                now, end, step, (run.state.params, run.state.opt_state)
            )
            after = State(params, opt_state, end)
            run = run._replace(
                state=jax.tree.map(
                    lambda old, new: jnp.where(run.ended, old, new), run.state, after
                )
            )
            return end, jax.lax.cond(
                end == eval_steps[index], record, lambda run, _: run, run, index
            )

        def record(run: Run, index: jax.Array) -> Run:
            loss = evaluate(task, run.state.params, evaluation)
            broke = ~(loss <= DIVERGED * jnp.abs(run.start_loss))
            return run._replace(
                loss=run.loss.at[index].set(jnp.where(run.ended, jnp.nan, loss)),
                ended=run.ended | broke | (loss <= stop_loss),
                diverged=run.diverged | broke,
            )

        return jax.lax.while_loop(go_on, segment, (since, run))[1]

    return advance


def make_train(task: Task, optimizer: Optimizer, *, microbatch_size: int) -> Callable[..., Run]:
    """A whole run as one pure function.

    Args: those of `make_advance`.

    Returns:
      train(learning_rate, key, batch_size, eval_steps, stop_loss, data, evaluation, start=None) ->
        Run, to the last
      of eval_steps.
    """
    begin, advance = (
        make_begin(task, optimizer),
        make_advance(task, optimizer, microbatch_size=microbatch_size),
    )

    def train(
        learning_rate: jax.Array,
        key: jax.Array,
        batch_size: jax.Array,
        eval_steps: jax.Array,
        stop_loss: jax.Array,
        data: Any,
        evaluation: Any,
        start: State | None = None,
    ) -> Run:
        shared = learning_rate, key, batch_size, eval_steps
        run = begin(*shared, evaluation, start)
        return advance(run, *shared, stop_loss, data, evaluation, run.state.step, eval_steps[-1])

    return train
