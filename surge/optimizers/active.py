"""ActiveLR: a multiplier of the rate for each parameter, set once an epoch (arXiv 2301.10133).

    every step    cum += G        u = γ (direction of the base + λθ)
    every epoch   from the second on: γ ← γ low if cum_before · cum <= 0, else γ + high
                  cum_before, cum ← cum, 0

γ starts at 1 and has no bounds; cum is of raw gradients. (high, low) is (2, 0.5) in the authors'
ActiveAdam and (0.05, 0.95) in the others of theirs. A coordinate whose gradients are 0 counts as
one whose sign flips, so that its γ goes to 0. An epoch is a number of examples, so that it has
fewer steps at a larger batch.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from surge.optimizers.rule import HISTORY, Rule, Stationary, entry, fitted, late, whole
from surge.optimizers.spec import parse


class ActiveState(NamedTuple):
    """Steps done, γ, the sums of gradients of this epoch and of the last, the base's own state."""

    count: Any
    factor: Any
    total: Any
    before: Any
    base: Any


def scale_by_active(
    base: optax.GradientTransformation,
    steps_per_epoch: Any,
    high: Any = 2.0,
    low: Any = 0.5,
    decay: Any = 1e-2,
) -> optax.GradientTransformationExtraArgs:
    """The base's direction times γ.

    Args:
      base: of directions.
      steps_per_epoch: at least 1; may be traced.
      high: what is added to γ while epochs agree on the sign.
      low: what γ is multiplied by where they do not.
      decay: λ, decoupled.
    """
    base = optax.with_extra_args_support(base)

    def init(params: Any) -> ActiveState:
        zeros = optax.tree.zeros_like(params)
        ones = optax.tree.ones_like(params)
        return ActiveState(jnp.zeros((), jnp.int32), ones, zeros, zeros, base.init(params))

    def update(
        updates: Any, state: Any, params: Any = None, **signals: Any
    ) -> tuple[Any, ActiveState]:
        directions, inner = base.update(updates, state.base, params, **signals)
        moved = jax.tree.map(
            lambda factor, one, weights: factor * (one + decay * weights),
            state.factor,
            directions,
            params,
        )
        count = optax.safe_increment(state.count)
        total = jax.tree.map(jnp.add, state.total, updates)
        ends = count % steps_per_epoch == 0
        first = count <= steps_per_epoch

        def judged(factor: jax.Array, before: jax.Array, total: jax.Array) -> jax.Array:
            changed = jnp.where(before * total <= 0, factor * low, factor + high)
            return jnp.where(ends & ~first, changed, factor)

        factor = jax.tree.map(judged, state.factor, state.before, total)
        kept = jax.tree.map(lambda now, old: jnp.where(ends, now, old), total, state.before)
        total = jax.tree.map(lambda now: jnp.where(ends, 0, now), total)
        return moved, ActiveState(count, factor, total, kept, inner)

    return optax.GradientTransformationExtraArgs(init, update)


@entry
def active(
    epoch_examples: int,
    base: str = "adam",
    high: float = 2.0,
    low: float = 0.5,
    inner_decay: float = 1e-2,
    *,
    batch_size: Any,
) -> Rule:
    """ActiveLR around a base, like active(epoch_examples=4000, base='adam(b1=0.9)').

    Raises:
      ValueError: the base is no optimizer, or has keywords that are those of the whole chain.
    """
    spec = parse(base)
    if spec.common or spec.entry is active:
        raise ValueError(f"base={base!r} of active takes the keywords of {spec.name} alone")
    told = whole(spec.name, spec.entry(**spec.own))
    steps = jnp.maximum(epoch_examples // batch_size, 1)
    transform = scale_by_active(told.transform, steps, high, low, inner_decay)

    def settle(state: ActiveState, at: Stationary) -> ActiveState:
        """Of a first epoch, with γ = 1: later ones depend on all that was before."""
        assert told.settle is not None
        total = jax.tree.map(lambda first: HISTORY * first, at.first)
        return state._replace(
            count=-late(state.count),  # the second epoch is far off, however short they are
            total=fitted(state.total, total),
            base=told.settle(state.base, at),
        )

    return told._replace(transform=transform, settle=settle)
