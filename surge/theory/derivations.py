"""Closed forms of the optimal learning rate ε_opt(B) of one step.

Sources: Li et al., arXiv 2405.14578 (the paper); McCandlish et al., arXiv 1812.06162; both
re-derived. Every function takes and returns arrays, broadcasts over `batch_size`, and works under
jit, grad and vmap.

Unless a docstring says otherwise a mini-batch gradient is G_B ~ N(μ, Σ/B): the mean of B examples,
with μ = ∇L and σ_i² = Σ_ii the variance of one example's gradient. Every loss is a quadratic, and a
rate is in units of parameter per unit of the optimizer's direction. Undefined is nan, no finite
value inf, and neither makes a gradient nan.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import erf

from surge.theory.momentum import is_instantaneous
from surge.theory.quadrature import legendre
from surge.theory.second_order import (
    Hessian,
    OneStep,
    at_each,
    nonzero,
    safe_hypot,
    safe_ratio,
    standardised,
)


def sign_mean(batch_size: Any, mu: Any, sigma: Any) -> jax.Array:
    """E[sign G_B] = erf(√(B/2)·μ/σ), exact for a Gaussian (the paper, Theorem 1); broadcasts.

    Reaches its limits: ±1 as σ -> 0, and 0 where μ = 0, also at σ = 0.
    """
    return erf(standardised(batch_size, mu, sigma) / jnp.sqrt(2.0))


def sign_mean_rational(batch_size: Any, mu: Any, sigma: Any) -> jax.Array:
    """The stand-in x/√(π/(2B) + x²), x = μ/σ, that the paper puts for erf.

    Off by up to 0.11, with the same limits.
    """
    signal = jnp.sqrt(jnp.asarray(batch_size)) * jnp.asarray(mu)
    return safe_ratio(signal, safe_hypot(jnp.sqrt(jnp.pi / 2) * jnp.asarray(sigma), signal))


def sign_descent(
    batch_size: Any,
    mu: jax.Array,
    sigma: jax.Array,
    hessian: Hessian,
    mean: Callable[..., jax.Array] = sign_mean,
) -> OneStep:
    """Sign descent with independent coordinates (the paper, Theorems 1 and 2).

    a = Σ 𝓔_i μ_i,  q = 𝓔ᵀH𝓔 + Σ (1 − 𝓔_i²) H_ii. Assumes Gaussian mini-batch gradients whose
    coordinates are independent, which real ones are not: see `sign_descent_correlated`. Each
    coordinate needs σ_i > 0 or μ_i ≠ 0; one with neither counts as all noise, the limit σ_i -> 0 at
    μ_i = 0.

    Args:
      batch_size: B, any shape [...], the shape of drift and curvature.
      mu, sigma: true gradient and per-example standard deviation [P].
      hessian: of the loss.
      mean: `sign_mean`, or `sign_mean_rational` to see what the approximation costs.
    """

    def at(size: jax.Array) -> OneStep:
        means = mean(size, mu, sigma)
        noise = ((1 - means**2) * hessian.diagonal).sum()
        return OneStep(means @ mu, means @ hessian.product(means) + noise)

    return at_each(at, batch_size)


def sign_descent_correlated(
    batch_size: Any, mu: jax.Array, sigma: jax.Array, matrix: jax.Array, correlation: jax.Array
) -> OneStep:
    """Sign descent with correlated coordinates, exact for Gaussian mini-batch gradients.

    With h = √B μ/σ, cov(sign_i, sign_j) = (2/π) ∫₀^{arcsin ρ_ij} exp(−(h_i² − 2h_i h_j sin t +
    h_j²)/(2cos² t)) dt by quadrature: the derivative of a bivariate normal probability in ρ is its
    density (Plackett 1954, Biometrika 41). For μ = 0 it is (2/π) arcsin ρ_ij. Each coordinate needs
    σ_i > 0 or μ_i ≠ 0, as in `sign_descent`.

    Args:
      batch_size: B, any shape [...], the shape of drift and curvature.
      mu, sigma: true gradient and per-example standard deviation [P].
      matrix: Hessian [P, P].
      correlation: ρ [P, P] of the per-example gradients, unit diagonal; its gradient is 0 where
        |ρ_ij| = 1.
    """
    # arcsin has no finite slope at ±1, so those keep out of it; the diagonal has its variance
    # without it.
    pairs = jnp.where(jnp.eye(len(mu), dtype=bool), 0.0, correlation)
    inside = jnp.abs(pairs) < 1
    angle = jnp.where(
        inside, jnp.arcsin(jnp.where(inside, pairs, 0.0)), jnp.pi / 2 * jnp.sign(pairs)
    )
    side = jnp.where(angle < 0, -1.0, 1.0)

    def at(size: jax.Array) -> OneStep:
        means = sign_mean(size, mu, sigma)
        height = standardised(size, mu, sigma)
        gap = (height[:, None] - side * height) ** 2
        product = side * height[:, None] * height

        def add(total: jax.Array, node: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
            place, weight = node
            sine = jnp.sin(jnp.abs(angle) * (1 + place) / 2)
            cosine = jnp.cos(angle * (1 + place) / 2)
            # The exponent of the density, arranged so that nothing cancels as ρ -> ±1.
            density = jnp.exp(-gap / (2 * cosine**2) - product / (1 + sine))
            return total + weight * density, None

        integral, _ = jax.lax.scan(add, jnp.zeros_like(gap), legendre(gap.dtype))
        covariance = integral * angle / jnp.pi
        own = ((1 - means**2) * jnp.diagonal(matrix)).sum()
        noise = (matrix * covariance).sum() + own
        return OneStep(means @ mu, means @ matrix @ means + noise)

    return at_each(at, batch_size)


def sgd(batch_size: Any, mu: jax.Array, hessian: Hessian, trace_h_sigma: Any) -> OneStep:
    """SGD: a = |μ|², q = μᵀHμ + tr(HΣ)/B, so ε_opt = ε_max/(1 + B_noise/B).

    McCandlish et al., equation 2.6. Exact for any noise with covariance Σ/B, Gaussian or not; |μ|²
    must be representable: 1e-18 to 1e18 in float32.

    Args:
      batch_size: B, any shape [...], the shape of drift and curvature.
      mu: true gradient [P].
      hessian: of the loss.
      trace_h_sigma: tr(HΣ) of the per-example covariance Σ; Σ_i H_ii σ_i² if coordinates are
        independent.
    """
    batch_size = jnp.asarray(batch_size)
    drift = jnp.broadcast_to(mu @ mu, batch_size.shape)
    return OneStep(drift, mu @ hessian.product(mu) + trace_h_sigma / batch_size)


def adam_mean_field(
    batch_size: Any,
    mu: jax.Array,
    sigma: jax.Array,
    hessian: Hessian,
    b1: Any = 0.9,
    eps: Any = 0.0,
    reading: str = "instantaneous",
) -> OneStep:
    """Adam at constant μ, 1−β2 ≪ 1−β1, independent coordinates.

    Re-derived. √v̂ sits at its mean, root = √(μ² + σ²/B). Drift per coordinate d = μ/(root + eps);
    q = dᵀHd + k·Σ H_ii σ_i²/(B(root_i + eps)²). "instantaneous", one step: k = (1−β1)/(1+β1).
    "long_run", the noise that adds up over a run: the average of m has the noise of the average of
    g, so k = 1 where |μ| ≪ σ/√B. Elsewhere v, over more than 1/(1−β2) steps, averages the same
    gradients and takes part of that noise away: k = (1 − dμ/root)² + d²σ²/(2B root²) if they are
    Gaussian, to first order. With β1 = 0, one step at a held v is a softened sign.

    Args:
      batch_size: B, any shape [...], the shape of drift and curvature.
      mu, sigma: true gradient and per-example standard deviation [P].
      hessian: of the loss.
      b1: decay of the first moment, in [0, 1); of no consequence over a run.
      eps: Adam's eps, in units of the gradient.
      reading: "instantaneous" or "long_run".

    Raises:
      ValueError: another reading.
    """
    one_step = is_instantaneous(reading)

    def at(size: jax.Array) -> OneStep:
        spread = sigma / jnp.sqrt(size)
        root = safe_hypot(mu, spread)
        mean = safe_ratio(mu, root + eps)
        left = 1 - mean * safe_ratio(mu, root)
        taken = mean * safe_ratio(spread, root)
        over_run = left**2 + taken**2 / 2
        share = (1 - b1) / (1 + b1) if one_step else over_run
        noise = (share * safe_ratio(spread, root + eps) ** 2 * hessian.diagonal).sum()
        return OneStep(mean @ mu, mean @ hessian.product(mean) + noise)

    return at_each(at, batch_size)


def softened_sign_mean(batch_size: Any, mu: Any, sigma: Any, eps: Any) -> jax.Array:
    """E[G/(|G| + eps)] of a Gaussian mini-batch gradient: Adam with β1 = β2 = 0 and its eps.

    Broadcasts. Re-derived: with h = √B μ/σ and φ the normal density, the values ±x of G/(σ/√B)
    together give ∫₀^∞ f(x) tanh(xh) (φ(x−h) + φ(x+h)) dx, f the softened sign of x: smooth, with
    the sign of μ, no cancellation. Gauss-Legendre quadrature over x within 8 of |h|.
    """
    spread = jnp.asarray(sigma) / jnp.sqrt(jnp.asarray(batch_size))
    # The slope at μ = σ = 0 is then 1/eps, as it is at every σ > 0 far below eps.
    spread = jnp.maximum(spread, 1e-30)
    mu, spread, eps = (array[..., None] for array in jnp.broadcast_arrays(mu, spread, eps))
    height = standardised(1.0, mu, spread)
    distance = jnp.abs(height)
    points, weights = legendre(height.dtype)
    low = -jnp.minimum(distance, 8.0)
    noise = low + (8 - low) * (1 + points) / 2
    place = distance + noise
    value = jnp.abs(mu) + spread * noise
    density = jnp.exp(-(noise**2) / 2) * (1 + jnp.exp(-2 * distance * place)) / jnp.sqrt(2 * jnp.pi)
    integrand = safe_ratio(value, value + eps) * jnp.tanh(place * height) * density
    return (integrand * weights).sum(-1) * (8 - low[..., 0]) / 2


class SurgeCoefficients(NamedTuple):
    """The small-batch law of sign descent.

    Attributes:
      b_noise: B_peak, inf where it has no peak.
      max_lr: ε there.
      max_gain: ΔL_max.
    """

    b_noise: jax.Array
    max_lr: jax.Array
    max_gain: jax.Array


def surge_coefficients(mu: jax.Array, sigma: jax.Array, hessian: Hessian) -> SurgeCoefficients:
    """B_noise = πT/2K, ε_max = A/2√(TK), ΔL_max = A²/2K (the paper, Theorem 2).

    A = Σμ²/σ, T = tr H, K = Σ_{i≠j} r_i r_j H_ij, r = μ/σ. Holds for B far below `validity` of the
    coordinates that matter, independent coordinates, every σ_i > 0 and T > 0: nan without the last
    two. K <= 0 gives inf: the optimum only rises.
    """
    ratio = safe_ratio(mu, sigma)
    unit = jax.lax.stop_gradient(nonzero(jnp.abs(ratio).max()))
    ratio = ratio / unit  # cancels from ε_max and ΔL_max, which are then finite where r² is not
    aligned = (mu * ratio).sum()
    trace = hessian.diagonal.sum()
    off = ratio @ (hessian.product(ratio) - hessian.diagonal * ratio)
    # A sum that cancels to rounding is not a coupling: it would give a peak at an enormous,
    # meaningless B.
    off = jnp.where(off > 1e-6 * (ratio**2 * jnp.abs(hessian.diagonal)).sum(), off, 0.0)
    defined = (sigma > 0).all() & (trace > 0)
    peaked = defined & (off > 0)
    missing = jnp.where(defined, jnp.inf, jnp.nan)
    trace = jnp.where(peaked, trace, 1.0)
    off = jnp.where(peaked, off, 1.0)
    # Elsewhere B_noise is beyond the largest number.
    shown = peaked & (unit**2 >= jnp.finfo(unit.dtype).tiny)
    return SurgeCoefficients(
        jnp.where(shown, jnp.pi * trace / (2 * off) / jnp.where(shown, unit**2, 1.0), missing),
        jnp.where(peaked, aligned / (2 * jnp.sqrt(trace * off)), missing),
        jnp.where(peaked, aligned**2 / (2 * off), missing),
    )


def validity(mu: jax.Array, sigma: jax.Array) -> jax.Array:
    """πσ²/2μ² [P]: the small-batch form holds for B far below it, where erf x ≈ 2x/√π.

    The paper, Theorem 2. Gaussian gradients, σ_i > 0. inf where μ = 0, or where it is beyond the
    largest number.
    """
    return jnp.where(mu == 0, jnp.inf, jnp.pi / 2 * safe_ratio(sigma, jnp.abs(mu)) ** 2)


def large_batch_limit(mu: jax.Array, hessian: Hessian) -> OneStep:
    """Sign descent as B -> ∞: a = Σ|μ_i|, q = s'Hs', s' = sign μ, every μ_i ≠ 0.

    The limit of the paper's Theorem 1. A coordinate with μ_i = 0 stands still here; in
    `sign_descent` it keeps adding H_ii of noise at every B.
    """
    signs = jnp.sign(mu)
    return OneStep(jnp.abs(mu).sum(), signs @ hessian.product(signs))


def homogeneous(batch_size: Any, mu_sum: Any, trace: Any, off_diagonal: Any, snr: Any) -> jax.Array:
    """(Σ|μ|/D) · E/(1 + E²O/D), E = erf(s√(B/2)): saturates after its peak.

    O may be 0 or negative. `sign_descent` where |μ_i|/σ_i is the same s for all (re-derived):
    independent Gaussian coordinates, every μ_i ≠ 0, and a positive denominator.

    Args:
      batch_size: B.
      mu_sum: Σ|μ_i|.
      trace: D = Σ H_ii > 0.
      off_diagonal: O = s'Hs' − D, s' = sign μ.
      snr: s = |μ_i|/σ_i, common to all coordinates.

    Returns:
      ε_opt; nan where the denominator is not positive.
    """
    mean = erf(snr * jnp.sqrt(jnp.asarray(batch_size) / 2))
    return OneStep(mu_sum * mean, trace + mean**2 * off_diagonal).optimal_lr
