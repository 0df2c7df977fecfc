"""What momentum is worth in batch size, in one step and over a run."""

from typing import Any

import jax.numpy as jnp

from surge.theory.quadrature import legendre

LAGS = 256  # of successive signs that are summed one by one


def momentum_batch(batch_size: Any, decay: Any) -> Any:
    """B(1+β)/(1−β), the batch with the noise of an exponential average of gradients; β in [0, 1).

    For one step at constant μ and independent batches: white noise averaged so keeps (1−β)/(1+β) of
    its variance (re-derived). No gain over a run: see `momentum_gain`.
    """
    return batch_size * (1 + decay) / (1 - decay)


def lion_batch(batch_size: Any, b1: Any = 0.9, b2: Any = 0.99) -> Any:
    """Lion's one-step effective batch B / [(1−β1)² + β1²(1−β2)/(1+β2)]; 71 B at (0.9, 0.99).

    The same of β1·m + (1−β1)·g, the direction of Chen et al. 2302.06675, where m does not contain g
    (re-derived).
    """
    return batch_size / ((1 - b1) ** 2 + b1**2 * (1 - b2) / (1 + b2))


def is_instantaneous(reading: str) -> bool:
    """Which of the two readings is asked for; ValueError for a third."""
    if reading not in ("instantaneous", "long_run"):
        raise ValueError(f"reading must be instantaneous or long_run, got {reading!r}")
    return reading == "instantaneous"


def momentum_gain(decay: Any, reading: str = "instantaneous") -> Any:
    """How many times larger a batch the average of momentum is worth to sign(m).

    In drift²/noise; broadcasts.

    "instantaneous": (1+β)/(1−β), right for a single step. "long_run": successive signs are
    correlated like (2/π)arcsin(βᵏ) (Sheppard 1899), so the noise that adds up over a run is larger
    by 1 + 2Σ_k (2/π)arcsin(βᵏ): 1.43 at β = 0.9, 1/ln 2 = 1.44 as β -> 1 (re-derived). Assumes
    constant μ, |μ| ≪ σ/√B, and β in [0, 1).

    Raises:
      ValueError: another reading.
    """
    decay = jnp.asarray(decay, jnp.result_type(float))
    instantaneous = (1 + decay) / (1 - decay)
    if is_instantaneous(reading):
        return instantaneous
    # The first lags one by one, the rest by Euler-Maclaurin; its integral is that of z/tan z up to
    # arcsin(βⁿ).
    points, weights = legendre(decay.dtype)
    end = jnp.arcsin(decay**LAGS)
    angle = end[..., None] * (1 + points) / 2
    # z/tan z is 0/0 at 0, and its slope already far above it.
    far = angle > 1e-3
    wide = jnp.where(far, angle, 1.0)
    integrand = jnp.where(far, wide / jnp.tan(wide), 1 - angle**2 / 3)
    integral = (integrand * weights).sum(-1) * end / 2
    first = jnp.arcsin(decay[..., None] ** jnp.arange(1, LAGS)).sum(-1)
    total = first + end / 2 - integral / jnp.log(jnp.where(decay > 0, decay, 0.5))
    return instantaneous / (1 + 4 / jnp.pi * total)
