"""Closed forms of the optimal learning rate ε_opt(B), and of steps S(B) and examples E(B) to a target loss.

Sources: Li et al., arXiv 2405.14578 (the paper); McCandlish et al., arXiv 1812.06162; both re-derived. Every
function takes and returns arrays, broadcasts over `batch_size`, and works under jit, grad and vmap.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import erf, erfinv

NODES = 48  # of Gauss-Legendre quadrature


class Hessian(NamedTuple):
    """A symmetric matrix [P, P] known by its diagonal [P] and its product with a vector [P] -> [P]."""

    diagonal: jax.Array
    product: Callable[[jax.Array], jax.Array]

    @classmethod
    def dense(cls, matrix: jax.Array) -> "Hessian":
        """From the matrix [P, P] itself."""
        return cls(jnp.diagonal(matrix), lambda vector: matrix @ vector)

    @classmethod
    def low_rank(cls, diagonal: jax.Array, factor: jax.Array) -> "Hessian":
        """diag(diagonal) + factor factorᵀ, with factor [P, K]."""
        product = lambda vector: diagonal * vector + factor @ (factor.T @ vector)  # noqa: E731
        return cls(diagonal + (factor**2).sum(-1), product)


class OneStep(NamedTuple):
    """One optimizer step to second order (THEORY section 2): drift a = E[uᵀμ], curvature q = E[uᵀHu]."""

    drift: jax.Array
    curvature: jax.Array

    @property
    def optimal_lr(self) -> jax.Array:
        """a/q, the rate with the largest expected fall of the loss; nan where q <= 0 (no minimum)."""
        return jnp.where(self.curvature > 0, self.drift / _nonzero(self.curvature), jnp.nan)

    @property
    def gain(self) -> jax.Array:
        """a²/2q, the expected fall of the loss at the optimal rate; nan where q <= 0."""
        return jnp.where(self.curvature > 0, self.drift**2 / (2 * _nonzero(self.curvature)), jnp.nan)


def _nonzero(value: jax.Array) -> jax.Array:
    return jnp.where(value > 0, value, 1.0)  # keeps gradients finite where the result is masked


def sign_mean(batch_size: Any, mu: Any, sigma: Any) -> jax.Array:
    """E[sign G_B] = erf(√(B/2)·μ/σ) for a Gaussian mini-batch gradient; broadcasts; 0 where μ = 0, ±1 where σ = 0."""
    mu, sigma = jnp.asarray(mu), jnp.asarray(sigma)
    ratio = jnp.where(sigma > 0, mu / _nonzero(sigma), jnp.sign(mu) * jnp.inf)
    ratio = jnp.where(mu == 0, 0.0, ratio)
    return erf(jnp.sqrt(jnp.asarray(batch_size) / 2) * ratio)


def sign_mean_rational(batch_size: Any, mu: Any, sigma: Any) -> jax.Array:
    """The stand-in x/√(π/(2B) + x²), x = μ/σ, that the paper puts for erf; off by up to 0.11."""
    ratio = jnp.asarray(mu) / jnp.asarray(sigma)
    return ratio / jnp.sqrt(jnp.pi / (2 * jnp.asarray(batch_size)) + ratio**2)


def sign_descent(
    batch_size: Any, mu: jax.Array, sigma: jax.Array, hessian: Hessian, mean: Callable[..., jax.Array] = sign_mean
) -> OneStep:
    """Sign descent with independent coordinates (the paper, Theorems 1 and 2).

    a = Σ 𝓔_i μ_i,  q = 𝓔ᵀH𝓔 + Σ (1 − 𝓔_i²) H_ii. Assumes Gaussian mini-batch gradients whose coordinates are
    independent; real ones are not (THEORY section 5), see `sign_descent_correlated`.

    Args:
      batch_size: B, any shape [...].
      mu: true gradient [P].
      sigma: per-example standard deviation [P].
      hessian: of the loss.
      mean: `sign_mean`, or `sign_mean_rational` to see what the approximation costs.

    Returns:
      drift [...] and curvature [...].
    """

    def at(size: jax.Array) -> OneStep:
        means = mean(size, mu, sigma)
        noise = ((1 - means**2) * hessian.diagonal).sum()
        return OneStep(means @ mu, means @ hessian.product(means) + noise)

    return _over(at, batch_size)


def sign_descent_correlated(
    batch_size: Any, mu: jax.Array, sigma: jax.Array, matrix: jax.Array, correlation: jax.Array
) -> OneStep:
    """Sign descent with correlated coordinates, exact for Gaussian mini-batch gradients.

    With h = √B μ/σ, cov(sign_i, sign_j) = (2/π) ∫₀^{arcsin ρ_ij} exp(−(h_i² − 2h_i h_j sin t + h_j²)/(2cos² t)) dt
    (Plackett 1954: the derivative of a bivariate normal probability in ρ is its density), by quadrature; for μ = 0
    it is (2/π) arcsin ρ_ij.

    Args:
      batch_size: B, any shape [...].
      mu: true gradient [P].
      sigma: per-example standard deviation [P].
      matrix: Hessian [P, P].
      correlation: ρ [P, P] of the per-example gradients.

    Returns:
      drift [...] and curvature [...].
    """
    nodes, weights = (jnp.asarray(each, jnp.asarray(mu).dtype) for each in _legendre(NODES))
    angle = jnp.arcsin(jnp.clip(correlation, -1, 1))

    def at(size: jax.Array) -> OneStep:
        means = sign_mean(size, mu, sigma)
        height = jnp.sqrt(size) * mu / sigma
        squares, product = height[:, None] ** 2 + height**2, height[:, None] * height

        def add(total: jax.Array, node: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
            place, weight = node
            sine, cosine = jnp.sin(angle * (1 + place) / 2), jnp.cos(angle * (1 + place) / 2)
            return total + weight * jnp.exp(-(squares - 2 * product * sine) / (2 * cosine**2)), None

        integral, _ = jax.lax.scan(add, jnp.zeros_like(squares), (nodes, weights))
        covariance = integral * angle / jnp.pi
        covariance = jnp.where(jnp.eye(len(means), dtype=bool), jnp.diag(1 - means**2), covariance)
        return OneStep(means @ mu, means @ matrix @ means + (matrix * covariance).sum())

    return _over(at, batch_size)


def sgd(batch_size: Any, mu: jax.Array, hessian: Hessian, trace_h_sigma: Any) -> OneStep:
    """SGD: a = |μ|², q = μᵀHμ + tr(HΣ)/B (McCandlish et al., equation 2.6).

    Args:
      batch_size: B, any shape [...].
      mu: true gradient [P].
      hessian: of the loss.
      trace_h_sigma: tr(HΣ) of the per-example covariance Σ; Σ_i H_ii σ_i² if coordinates are independent.

    Returns:
      drift [...] and curvature [...].
    """
    batch_size = jnp.asarray(batch_size)
    drift = jnp.broadcast_to(mu @ mu, batch_size.shape)
    return OneStep(drift, mu @ hessian.product(mu) + trace_h_sigma / batch_size)


def adam_mean_field(
    batch_size: Any, mu: jax.Array, sigma: jax.Array, hessian: Hessian, b1: float = 0.9, eps: float = 0.0
) -> OneStep:
    """Adam with β2 near 1 and independent coordinates: √v̂ sits at its mean √(μ² + σ²/B) (THEORY section 7).

    Drift per coordinate d = μ/(√v + eps); second moment (μ² + kσ²/B)/(√v + eps)², k = (1−β1)/(1+β1): the
    one-step ("instantaneous") reading. With β1 = 0 it is a softened sign.

    Args:
      batch_size: B, any shape [...].
      mu: true gradient [P].
      sigma: per-example standard deviation [P].
      hessian: of the loss.
      b1: decay of the first moment, in [0, 1).
      eps: Adam's eps.

    Returns:
      drift [...] and curvature [...].
    """
    noise_share = (1 - b1) / (1 + b1)

    def at(size: jax.Array) -> OneStep:
        root = jnp.sqrt(mu**2 + sigma**2 / size) + eps
        scale = jnp.where(root > 0, 1 / _nonzero(root), 0.0)
        mean = mu * scale
        noise = (noise_share * sigma**2 / size * scale**2 * hessian.diagonal).sum()
        return OneStep(mean @ mu, mean @ hessian.product(mean) + noise)

    return _over(at, batch_size)


def softened_sign_mean(batch_size: Any, mu: Any, sigma: Any, eps: Any) -> jax.Array:
    """E[G/(|G| + eps)] of a Gaussian mini-batch gradient: Adam with β1 = β2 = 0 and its eps; broadcasts.

    By Gauss-Legendre quadrature in the noise over ±8 standard deviations, split where G changes sign.
    """
    mu, spread, eps = jnp.broadcast_arrays(mu, jnp.asarray(sigma) / jnp.sqrt(jnp.asarray(batch_size)), eps)
    points, weights = (jnp.asarray(each) for each in _legendre(NODES))
    kink = jnp.clip(-mu / jnp.where(spread > 0, spread, 1.0), -8, 8)[..., None]
    total = jnp.zeros(mu.shape)
    for low, high in ((jnp.full_like(kink, -8), kink), (kink, jnp.full_like(kink, 8))):
        noise = (high + low) / 2 + (high - low) / 2 * points
        value = mu[..., None] + spread[..., None] * noise
        softened = value / jnp.maximum(jnp.abs(value) + eps[..., None], jnp.finfo(value.dtype).tiny)
        density = jnp.exp(-(noise**2) / 2) / jnp.sqrt(2 * jnp.pi)
        total += (softened * density * weights * (high - low) / 2).sum(-1)
    return total


def _legendre(nodes: int) -> tuple[Any, Any]:
    import numpy as np

    return np.polynomial.legendre.leggauss(nodes)


def _over(function: Callable[[jax.Array], OneStep], batch_size: Any) -> OneStep:
    sizes = jnp.asarray(batch_size, jnp.result_type(float))
    flat = jax.vmap(function)(sizes.reshape(-1))
    return OneStep(*(each.reshape(sizes.shape) for each in flat))


def momentum_batch(batch_size: Any, decay: Any) -> Any:
    """Effective batch B(1+β)/(1−β) of an exponential average of gradients, for one step at constant μ."""
    return batch_size * (1 + decay) / (1 - decay)


def lion_batch(batch_size: Any, b1: Any = 0.9, b2: Any = 0.99) -> Any:
    """Lion's one-step effective batch B / [(1−β1)² + β1²(1−β2)/(1+β2)]; 71 B at (0.9, 0.99)."""
    return batch_size / ((1 - b1) ** 2 + b1**2 * (1 - b2) / (1 + b2))


def momentum_gain(decay: Any, reading: str = "instantaneous") -> Any:
    """How many times larger a batch the average of momentum is worth to sign(m), in drift²/noise.

    "instantaneous": (1+β)/(1−β), right for a single step. "long_run": successive signs are correlated like
    2/π·arcsin(βᵏ), so the noise that adds up over a run is larger by 1 + 2Σ_k (2/π)arcsin(βᵏ); 1.43 at β = 0.9.

    Raises:
      ValueError: another reading.
    """
    instantaneous = (1 + decay) / (1 - decay)
    if reading == "instantaneous":
        return instantaneous
    if reading != "long_run":
        raise ValueError(f"reading must be instantaneous or long_run, got {reading!r}")
    lags = jnp.arange(1, 4097)
    return instantaneous / (1 + 2 * (2 / jnp.pi * jnp.arcsin(jnp.asarray(decay) ** lags)).sum())


class SurgeCoefficients(NamedTuple):
    """The small-batch law of sign descent: b_noise = B_peak (inf where it has no peak), max_lr, max_gain ΔL_max."""

    b_noise: jax.Array
    max_lr: jax.Array
    max_gain: jax.Array


def surge_coefficients(mu: jax.Array, sigma: jax.Array, hessian: Hessian) -> SurgeCoefficients:
    """B_noise = πT/2K, ε_max = A/2√(TK), ΔL_max = A²/2K (the paper, Theorem 2; THEORY section 4).

    A = Σμ²/σ, T = tr H, K = Σ_{i≠j} r_i r_j H_ij, r = μ/σ. Holds for B far below `validity` of the coordinates
    that matter, independent coordinates, every σ_i > 0. K <= 0 gives inf: the optimum only rises.
    """
    ratio = mu / sigma
    aligned = (mu * ratio).sum()
    trace = hessian.diagonal.sum()
    off = ratio @ hessian.product(ratio) - (ratio**2 * hessian.diagonal).sum()
    # A sum that cancels to rounding is not a coupling: it would give a peak at an enormous, meaningless B.
    off = jnp.where(off > 1e-6 * (ratio**2 * jnp.abs(hessian.diagonal)).sum(), off, 0.0)
    peaked = (off > 0) & (trace > 0)
    safe = jnp.where(peaked, off, 1.0)
    infinite = jnp.full((), jnp.inf)
    return SurgeCoefficients(
        jnp.where(peaked, jnp.pi * trace / (2 * safe), infinite),
        jnp.where(peaked, aligned / (2 * jnp.sqrt(_nonzero(trace) * safe)), infinite),
        jnp.where(peaked, aligned**2 / (2 * safe), infinite),
    )


def validity(mu: jax.Array, sigma: jax.Array) -> jax.Array:
    """πσ²/2μ² [P]: the small-batch form holds for B far below it; inf where μ = 0."""
    return jnp.where(mu == 0, jnp.inf, jnp.pi * sigma**2 / (2 * jnp.where(mu == 0, 1.0, mu) ** 2))


def large_batch_limit(mu: jax.Array, hessian: Hessian) -> OneStep:
    """Sign descent as B -> ∞: a = Σ|μ_i|, q = s'Hs', s' = sign μ."""
    signs = jnp.sign(mu)
    return OneStep(jnp.abs(mu).sum(), signs @ hessian.product(signs))


def gain(batch_size: Any, max_gain: Any, b_noise: Any) -> Any:
    """ΔL(B) = ΔL_max / (1 + B_noise/B), the fall of the loss in one step at the best rate: of SGD and of the surge."""
    return max_gain / (1 + b_noise / batch_size)


def steps_to_target(batch_size: Any, s_min: Any, b_noise: Any) -> Any:
    """S(B) = S_min (1 + B_noise/B), at the best rate of each B (McCandlish et al., equation 2.11)."""
    return s_min * (1 + b_noise / batch_size)


def examples_to_target(batch_size: Any, e_min: Any, b_noise: Any) -> Any:
    """E(B) = E_min (1 + B/B_noise) with E_min = S_min B_noise, so that (S/S_min − 1)(E/E_min − 1) = 1."""
    return e_min * (1 + batch_size / b_noise)


def critical_batch_size(b_noise: Any, overhead: Any = 0.2) -> Any:
    """Largest B whose examples exceed E_min by at most `overhead` (Zhang et al. 2410.21676, 20%): overhead·B_noise."""
    return overhead * b_noise


class Law(NamedTuple):
    """A rival law ε_opt(B) = max_lr · shape(B; shape parameters).

    Attributes:
      name: key in LAWS.
      parameters: names; the first is a scale that the law is proportional to.
      bounds: name -> (low, high) of the shape parameters; batch sizes are in units of the data's own range.
      function: (batch_size, **parameters) -> ε.
      peak: (**parameters) -> (batch size of the maximum, why): inf or nan with the reason where there is none.
      generalises: names of the laws that are special or limiting cases of it.
    """

    name: str
    parameters: tuple[str, ...]
    bounds: Mapping[str, tuple[float, float]]
    function: Callable[..., jax.Array]
    peak: Callable[..., tuple[float, str]]
    generalises: tuple[str, ...]


def surge(batch_size: Any, max_lr: Any, b_noise: Any) -> jax.Array:
    """ε_max · 2/(√(B_noise/B) + √(B/B_noise)) (the paper, equation 14): rises as √B, peaks at B_noise, falls."""
    root = jnp.sqrt(jnp.asarray(batch_size) / b_noise)
    return max_lr * 2 / (root + 1 / root)


def saturating_surge(batch_size: Any, max_lr: Any, b_scale: Any, r: Any) -> jax.Array:
    """Exact law for one signal-to-noise ratio s = |μ_i|/σ_i: (2·max_lr/√r) · E/(1 + E²/r), E = erf(√(B/b_scale)).

    b_scale = 2/s², r = D/O (THEORY section 4). For r < 1 max_lr is the height of the peak at b_scale·erfinv(√r)²
    and the plateau is 2√r/(1+r) of it; for r >= 1 the law only rises.
    """
    mean = erf(jnp.sqrt(jnp.asarray(batch_size) / b_scale))
    return 2 * max_lr / jnp.sqrt(r) * mean / (1 + mean**2 / r)


def homogeneous(batch_size: Any, mu_sum: Any, trace: Any, off_diagonal: Any, snr: Any) -> jax.Array:
    """(Σ|μ|/D) · E/(1 + E²O/D), E = erf(s√(B/2)): `saturating_surge` in gradient terms; O may be 0 or negative.

    Args:
      batch_size: B.
      mu_sum: Σ|μ_i|.
      trace: D = Σ H_ii > 0.
      off_diagonal: O = s'Hs' − D.
      snr: s = |μ_i|/σ_i, common to all coordinates.

    Returns:
      ε_opt; nan where the denominator is not positive.
    """
    mean = erf(snr * jnp.sqrt(jnp.asarray(batch_size) / 2))
    curvature = trace + mean**2 * off_diagonal
    return jnp.where(curvature > 0, mu_sum * mean / _nonzero(curvature), jnp.nan)


def mccandlish(batch_size: Any, max_lr: Any, b_noise: Any, alpha: Any) -> jax.Array:
    """ε_max / (1 + B_noise/B)^α (McCandlish et al., equation 2.6 and appendix): α = 1 SGD, 0.5 to 1 for Adam."""
    return max_lr / (1 + b_noise / jnp.asarray(batch_size)) ** alpha


def power(batch_size: Any, max_lr: Any, exponent: Any) -> jax.Array:
    """max_lr · B^exponent; max_lr is the rate at B = 1."""
    return max_lr * jnp.asarray(batch_size, jnp.result_type(float)) ** exponent


def saturating_peak_size(b_scale: Any, r: Any) -> jax.Array:
    """Batch size where `saturating_surge` is highest, b_scale·erfinv(√r)²; inf for r >= 1; broadcasts."""
    return jnp.where(jnp.asarray(r) < 1, b_scale * erfinv(jnp.sqrt(jnp.clip(r, 0.0, 1.0))) ** 2, jnp.inf)


def _saturating_peak(max_lr: Any, b_scale: Any, r: Any) -> tuple[float, str]:
    del max_lr
    why = "" if r < 1 else "r = D/O is at least 1: the law rises to a plateau and never falls"
    return float(saturating_peak_size(b_scale, r)), why


def _rises(**_: Any) -> tuple[float, str]:
    return float("inf"), "this law has no peak: it only rises"


def _power_peak(max_lr: Any, exponent: Any) -> tuple[float, str]:
    del max_lr
    if exponent > 0:
        return _rises()
    return float("nan"), "this law has no peak: it does not rise"


_SIZE = (1e-2, 1e2)  # of the smallest and the largest batch size in the data
LAWS: dict[str, Law] = {
    law.name: law
    for law in (
        Law(
            "constant",
            ("max_lr",),
            {},
            lambda batch_size, max_lr: max_lr + 0.0 * jnp.asarray(batch_size),
            lambda max_lr: (float("nan"), "a constant has no peak"),
            (),
        ),
        Law("sqrt", ("max_lr",), {}, lambda batch_size, max_lr: power(batch_size, max_lr, 0.5), _rises, ()),
        Law("linear", ("max_lr",), {}, lambda batch_size, max_lr: power(batch_size, max_lr, 1.0), _rises, ()),
        Law(
            "power",
            ("max_lr", "exponent"),
            {"exponent": (-1.5, 1.5)},
            power,
            _power_peak,
            ("constant", "sqrt", "linear"),
        ),
        Law(
            "mccandlish",
            ("max_lr", "b_noise", "alpha"),
            {"b_noise": _SIZE, "alpha": (0.05, 1.5)},
            mccandlish,
            _rises,
            ("constant", "sqrt", "linear", "power"),
        ),
        Law(
            "surge",
            ("max_lr", "b_noise"),
            {"b_noise": _SIZE},
            surge,
            lambda max_lr, b_noise: (float(b_noise), ""),
            ("sqrt",),
        ),
        Law(
            "saturating_surge",
            ("max_lr", "b_scale", "r"),
            {"b_scale": _SIZE, "r": (1e-3, 1e2)},
            saturating_surge,
            _saturating_peak,
            ("constant", "sqrt", "surge"),
        ),
    )
}
