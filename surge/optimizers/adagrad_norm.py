"""AdaGrad-Norm: one normaliser for all parameters (arXiv 1806.01811; AdAdaGrad, 2402.11215).

    b² = b² + |G|²        u = G/b

|G| is the norm of the whole gradient; published code that keeps a sum for each output row is not
followed. b grows for ever, so that u falls as 1/√t at a gradient that stays.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from surge.optimizers.rule import HISTORY, Rule, Stationary, entry


class AdaGradNormState(NamedTuple):
    """b², a scalar."""

    sum_of_squares: jax.Array


def scale_by_adagrad_norm(start: Any = 1e-2) -> optax.GradientTransformation:
    """The direction u of the module's equations, with b² = start before the first step."""

    def init(params: Any) -> AdaGradNormState:
        wide = jnp.promote_types(jnp.result_type(*jax.tree.leaves(params)), jnp.float32)
        return AdaGradNormState(jnp.asarray(start, wide))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, AdaGradNormState]:
        del params
        held = state.sum_of_squares
        total = held + _sum(jax.tree.map(lambda one: jnp.square(one.astype(held.dtype)), updates))
        root = jnp.sqrt(jnp.where(total > 0, total, 1))  # where it is 0, so is the gradient
        scaled = jax.tree.map(lambda one: (one / root).astype(one.dtype), updates)
        return scaled, AdaGradNormState(total)

    return optax.GradientTransformation(init, update)


def _sum(tree: Any) -> jax.Array:
    return sum((leaf.sum() for leaf in jax.tree.leaves(tree)), jnp.zeros(()))


@entry
def adagrad_norm(start: float = 1e-2) -> Rule:
    """AdaGrad-Norm; the settled state is that after HISTORY steps."""

    def settle(state: AdaGradNormState, at: Stationary) -> AdaGradNormState:
        total = start + HISTORY * _sum(at.second)
        return AdaGradNormState(total.astype(state.sum_of_squares.dtype))

    return Rule(scale_by_adagrad_norm(start), weights=partial(np.ones, 1), settle=settle)
