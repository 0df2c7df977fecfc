"""All that surge must know of an optimizer, in one record."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

TAIL = 5e-3  # a step that weighs less than this share of the newest is left out of `weights`
LATE = 10**6  # steps after which a bias correction is over
HISTORY = 1_000  # steps behind the settled state of an optimizer whose state never comes to rest
PROBE = {"kernel": (2, 3), "bias": (3,)}  # shapes that tell whether a transformation has a state


class Stationary(NamedTuple):
    """Gradients that have had the same moments for long.

    Attributes:
      first: E G of the mean gradient of a batch, a pytree like params.
      second: E G² of it, likewise.
      params: where they are taken.
      batch_size: B, examples in a batch.
    """

    first: Any
    second: Any
    params: Any
    batch_size: Any

    def example_second(self) -> Any:
        """E g² of the gradient of a single example, whose variance is B times a batch's."""
        return jax.tree.map(
            lambda first, second: first**2 + self.batch_size * (second - first**2),
            self.first,
            self.second,
        )


class Rule(NamedTuple):
    """What an optimizer does with gradients, and what follows from it without running it.

    Attributes:
      transform: chain piece from a gradient to the direction u; the step is θ − εu.
      weights: () -> how u weighs the gradients of the last steps, newest first [k], sum 1. What
        divides their average, like Adam's second moment, is no part of it.
      settle: (state of transform, Stationary) -> that state at stationary gradients; one that grows
        for ever is that after HISTORY steps.
      sign_like: whether arXiv 2405.14578 states its law for it: a sign of gradients, or Adam.
      bends: whether u is not linear in the weighed average, but a sign or an orthogonal matrix of
        it.
      weight_decay: decoupled, where a spec says nothing else.
      needs: signals beside the mean gradient that `update` must be given: "moments",
        "gradient_fn", "value".
      norm_batch: examples whose mean gradient has the norms that `moments.norm` averages.
      least_batch: examples that a batch must have.
    """

    transform: optax.GradientTransformation
    weights: Callable[[], np.ndarray] | None = None
    settle: Callable[[Any, Stationary], Any] | None = None
    sign_like: bool = False
    bends: bool = False
    weight_decay: float = 0.0
    needs: tuple[str, ...] = ()
    norm_batch: int = 1
    least_batch: int = 1


ENTRIES: dict[str, Callable[..., Rule]] = {}


def entry(function: Callable[..., Rule]) -> Callable[..., Rule]:
    """Makes a function from keywords to a Rule known by its name, to every spec."""
    ENTRIES[function.__name__] = function
    return function


def whole(name: str, made: Any) -> Rule:
    """The Rule that a function returned, with nothing missing.

    Args:
      name: of the optimizer, for messages.
      made: a Rule, or an optax transformation without state.

    Raises:
      ValueError: neither of these, or a state with no word on how it settles or what it weighs.
    """
    if isinstance(made, optax.GradientTransformation):
        made = Rule(made)
    if not isinstance(made, Rule):
        raise ValueError(
            f"optimizer {name} must return a surge.optimizers.Rule or an optax transformation"
            f" without state, not {type(made).__name__}"
        )
    if made.weights is None or made.settle is None:
        if _has_state(made.transform):
            raise ValueError(
                f"optimizer {name} has a state: return a surge.optimizers.Rule that says how it"
                " settles (settle) and how it weighs past gradients (weights)"
            )
        made = made._replace(weights=partial(np.ones, 1), settle=at_rest)
    return made


def _has_state(transform: optax.GradientTransformation) -> bool:
    shapes = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in PROBE.items()}
    return bool(jax.tree.leaves(jax.eval_shape(transform.init, shapes)))


def at_rest(state: Any, at: Stationary) -> Any:
    """A state that gradients do not move."""
    del at
    return state


def settle_moments(state: Any, at: Stationary) -> Any:
    """A state with mu, nu and count, as Adam's, at its means."""
    return state._replace(
        mu=fitted(state.mu, at.first), nu=fitted(state.nu, at.second), count=late(state.count)
    )


def decaying(decay: Any, nesterov: bool = False) -> np.ndarray:
    """Weights of an exponential average, as `Rule.weights`: 1/Σw² is (1 + β)/(1 − β) batches."""
    decay = float(decay)
    steps = 1 + (int(np.log(TAIL) / np.log(decay)) if 0 < decay < 1 else 0)
    series = decay ** np.arange(steps)
    if nesterov:
        series = decay * series + (np.arange(steps) == 0)
    return series / series.sum()


def settle_nodes(state: Any, kinds: Any, settle: Callable[[Any], Any]) -> Any:
    """The state with every node of some kinds settled, wherever it lies."""

    def of_kind(node: Any) -> bool:
        return isinstance(node, kinds)

    return jax.tree.map(
        lambda node: settle(node) if of_kind(node) else node, state, is_leaf=of_kind
    )


def fitted(held: Any, moment: Any) -> Any:
    """A moment in the form of what a state holds: dtype, and nothing where that is masked."""

    def masked(node: Any) -> bool:
        return isinstance(node, optax.MaskedNode)

    return jax.tree.map(
        lambda held, leaf: held if masked(held) else jnp.asarray(leaf, held.dtype),
        held,
        moment,
        is_leaf=masked,
    )


def late(count: Any) -> jax.Array:
    """A step counter far beyond any bias correction."""
    return jnp.full_like(count, LATE)
