"""LARS: each layer's step is a share of its weights' norm (arXiv 1708.03888).

    s_l = η |θ_l| / (|G_l| + λ |θ_l|)        m = β m + s_l (G_l + λ θ_l)        u = m

The partner of CLARS, from which it differs in the norm of the gradient alone. An array of params is
a layer. Arrays of one axis or none (biases, scales of norms) take the gradient itself, as usual,
and so does a layer whose weights or gradients are 0.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from surge.optimizers.rule import Rule, Stationary, decaying, entry, fitted


def scale_by_lars(
    trust: Any = 1e-3, decay: Any = 0.9, l2: Any = 0.0
) -> optax.GradientTransformation:
    """LARS's direction u.

    Args:
      trust: η.
      decay: β of the momentum.
      l2: λ, decay that is added to the gradient.
    """

    def init(params: Any) -> optax.TraceState:
        return optax.TraceState(optax.tree.zeros_like(params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, optax.TraceState]:
        sizes = jax.tree.map(lambda one, weights: _norm(one) + l2 * _norm(weights), updates, params)
        scaled = scaled_layers(updates, params, sizes, trust, l2)
        trace = jax.tree.map(lambda old, new: decay * old + new, state.trace, scaled)
        return trace, optax.TraceState(trace)

    return optax.GradientTransformation(init, update)


def scaled_layers(gradients: Any, params: Any, sizes: Any, trust: Any, l2: Any) -> Any:
    """η |θ_l| / size_l · (G_l + λ θ_l); params and sizes (of each layer, a scalar) are pytrees."""

    def one(gradient: jax.Array, weights: jax.Array, size: jax.Array) -> jax.Array:
        moved = gradient + l2 * weights
        if weights.ndim < 2:
            return moved
        length = _norm(weights)
        known = (length > 0) & (size > 0)
        return jnp.where(known, trust * length / jnp.where(known, size, 1), 1) * moved

    return jax.tree.map(one, gradients, params, sizes)


def _norm(leaf: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(jnp.square(leaf)))


@entry
def lars(trust: float = 1e-3, decay: float = 0.9, l2: float = 0.0) -> Rule:
    """LARS; its rates are some thousand times SGD's, since trust multiplies them."""

    def sizes(at: Stationary) -> Any:
        return jax.tree.map(
            lambda second, weights: jnp.sqrt(second.sum()) + l2 * _norm(weights),
            at.second,
            at.params,
        )

    return layerwise(scale_by_lars(trust, decay, l2), sizes, trust, decay, l2)


def layerwise(
    transform: optax.GradientTransformation,
    sizes: Callable[[Stationary], Any],
    trust: Any,
    decay: Any,
    l2: Any,
    needs: tuple[str, ...] = (),
) -> Rule:
    """The rule of a momentum of scaled layers; `sizes` are the norms at stationary gradients."""

    def settle(state: Any, at: Stationary) -> Any:
        scaled = scaled_layers(at.first, at.params, sizes(at), trust, l2)
        total = jax.tree.map(lambda one: one / (1 - decay), scaled)
        return state._replace(trace=fitted(state.trace, total))

    return Rule(transform, weights=partial(decaying, decay), settle=settle, needs=needs)
