"""The optimizers that optax has, each with what surge must know of it."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from surge.optimizers.rule import (
    HISTORY,
    Rule,
    Stationary,
    decaying,
    entry,
    fitted,
    late,
    settle_moments,
    settle_nodes,
)


@entry
def sgd() -> Rule:
    """The gradient itself."""
    return Rule(optax.identity())


@entry
def momentum(decay: float = 0.9, nesterov: bool = False) -> Rule:
    """Heavy-ball momentum, a sum: one gradient moves parameters by 1/(1 − decay) in all."""

    def settle(state: Any, at: Stationary) -> Any:
        total = jax.tree.map(lambda mean: mean / (1 - decay), at.first)
        return state._replace(trace=fitted(state.trace, total))

    return Rule(
        optax.trace(decay, nesterov), weights=partial(decaying, decay, nesterov), settle=settle
    )


@entry
def sign_sgd() -> Rule:
    """The sign of the gradient."""
    return Rule(optax.scale_by_sign(), sign_like=True, bends=False)


@entry
def signum(decay: float = 0.9) -> Rule:
    """The sign of an average of gradients (arXiv 1802.04434)."""

    def settle(state: Any, at: Stationary) -> Any:
        average, sign = state
        return average._replace(ema=fitted(average.ema, at.first), count=late(average.count)), sign

    return Rule(
        optax.chain(optax.ema(decay, debias=False), optax.scale_by_sign()),
        weights=partial(decaying, decay),
        settle=settle,
        sign_like=True,
        bends=True,
    )


@entry
def adam(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Rule:
    """Adam (arXiv 1412.6980)."""
    return Rule(
        optax.scale_by_adam(b1, b2, eps),
        weights=partial(decaying, b1),
        settle=settle_moments,
        sign_like=True,
    )


@entry
def adamw(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Rule:
    """Adam with decoupled weight decay (arXiv 1711.05101)."""
    return adam(b1, b2, eps)._replace(weight_decay=1e-4)


@entry
def adabelief(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-16) -> Rule:
    """Divides by what the average did not foresee, not by all of g (arXiv 2010.07468)."""
    root = 1e-16  # optax adds it to the average in every step, and so do the authors

    def settle(state: Any, at: Stationary) -> Any:
        # The average m that is subtracted holds the newest gradient already: g − m is
        # b1 (g − m_before), whose variance is b1² (1 + (1 − b1)/(1 + b1)) of a gradient's.
        share = b1**2 * 2 / (1 + b1)
        unforeseen = jax.tree.map(
            lambda mean, square: share * jnp.maximum(square - mean**2, 0) + root / (1 - b2),
            at.first,
            at.second,
        )
        return settle_moments(state, at._replace(second=unforeseen))

    return Rule(
        optax.scale_by_belief(b1, b2, eps, root), weights=partial(decaying, b1), settle=settle
    )


@entry
def lion(b1: float = 0.9, b2: float = 0.99) -> Rule:
    """The sign of a momentum that is read before the newest gradient enters (arXiv 2302.06675)."""

    def weights() -> np.ndarray:
        older = float(b1) * decaying(b2)
        return np.append(1 - float(b1), older)

    def settle(state: Any, at: Stationary) -> Any:
        return state._replace(mu=fitted(state.mu, at.first), count=late(state.count))

    return Rule(
        optax.scale_by_lion(b1, b2), weights=weights, settle=settle, sign_like=True, bends=True
    )


@entry
def adafactor(decay_rate: float = 0.8, momentum: float = 0.0) -> Rule:
    """Adam's second moment from row and column means (arXiv 1804.04235).

    Without momentum unless asked for.
    """
    factored = optax.scale_by_factored_rms(decay_rate=decay_rate)
    pieces = [factored, optax.clip_by_block_rms(1.0)]
    if momentum:
        pieces.append(optax.ema(momentum, debias=False))

    def settle(state: Any, at: Stationary) -> Any:
        held, *rest = state
        held = settle_factored(factored, held, at)
        if momentum:
            direction, _ = factored.update(at.first, held, at.params)
            average = rest[-1]
            filled = fitted(average.ema, direction)
            rest[-1] = average._replace(ema=filled, count=late(average.count))
        return held, *rest

    return Rule(optax.chain(*pieces), weights=partial(decaying, momentum), settle=settle)


def settle_factored(factored: optax.GradientTransformation, state: Any, at: Stationary) -> Any:
    """Row and column means of E g², as wide an average as after HISTORY steps."""
    # The first step has decay 0: gradients √E g² leave behind means of E g².
    typical = jax.tree.map(jnp.sqrt, at.second)
    start = state._replace(count=jnp.zeros_like(state.count))
    held: Any = factored.update(typical, start, at.params)[1]
    return held._replace(count=jnp.full_like(state.count, HISTORY))


@entry
def rmsprop(decay: float = 0.9, eps: float = 1e-8) -> Rule:
    """The gradient over the root of its averaged square; the decay is of the second moment."""

    def settle(state: Any, at: Stationary) -> Any:
        return state._replace(nu=fitted(state.nu, at.second))

    return Rule(optax.scale_by_rms(decay, eps), weights=partial(np.ones, 1), settle=settle)


@entry
def adagrad(eps: float = 1e-7) -> Rule:
    """The gradient over the root of the sum of squares, which grows for ever: u falls as 1/√t."""
    start = 0.1

    def settle(state: Any, at: Stationary) -> Any:
        total = jax.tree.map(lambda square: start + HISTORY * square, at.second)
        return state._replace(sum_of_squares=fitted(state.sum_of_squares, total))

    return Rule(optax.scale_by_rss(start, eps), weights=partial(np.ones, 1), settle=settle)


@entry
def muon(b1: float = 0.9, b2: float = 0.999, beta: float = 0.95, adam_ratio: float = 1.0) -> Rule:
    """Orthogonalised momentum for matrices, Adam at `adam_ratio` times the rate for the rest."""
    # The rate here is 1, and optax's sign is that of a step.
    both = optax.contrib.muon(1.0, beta=beta, adam_b1=b1, adam_b2=b2, adam_learning_rate=adam_ratio)

    def settle(state: Any, at: Stationary) -> Any:
        def matrices(node: Any) -> Any:
            return node._replace(mu=fitted(node.mu, at.first), count=late(node.count))

        state = settle_nodes(state, optax.contrib.MuonState, matrices)
        others = partial(settle_moments, at=at)
        return settle_nodes(state, optax.ScaleByAdamState, others)

    return Rule(
        optax.chain(both, optax.scale(-1.0)),
        weights=partial(decaying, beta, nesterov=True),
        settle=settle,
        bends=True,
    )
