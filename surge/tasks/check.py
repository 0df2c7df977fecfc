"""What a task or a model of one's own must be, checked by shapes: each mistake is a sentence."""

import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from surge.tasks import Task, draw_from_arrays

OURS = tuple(str(Path(module).parent) for module in (__file__, jax.__file__))
KEEP_OUT = "close over it in the loss, or keep it out (equinox.partition, nnx.split)"


class TaskError(ValueError):
    """A task that cannot be trained or measured; the message is for the user."""


def check_task(task: Task) -> None:
    """Traces init, draw and the loss of a task.

    Raises:
      TaskError: one of them raises, parameters are no real floating arrays, the loss is no real
        scalar, or data and evaluation are empty or of unlike lengths.
    """
    key = jax.random.key(0)
    params = _traced("the task's init", task.init, key)
    check_params(params)
    if task.draw is draw_from_arrays:
        _length("the task's data", task.data)
    _length("the task's evaluation", task.evaluation)
    example = _traced("the task's draw", task.draw, task.data, key)
    held = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), task.evaluation
    )
    if _form(held) != _form(example):
        raise TaskError(
            f"an example of the task's evaluation is {_form(held)} where draw makes "
            f"{_form(example)}: both must be of one form"
        )
    if task.batch_loss is None:
        check_loss(task.loss, params, example)
        if task.weight is not None:
            check_weight(task.weight, example)
        return
    if task.weight is not None:
        raise TaskError(
            "the task has a weight and a batch_loss: leave out the weight, and weigh the examples "
            "in batch_loss"
        )
    coupled = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((task.ghost, *leaf.shape), leaf.dtype), example
    )
    _check_scalar("the task's batch_loss", _traced("batch_loss", task.batch_loss, params, coupled))


def check_params(params: Any) -> None:
    """Raises TaskError where a leaf of params is no real floating array.

    Args:
      params: pytree of arrays or their shapes.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not leaves:
        raise TaskError("params hold no arrays: give the pytree that the loss is differentiated by")
    for path, leaf in leaves:
        name = f"params{jax.tree_util.keystr(path)}"
        if not hasattr(leaf, "dtype"):
            raise TaskError(f"{name} is a {type(leaf).__name__}, no array: {KEEP_OUT}")
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            raise TaskError(
                f"{name} is {leaf.dtype}: parameters must be real; give the real and imaginary "
                "parts as two arrays"
            )
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TaskError(f"{name} is {leaf.dtype}, which has no gradient: {KEEP_OUT}")


def check_loss(loss_fn: Callable[[Any, Any], Any], params: Any, example: Any) -> None:
    """Raises TaskError where the loss of one example raises or is no real floating scalar."""
    hint = "; it is given ONE example, arrays without their leading axis"
    _check_scalar("loss_fn", _traced("loss_fn", loss_fn, params, example, hint=hint))


def check_weight(weigh: Callable[[Any], Any], example: Any) -> None:
    """Raises TaskError where the weight of one example raises or is no real scalar."""
    weight = _traced("weight", weigh, example, hint="; it is given ONE example")
    number = hasattr(weight, "dtype") and jnp.issubdtype(weight.dtype, jnp.number)
    real = number and not jnp.issubdtype(weight.dtype, jnp.complexfloating)
    if not real or weight.shape:
        raise TaskError(
            "weight must return one real number, how much an example counts; it returns "
            f"{_form(weight)}"
        )


def _check_scalar(name: str, loss: Any) -> None:
    if not hasattr(loss, "shape"):
        raise TaskError(
            f"{name} must return a scalar, the loss of one example; it returns "
            f"{_form(loss)}: leave out auxiliary outputs"
        )
    if loss.shape:
        raise TaskError(
            f"{name} must return a scalar, the loss of one example; it returns shape {loss.shape}"
        )
    if not jnp.issubdtype(loss.dtype, jnp.floating):
        raise TaskError(f"{name} must return a real floating number; it returns {loss.dtype}")


def as_params(params: Any) -> Any:
    """Parameters as arrays: of numpy, of torch, Python floats.

    Raises:
      TaskError: a leaf is no real floating array.
    """
    arrays = jax.tree.map(
        lambda leaf: np.float32(leaf) if type(leaf) is float else _from_torch(leaf), params
    )
    check_params(arrays)
    return jax.tree.map(jnp.asarray, arrays)


def as_examples(batches: Iterable[Any]) -> Any:
    """All batches as one pytree of arrays with a common leading axis.

    Raises:
      TaskError: no batches, batches of unlike form, leaves that are no arrays of numbers, or arrays
        of one batch of unlike lengths.
    """
    if isinstance(batches, Mapping) or hasattr(batches, "shape"):
        raise TaskError("batches must be an iterable of batches: give a single one as [batch]")
    if not isinstance(batches, Iterable):
        raise TaskError(f"batches must be an iterable of batches, got {type(batches).__name__}")
    given = [jax.tree.map(_from_torch, batch) for batch in batches]
    if not given:
        raise TaskError("the batches hold 0 examples: give at least one batch")
    for batch in given:
        _length("a batch", batch)
    forms = {_form(jax.tree.map(lambda leaf: leaf[:1], batch)) for batch in given}
    if len(forms) > 1:
        raise TaskError(
            f"batches must be of one form, got {' and '.join(sorted(forms))}: give a single batch "
            "as [batch]"
        )
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *given)


def _from_torch(leaf: Any) -> Any:
    return leaf.detach().cpu().numpy() if hasattr(leaf, "detach") else leaf


def _length(name: str, batch: Any) -> int:
    """The leading axis that the arrays of a batch share, at least 1."""
    lengths = set()
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        where = f"{name} {jax.tree_util.keystr(path)}".rstrip()
        if not hasattr(leaf, "dtype") or not leaf.shape:
            raise TaskError(
                f"{where} is a {type(leaf).__name__} without a leading axis: every leaf must be an "
                "array with one row an example"
            )
        if not isinstance(leaf, jax.Array) and np.dtype(leaf.dtype).kind not in "biufcV":
            raise TaskError(f"{where} is an array of {leaf.dtype}, not of numbers: leave it out")
        lengths.add(leaf.shape[0])
    if len(lengths) > 1:
        raise TaskError(
            f"the arrays of {name} must share their leading axis, got lengths {sorted(lengths)}"
        )
    if not lengths or lengths == {0}:
        raise TaskError(f"{name} is empty: it must hold at least one example")
    return lengths.pop()


def _form(tree: Any) -> str:
    """Structure and shapes in one text."""
    return str(jax.tree.map(lambda leaf: getattr(leaf, "shape", type(leaf).__name__), tree))


def _traced(name: str, function: Callable[..., Any], *args: Any, hint: str = "") -> Any:
    """The shapes that a user's function returns.

    Raises:
      TaskError: it raises; the message ends in the user's own frames.
    """
    try:
        return jax.eval_shape(function, *args)
    except Exception as error:
        frames = [
            frame
            for frame in traceback.extract_tb(error.__traceback__)
            if not frame.filename.startswith(OURS) and "site-packages" not in frame.filename
        ]
        first_line = str(error).strip().partition("\n")[0]
        where = "".join(traceback.format_list(frames)).rstrip()
        raise TaskError(
            f"{name} raises {type(error).__name__}: {first_line}{hint}\n{where}".rstrip()
        ) from error
