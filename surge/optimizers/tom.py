"""Tom: Adam whose momentum has a trend, the average of gradient differences (arXiv 2109.03820).

    L = β1 (L + T) + (1 − β1) G          T = β2 T + (1 − β2) (G − G_before)
    v = β3 v + (1 − β3) G²               u = ((L + T)/c) / (√(v/(1 − β3^t)) + eps)

The old T enters L, and G_before is 0 at the first step. c = 1 as published, which makes the first
step 0.11 of a later one, a warmup of about ten steps; with `corrected` c = 1 − (β1 β2)^t. On
gradients that grow by the same amount in every step it is one step ahead, where Adam lags behind.
The authors' weight decay is added to the gradient, and 0 unless asked for: it is left out.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from surge.optimizers.rule import TAIL, Rule, Stationary, entry, fitted, late


class TomState(NamedTuple):
    """Steps done, L, T, the last gradient, and v."""

    count: Any
    level: Any
    trend: Any
    before: Any
    nu: Any


def scale_by_tom(
    b1: Any = 0.9, b2: Any = 0.99, b3: Any = 0.999, eps: Any = 1e-8, corrected: bool = False
) -> optax.GradientTransformation:
    """The direction u of the module's equations."""

    def init(params: Any) -> TomState:
        zeros = optax.tree.zeros_like(params)
        return TomState(jnp.zeros((), jnp.int32), zeros, zeros, zeros, zeros)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, TomState]:
        del params
        count = optax.safe_increment(state.count)
        held = jax.tree.map(jnp.add, state.level, state.trend)
        level = optax.tree.update_moment(updates, held, b1, 1)
        change = jax.tree.map(jnp.subtract, updates, state.before)
        trend = optax.tree.update_moment(change, state.trend, b2, 1)
        nu = optax.tree.update_moment(updates, state.nu, b3, 2)
        ahead = jax.tree.map(jnp.add, level, trend)
        if corrected:
            ahead = optax.tree.bias_correction(ahead, b1 * b2, count)
        square = optax.tree.bias_correction(nu, b3, count)
        scaled = jax.tree.map(lambda mean, square: mean / (jnp.sqrt(square) + eps), ahead, square)
        return scaled, TomState(count, level, trend, updates, nu)

    return optax.GradientTransformation(init, update)


@entry
def tom(
    b1: float = 0.9,
    b2: float = 0.99,
    b3: float = 0.999,
    eps: float = 1e-8,
    corrected: bool = False,
) -> Rule:
    """Tom; noise gain Σw² = 0.0628 at these rates, where Adam's is 0.0526."""
    return Rule(
        scale_by_tom(b1, b2, b3, eps, corrected), weights=partial(_weights, b1, b2), settle=_settle
    )


def _weights(b1: Any, b2: Any) -> np.ndarray:
    """The answer of L + T to one gradient, newest first."""
    b1 = float(b1)
    b2 = float(b2)
    level = 1 - b1
    trend = 1 - b2
    series = [level + trend]
    # Long enough for whichever decays slower; what follows of less than TAIL is then left out.
    for age in range(1, int(10 / (1 - max(b1, b2))) + 2):
        change = -1.0 if age == 1 else 0.0
        level = b1 * (level + trend)
        trend = b2 * trend + (1 - b2) * change
        series.append(level + trend)
    weights = np.array(series)
    rest = np.abs(weights)[::-1].cumsum()[::-1]
    weights = weights[rest >= TAIL]
    return weights / weights.sum()


def _settle(state: TomState, at: Stationary) -> TomState:
    return TomState(
        count=late(state.count),
        level=fitted(state.level, at.first),
        trend=optax.tree.zeros_like(state.trend),
        before=fitted(state.before, at.first),
        nu=fitted(state.nu, at.second),
    )
