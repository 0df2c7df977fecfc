"""Extrapolated SGD and Adam: gradients are taken where each worker's last one points.

arXiv 2006.05720, of which no code was found. K workers have a K-th of the batch each:

    θ^k = θ − γ̂ ĝ^k        G = mean_k g^k(θ^k)        ĝ^k: g^k(θ^k) of the step before, 0 at first
    extrap_sgd: u = G, or its Nesterov momentum        extrap_adam: u = Adam's of G

That ĝ^k is the gradient taken at the extrapolated point, and that momentum and Adam act on the mean
gradient alone, is our reading; a look-ahead of the momentum in θ^k is left out. γ̂ is no part of the
rate that is swept, since it is tuned apart; at γ̂ = 0 both are their bases. A step costs one more
gradient, since the gradient at θ itself has no use.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from surge.optimizers import known
from surge.optimizers.rule import Rule, Stationary, entry, whole
from surge.optimizers.step import needed


class ExtrapState(NamedTuple):
    """The last gradient of each worker [K, ...], and the base's own state."""

    past: Any
    base: Any


def scale_by_extrapolation(
    base: optax.GradientTransformation, extrapolation: Any, workers: int = 1
) -> optax.GradientTransformationExtraArgs:
    """The base's direction of gradients at extrapolated points.

    Args:
      base: of directions, from the mean gradient.
      extrapolation: γ̂.
      workers: K. `gradient_fn` of `update` maps points [K, ...] to the gradients there [K, ...],
        each of its own K-th of the batch.
    """
    base = optax.with_extra_args_support(base)

    def init(params: Any) -> ExtrapState:
        past = jax.tree.map(lambda leaf: jnp.zeros((workers, *leaf.shape), leaf.dtype), params)
        return ExtrapState(past, base.init(params))

    def update(
        updates: Any, state: Any, params: Any = None, **signals: Any
    ) -> tuple[Any, ExtrapState]:
        del updates
        gradient_fn = needed(signals.get("gradient_fn"), "gradient_fn", "extrapolation")
        points = jax.tree.map(lambda leaf, past: leaf - extrapolation * past, params, state.past)
        past = gradient_fn(points)
        mean = jax.tree.map(lambda leaf: leaf.mean(0), past)
        directions, inner = base.update(mean, state.base, params, **signals)
        return directions, ExtrapState(past, inner)

    return optax.GradientTransformationExtraArgs(init, update)


@entry
def extrap_sgd(extrapolation: float, workers: int = 1, decay: float = 0.0) -> Rule:
    """SGD, or its Nesterov momentum, of gradients at extrapolated points."""
    return _extrapolated(known.momentum(decay, nesterov=True), extrapolation, workers)


@entry
def extrap_adam(
    extrapolation: float,
    workers: int = 1,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> Rule:
    """Adam of gradients at extrapolated points."""
    rule = known.adam(b1, b2, eps)._replace(sign_like=False)
    return _extrapolated(rule, extrapolation, workers)


def _extrapolated(base: Rule, extrapolation: Any, workers: int) -> Rule:
    base = whole("extrapolation", base)

    def settle(state: ExtrapState, at: Stationary) -> ExtrapState:
        """As if gradients were the same at the extrapolated points, which they are as γ̂ → 0."""
        assert base.settle is not None
        past = jax.tree.map(
            lambda held, first: jnp.broadcast_to(first, held.shape).astype(held.dtype),
            state.past,
            at.first,
        )
        return ExtrapState(past, base.settle(state.base, at))

    transform = scale_by_extrapolation(base.transform, extrapolation, workers)
    return base._replace(
        transform=transform, settle=settle, needs=("gradient_fn",), least_batch=workers
    )
