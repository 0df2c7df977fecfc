"""What is trained. A `Task` is the one interface that measuring and sweeping meet at."""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Task(NamedTuple):
    """A training problem, given by the loss of ONE example.

    Attributes:
      init: key -> params, a pytree of arrays.
      loss: (params, example) -> scalar loss of one example.
      data: pytree of arrays that `draw` picks from; passed as an argument, never baked into a
        program.
      draw: (data, key) -> one training example, independent for each key (sampling with
        replacement, as the theory assumes). Example i of step t of a run uses
        fold_in(fold_in(run_key, t), i), so the batches of one seed are nested across batch sizes
        and do not depend on how a batch is split.
      evaluation: pytree of training examples with a leading axis: the fixed subset that losses are
        reported on.
      batch_loss: (params, batch) -> scalar, only for models whose batch loss is not the mean of
        single losses (BatchNorm); None otherwise. Such a task has no per-example gradients. See
        `by_ghosts`.
      ghost: examples that batch_loss couples. Batch sizes and the evaluation are multiples of it,
        so that the coupling is the same whatever the batch size and however a batch is split.
      weight: example -> how much its loss counts, at least 0, such as its tokens: the loss of a
        batch is then Σ weight · loss / Σ weight, the mean over all tokens where `loss` is that over
        one example's. None: examples count alike, whatever their lengths.
      rows: how many different examples `draw` picks among, where that is not the rows of `data`;
        None where it is not known or has no end.
    """

    init: Callable[[jax.Array], Any]
    loss: Callable[[Any, Any], jax.Array]
    data: Any
    draw: Callable[[Any, jax.Array], Any]
    evaluation: Any
    batch_loss: Callable[[Any, Any], jax.Array] | None = None
    ghost: int = 16
    rows: int | None = None
    weight: Callable[[Any], jax.Array] | None = None


def by_ghosts(loss: Callable[[Any, Any], jax.Array], ghost: int) -> Callable[[Any, Any], jax.Array]:
    """Mean of a loss of coupled examples over ghost batches: a `Task.batch_loss`.

    Source: Hoffer et al., arXiv 1705.08741.

    Args:
      loss: (params, ghost batch) -> scalar.
      ghost: examples in a ghost batch; what the result is given is split in order, and must be a
        multiple.

    Raises:
      ValueError: ghost is not a whole number of at least 1.
    """
    if not isinstance(ghost, int) or ghost < 1:
        raise ValueError(f"ghost must be a whole number of at least 1, got {ghost!r}")

    def batch_loss(params: Any, batch: Any) -> jax.Array:
        return jax.vmap(loss, (None, 0))(params, _split(batch, ghost)).mean()

    return batch_loss


def ghost_batches(task: Task) -> Task:
    """The same problem with a ghost batch in the place of an example.

    A batch of B examples is one of B/ghost independent ghost batches whose losses are averaged:
    what is measured of single examples elsewhere is measured of these where single gradients do not
    exist (mini-batch moments).

    Args:
      task: with a batch_loss.
    """

    def draw(data: Any, key: jax.Array) -> Any:
        return jax.vmap(task.draw, (None, 0))(data, jax.random.split(key, task.ghost))

    assert task.batch_loss is not None
    return Task(task.init, task.batch_loss, task.data, draw, _split(task.evaluation, task.ghost))


def _split(batch: Any, size: int) -> Any:
    return jax.tree.map(lambda leaf: leaf.reshape(-1, size, *leaf.shape[1:]), batch)


def count_rows(batch: Any) -> int:
    """Length of the leading axis that the arrays of a pytree share."""
    return jax.tree.leaves(batch)[0].shape[0]


def draw_from_arrays(data: Any, key: jax.Array) -> Any:
    """One uniformly drawn row of a pytree of arrays that share their leading axis."""
    index = jax.random.randint(key, (), 0, count_rows(data))
    return jax.tree.map(lambda array: jnp.asarray(array)[index], data)


def first_rows(data: Any, count: int, name: str) -> Any:
    """The first `count` rows of a pytree of arrays: what losses are reported on.

    Raises:
      ValueError: there are fewer.
    """
    if (held := count_rows(data)) < count:
        raise ValueError(f"{name} has {held} rows, fewer than evaluation_examples={count}")
    return jax.tree.map(lambda array: array[:count], data)


def make_task(function: str, **kwargs: Any) -> Task:
    """Calls the function named `module:function` and returns the Task that it builds.

    Raises:
      ValueError: the name has no colon, names no function that can be imported, or one that
        returns no Task.
    """
    module_name, colon, name = function.partition(":")
    if not colon:
        raise ValueError(
            f"config.task must read module:function, like surge.tasks.mlp:mnist1d; got {function!r}"
        )
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"config.task {function!r}: {error}; the module must be importable from here"
        ) from error
    if not hasattr(module, name):
        raise ValueError(f"config.task {function!r}: module {module_name} has no function {name}")
    task = getattr(module, name)(**kwargs)
    if not isinstance(task, Task):
        raise ValueError(
            f"config.task {function!r} must return a surge.tasks.Task, not {type(task).__name__}"
        )
    return task
