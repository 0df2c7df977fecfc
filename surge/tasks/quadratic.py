"""The noisy quadratic, whose gradient moments, Hessian and every law are known exactly.

L(θ) = ½ θᵀHθ and, for example z ~ N(0, I), loss(θ, z) = L(θ) + zᵀΣ^{1/2}θ, so g_z = Hθ + Σ^{1/2}z.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from surge.tasks import Task


class Problem(NamedTuple):
    """Exact answers: hessian [P, P], noise_root Σ^{1/2} [P, P], start [P]; mu, sigma [P] there."""

    hessian: np.ndarray
    noise_root: np.ndarray
    start: np.ndarray
    mu: np.ndarray
    sigma: np.ndarray


def problem(
    hessian: str = "rank_one",
    size: int = 100,
    coupling: float = 0.15,
    noise: float = 16.0,
    correlation: float = 0.0,
    seed: int = 0,
) -> Problem:
    """The matrices of a noisy quadratic.

    Args:
      hessian: "diagonal" (I), "rank_one" (I + coupling·11ᵀ) or "random" (a Wishart matrix of trace
        `size`).
      size: number of parameters P.
      coupling: the rank-one part's strength.
      noise: per-example gradient std σ of every parameter, in units of the gradient's root mean
        square.
      correlation: ρ of the noise between any two parameters, 0 for the paper's independent
        coordinates.
      seed: of the random Hessian.

    Raises:
      ValueError: an unknown Hessian, or a correlation outside [0, 1).
    """
    if not 0 <= correlation < 1:
        raise ValueError(f"correlation must be in [0, 1), got {correlation}")
    ones = np.ones((size, size))
    if hessian == "diagonal":
        matrix = np.eye(size)
    elif hessian == "rank_one":
        matrix = np.eye(size) + coupling * ones
    elif hessian == "random":
        factor = np.random.default_rng(seed).normal(size=(size, 2 * size))
        matrix = factor @ factor.T / (2 * size)
    else:
        raise ValueError(f"hessian must be diagonal, rank_one or random, got {hessian!r}")
    start = np.linalg.solve(
        matrix, np.ones(size)
    )  # so that μ is aligned with 1 and one |μ|/σ serves everywhere
    mu = matrix @ start
    correlations = (1 - correlation) * np.eye(size) + correlation * ones
    root = noise * np.linalg.cholesky(correlations)
    return Problem(matrix, root, start, mu, np.full(size, noise))


def quadratic(**kwargs) -> Task:
    """The Task of `problem(**kwargs)`; losses are reported without noise."""
    exact = problem(**kwargs)
    hessian, root = (
        jnp.asarray(exact.hessian, jnp.float32),
        jnp.asarray(exact.noise_root, jnp.float32),
    )

    def loss(theta, example):
        return 0.5 * theta @ hessian @ theta + example @ theta

    return Task(
        init=lambda key: jnp.asarray(exact.start, jnp.float32),
        loss=loss,
        data=root,
        draw=lambda root, key: root @ jax.random.normal(key, root.shape[:1]),
        evaluation=jnp.zeros((1, len(exact.start)), jnp.float32),
    )
