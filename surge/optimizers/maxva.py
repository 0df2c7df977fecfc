"""MaxVA: the decay rate of the second moment is the one that makes the variance largest.

arXiv 2006.11918; MAdam and LaMAdam. Of each coordinate, with weighted sums ũ, ṽ, w:

    μ̂ = ũ/w,  s² = ṽ/w − μ̂²,  d² = (G − μ̂)²
    β = clip((d² + s²) / (w (d² − s²) + d² + s²), β_low, β_high);  β_high at the first step
    ũ = βũ + (1 − β)G,  ṽ = βṽ + (1 − β)G²,  w = βw + (1 − β)
    madam      m = β1 m + (1 − β1) G                     u = (m/(1 − β1^t)) / (√(ṽ/w) + eps)
    lamadam    m = β1 m + (1 − β1) G/(√(ṽ/w) + eps)      u = m/(1 − β1^t)

So ṽ/w is biased upwards, by c = 5.8 on Gaussian noise at (0.5, 0.999). The authors' LaMAdam has the
learning rate inside its average; here it is outside, which is the same while the rate is constant.
"""

from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from surge.optimizers.rule import Rule, Stationary, decaying, entry, fitted, late

SAMPLES, STEPS = 2_000, 3_000  # of the Gaussian noise that c is taken from


class MaxVAState(NamedTuple):
    """Steps done, m, and the weighted sums ũ, ṽ and w of each coordinate."""

    count: Any
    mu: Any
    total: Any
    squares: Any
    weight: Any


def scale_by_madam(
    b1: Any = 0.9, beta_low: Any = 0.5, beta_high: Any = 0.999, eps: Any = 1e-8
) -> optax.GradientTransformation:
    """MAdam's direction."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, MaxVAState]:
        del params
        state = _seen(updates, state, beta_low, beta_high)
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        mean = optax.tree.bias_correction(mu, b1, state.count)
        return _over_root(mean, state, eps), state._replace(mu=mu)

    return optax.GradientTransformation(_init, update)


def scale_by_lamadam(
    b1: Any = 0.9, beta_low: Any = 0.5, beta_high: Any = 0.98, eps: Any = 1e-15
) -> optax.GradientTransformation:
    """LaMAdam's direction: the average is of what was scaled, as in LaProp."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, MaxVAState]:
        del params
        state = _seen(updates, state, beta_low, beta_high)
        scaled = _over_root(updates, state, eps)
        mu = optax.tree.update_moment(scaled, state.mu, b1, 1)
        return optax.tree.bias_correction(mu, b1, state.count), state._replace(mu=mu)

    return optax.GradientTransformation(_init, update)


def _init(params: Any) -> MaxVAState:
    zeros = optax.tree.zeros_like(params)
    return MaxVAState(jnp.zeros((), jnp.int32), zeros, zeros, zeros, zeros)


def _seen(gradients: Any, state: MaxVAState, low: Any, high: Any) -> MaxVAState:
    """The state with the newest gradient in its sums."""
    decay = jax.tree.map(
        partial(_decay, count=state.count, low=low, high=high),
        gradients,
        state.total,
        state.squares,
        state.weight,
    )
    average = partial(jax.tree.map, lambda new, old, decay: decay * old + (1 - decay) * new)
    return state._replace(
        count=optax.safe_increment(state.count),
        total=average(gradients, state.total, decay),
        squares=average(jax.tree.map(jnp.square, gradients), state.squares, decay),
        weight=average(optax.tree.ones_like(gradients), state.weight, decay),
    )


def _decay(
    gradient: jax.Array,
    total: jax.Array,
    squares: jax.Array,
    weight: jax.Array,
    count: jax.Array,
    low: Any,
    high: Any,
) -> jax.Array:
    """β of each coordinate."""
    held = jnp.where(weight > 0, weight, 1)
    mean = total / held
    variance = jnp.maximum(squares / held - mean**2, 0)
    distance = (gradient - mean) ** 2
    below = distance * (1 + weight) + variance * (1 - weight)
    best = (distance + variance) / jnp.where(below > 0, below, 1)
    # Where nothing ever varied every β has the same variance: the one that remembers longest.
    undecided = (count == 0) | (below <= 0)
    return jnp.where(undecided, high, jnp.clip(best, low, high))


def _over_root(numerator: Any, state: MaxVAState, eps: Any) -> Any:
    return jax.tree.map(
        lambda one, squares, weight: one / (jnp.sqrt(squares / weight) + eps),
        numerator,
        state.squares,
        state.weight,
    )


@entry
def madam(
    b1: float = 0.9, beta_low: float = 0.5, beta_high: float = 0.999, eps: float = 1e-8
) -> Rule:
    """Adam with the second moment of maximal variance; Adam itself where the bounds are equal."""

    def settle(state: MaxVAState, at: Stationary) -> MaxVAState:
        return _settle(state, at, beta_low, beta_high)

    transform = scale_by_madam(b1, beta_low, beta_high, eps)
    return Rule(transform, weights=partial(decaying, b1), settle=settle)


@entry
def lamadam(
    b1: float = 0.9, beta_low: float = 0.5, beta_high: float = 0.98, eps: float = 1e-15
) -> Rule:
    """LaProp with the second moment of maximal variance."""

    def settle(state: MaxVAState, at: Stationary) -> MaxVAState:
        state = _settle(state, at, beta_low, beta_high)
        return state._replace(mu=fitted(state.mu, _over_root(at.first, state, eps)))

    transform = scale_by_lamadam(b1, beta_low, beta_high, eps)
    return Rule(transform, weights=partial(decaying, b1), settle=settle)


def _settle(state: MaxVAState, at: Stationary, low: float, high: float) -> MaxVAState:
    """β sees only distances from the mean, so that pure noise says all; w comes to 1."""
    share = inflation(low, high)
    squares = jax.tree.map(
        lambda first, second: first**2 + share * (second - first**2), at.first, at.second
    )
    return state._replace(
        count=late(state.count),
        mu=fitted(state.mu, at.first),
        total=fitted(state.total, at.first),
        squares=fitted(state.squares, squares),
        weight=optax.tree.ones_like(state.weight),
    )


@cache
def inflation(low: float, high: float) -> float:
    """c: E[ṽ/w] on Gaussian noise of variance 1, after a long run of many coordinates."""

    def step(state: MaxVAState, key: jax.Array) -> tuple[MaxVAState, jax.Array]:
        state = _seen(jax.random.normal(key, (SAMPLES,)), state, low, high)
        return state, (state.squares / state.weight).mean()

    # It is a number also where what asks for it is traced.
    with jax.ensure_compile_time_eval():
        keys = jax.random.split(jax.random.key(0), STEPS)
        _, squares = jax.lax.scan(step, _init(jnp.zeros(SAMPLES)), keys)
        share = float(squares[STEPS // 2 :].mean())
    return share
