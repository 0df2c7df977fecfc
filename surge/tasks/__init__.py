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
      data: pytree of arrays that `draw` picks from; passed as an argument, never baked into a program.
      draw: (data, key) -> one training example, independent for each key (sampling with replacement,
        as the theory assumes). Example i of step t of a run uses fold_in(fold_in(run_key, t), i), so the
        batches of one seed are nested across batch sizes and do not depend on how a batch is split.
      evaluation: pytree of training examples with a leading axis: the fixed subset that losses are reported on.
      batch_loss: (params, batch) -> scalar, only for models whose batch loss is not the mean of single
        losses (BatchNorm); None otherwise. Such a task has no per-example gradients.
    """

    init: Callable[[jax.Array], Any]
    loss: Callable[[Any, Any], jax.Array]
    data: Any
    draw: Callable[[Any, jax.Array], Any]
    evaluation: Any
    batch_loss: Callable[[Any, Any], jax.Array] | None = None


def draw_from_arrays(data: Any, key: jax.Array) -> Any:
    """One uniformly drawn row of a pytree of arrays that share their leading axis."""
    count = jax.tree.leaves(data)[0].shape[0]
    index = jax.random.randint(key, (), 0, count)
    return jax.tree.map(lambda array: jnp.asarray(array)[index], data)


def first_rows(data: Any, count: int, name: str) -> Any:
    """The first `count` rows of a pytree of arrays: what losses are reported on.

    Raises:
      ValueError: there are fewer.
    """
    held = jax.tree.leaves(data)[0].shape[0]
    if held < count:
        raise ValueError(f"{name} has {held} rows, fewer than evaluation_examples={count}")
    return jax.tree.map(lambda array: array[:count], data)


def make_task(function: str, **kwargs: Any) -> Task:
    """Calls the function named `module:function` and returns the Task that it builds.

    Raises:
      ValueError: the name has no colon, or names no function that can be imported.
    """
    module_name, colon, name = function.partition(":")
    if not colon:
        raise ValueError(f"config.task must read module:function, like surge.tasks.mlp:mnist1d; got {function!r}")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(f"config.task {function!r}: {error}; the module must be importable from here") from error
    if not hasattr(module, name):
        raise ValueError(f"config.task {function!r}: module {module_name} has no function {name}")
    return getattr(module, name)(**kwargs)
