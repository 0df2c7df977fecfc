"""Eve: Adam's second moment from the gradients of single examples (arXiv 2112.00174).

    m = β1 m + (1 − β1) mean_n g_n        e = β2 e + (1 − β2) mean_n g_n²
    eve                u = m̂ / (√(ê/B + (1 − 1/B) m̂²) + eps)
    examplewise_adam   u = m̂ / (√ê + eps)

m̂ and ê are bias-corrected. Eve as its authors publish it divides by an estimate of E[G²] of the
batch's gradient G, μ² + σ²/B, of which a batch shows B times as many samples as Adam sees. The
second divides by a single example's, which does not depend on B: it is no paper's, and stands here
because it is one line away and has another law of ε_opt(B). B is the batch of all devices.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from surge.optimizers.rule import Rule, Stationary, decaying, entry, settle_moments
from surge.optimizers.step import ExampleMoments, needed


def scale_by_eve(
    b1: Any = 0.9, b2: Any = 0.999, eps: Any = 1e-8
) -> optax.GradientTransformationExtraArgs:
    """Eve as published; the state is Adam's, with e as its nu."""

    def size(mean: jax.Array, square: jax.Array, count: Any) -> jax.Array:
        return jnp.sqrt(square / count + (1 - 1 / count) * mean**2)

    return _scale_by_examples("eve", b1, b2, eps, size)


def scale_by_examplewise_adam(
    b1: Any = 0.9, b2: Any = 0.999, eps: Any = 1e-8
) -> optax.GradientTransformationExtraArgs:
    """Adam over the root mean square of single gradients; the state is Adam's."""

    def size(mean: jax.Array, square: jax.Array, count: Any) -> jax.Array:
        del mean, count
        return jnp.sqrt(square)

    return _scale_by_examples("examplewise_adam", b1, b2, eps, size)


def _scale_by_examples(
    name: str, b1: Any, b2: Any, eps: Any, size: Callable[..., jax.Array]
) -> optax.GradientTransformationExtraArgs:
    """u = m̂ / (size(m̂, ê, B) + eps)."""

    def init(params: Any) -> optax.ScaleByAdamState:
        zeros = optax.tree.zeros_like(params)
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), zeros, zeros)

    def update(
        updates: Any,
        state: Any,
        params: Any = None,
        *,
        moments: ExampleMoments | None = None,
        **others: Any,
    ) -> tuple[Any, optax.ScaleByAdamState]:
        del params, others
        seen = needed(moments, "moments", name)
        count = optax.safe_increment(state.count)
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        nu = optax.tree.update_moment(seen.square, state.nu, b2, 1)
        mean = optax.tree.bias_correction(mu, b1, count)
        square = optax.tree.bias_correction(nu, b2, count)
        scaled = jax.tree.map(
            lambda mean, square: mean / (size(mean, square, seen.count) + eps), mean, square
        )
        return scaled, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformationExtraArgs(init, update)


@entry
def eve(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Rule:
    """Eve as published."""
    return _rule(scale_by_eve(b1, b2, eps), b1)


@entry
def examplewise_adam(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Rule:
    """Adam with a normaliser that does not see the batch size."""
    return _rule(scale_by_examplewise_adam(b1, b2, eps), b1)


def _rule(transform: optax.GradientTransformation, b1: Any) -> Rule:
    return Rule(transform, partial(decaying, b1), _settle, needs=("moments",))


def _settle(state: Any, at: Stationary) -> Any:
    return settle_moments(state, at._replace(second=at.example_second()))
