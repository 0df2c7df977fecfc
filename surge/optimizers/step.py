"""One step of an optimizer: the signals that it may ask for beside the mean gradient."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax


class ExampleMoments(NamedTuple):
    """What the gradients g_n of the single examples of one batch say beside their mean G.

    Attributes:
      square: mean of g_n² over examples, a pytree like params.
      norm: mean of |g_n| of each array of params, a pytree of scalars.
      inner: variance of ⟨g_n, G⟩ over examples, with B − 1; None where nobody asked.
      count: examples in the batch B, of all devices together.
      square_norm: mean of |g_n|² of each array of params, a pytree of scalars.
    """

    square: Any
    norm: Any
    inner: Any
    count: Any
    square_norm: Any = None


def update(
    transform: optax.GradientTransformation,
    gradients: Any,
    state: Any,
    params: Any,
    *,
    value: jax.Array | None = None,
    moments: ExampleMoments | None = None,
    gradient_fn: Callable[..., Any] | None = None,
) -> tuple[Any, Any]:
    """Updates and new state: the one place that calls `transform.update`.

    Args:
      transform: any optax transformation; signals that it has no use for are dropped.
      gradients: mean gradient of the batch.
      state: of transform.
      params: where the gradient was taken.
      value: loss of the batch.
      moments: of the gradients of its single examples.
      gradient_fn: params -> mean gradient of the same batch there.

    Raises:
      ValueError: transform needs a signal that is not given.
    """
    signals = {"value": value, "moments": moments, "gradient_fn": gradient_fn}
    given = {name: signal for name, signal in signals.items() if signal is not None}
    return optax.with_extra_args_support(transform).update(gradients, state, params, **given)


def needed(signal: Any, name: str, optimizer: str) -> Any:
    """A signal that an optimizer cannot do without.

    Raises:
      ValueError: it is None.
    """
    if signal is None:
        raise ValueError(
            f"{optimizer} needs {name} beside the mean gradient, and this step supplies none:"
            f" call update(..., {name}=...)"
        )
    return signal
