"""The paper's law of sign descent from per-example moments.

It holds if coordinates were independent and gradients Gaussian.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial
from scipy import stats

from surge.gradients.curvature import LossFn, hutchinson, hvp, widened
from surge.gradients.moments import GradientMoments, merge
from surge.gradients.one_step import OneStepLR
from surge.theory.derivations import sign_mean
from surge.theory.second_order import Hessian

_hutchinson = jax.jit(hutchinson, static_argnames=("loss_fn", "samples"))


@cache  # one function for a loss, so that programs with a Hessian for an argument are compiled once
def _flat_hvp(loss_fn: LossFn) -> Callable[[Any, Any, jax.Array], jax.Array]:
    def product(params: Any, batch: Any, vector: jax.Array) -> jax.Array:
        return ravel_pytree(hvp(loss_fn, params, batch, ravel_pytree(params)[1](vector)))[0]

    return jax.jit(product)


def flat_hessian(
    loss_fn: LossFn, params: Any, batch: Any, key: jax.Array, *, probes: int = 32
) -> Hessian:
    """Hessian of the mean loss over the raveled parameters [P].

    Its diagonal is Hutchinson's, its products are by autodiff.

    Args:
      loss_fn: (params, example) -> scalar.
      params: where.
      batch: examples that the loss is the mean over.
      key: of the Hutchinson probes.
      probes: how many.
    """
    params = widened(params)
    diagonal = ravel_pytree(_hutchinson(loss_fn, params, batch, key, probes).diagonal)[0]
    return Hessian(diagonal, Partial(_flat_hvp(loss_fn), params, batch))


def independent_law(
    hessian: Hessian, groups: Sequence[GradientMoments], batch_sizes: Sequence[int]
) -> OneStepLR:
    """Sign descent with independent coordinates (the paper, Theorem 2) from per-example moments.

    Quadratic forms in the noisy means take their two factors from disjoint halves of the examples;
    the interval is a jackknife over the groups. Gaussian gradients and independent coordinates are
    assumed: real ones are not.

    Args:
      hessian: over the raveled parameters, see `flat_hessian`.
      groups: moments of an even number, at least 4, of disjoint sets of examples.
      batch_sizes: B [b].

    Returns:
      OneStepLR; n is the number of examples.
    """
    halves = groups[0::2], groups[1::2]
    pairs = [halves]
    for left_out in range(len(halves[0])):
        one, other = ([*half[:left_out], *half[left_out + 1 :]] for half in halves)
        pairs.append((one, other))
    sizes = jnp.asarray(batch_sizes, float)
    # [1 + g, 2, b]
    parts = np.array([_cross_parts(hessian, *_flat_halves(*pair), sizes) for pair in pairs])
    g = len(parts) - 1
    ratios = parts[:, 0] / parts[:, 1]
    spread = ((ratios[1:] - ratios[1:].mean(0)) ** 2).sum(0)
    error = np.sqrt((g - 1) / g * spread) * stats.t.ppf(0.975, g - 1)
    low = np.maximum(ratios[0] - error, 0)
    high = ratios[0] + error
    n = sum(int(group.n) for group in groups)
    return OneStepLR.of(parts[0, 0], parts[0, 1], low, high, n)


class SignSummary(NamedTuple):
    """What the closed forms of sign descent need of a checkpoint.

    Li et al., arXiv 2405.14578, Theorem 2, re-derived.

    mu_l1 = Σ|μ|, trace D = Σ H_ii, off_diagonal O = s'Hs' − D, snr s, and b_noise and max_lr of the
    small-batch surge, inf where its K is not positive. Products of means are taken between disjoint
    halves of the examples.
    """

    mu_l1: float
    trace: float
    off_diagonal: float
    snr: float
    b_noise: float
    max_lr: float

    @property
    def r(self) -> float:
        """D/O: between 0 and 1 the law has a peak; inf for a diagonal Hessian."""
        return self.trace / self.off_diagonal if self.off_diagonal else np.inf


def sign_summary(hessian: Hessian, groups: Sequence[GradientMoments]) -> SignSummary:
    """The closed forms' coefficients from moments of disjoint sets of examples.

    Groups are as `independent_law` takes them.
    """
    mu_a, mu_b, variance = _flat_halves(groups[0::2], groups[1::2])
    sigma = jnp.sqrt(variance)
    ratio_a, ratio_b = (
        jnp.where(sigma > 0, mu / jnp.where(sigma > 0, sigma, 1.0), 0.0) for mu in (mu_a, mu_b)
    )

    def off(one: jax.Array, other: jax.Array) -> float:
        return float(one @ hessian.product(other) - (one * other * hessian.diagonal).sum())

    mu_l1 = 0.5 * float(jnp.sign(mu_a) @ mu_b + jnp.sign(mu_b) @ mu_a)
    aligned = float(ratio_a @ mu_b)
    trace = float(hessian.diagonal.sum())
    coupling = off(ratio_a, ratio_b)
    peaked = coupling > 0 and trace > 0
    unknown = np.inf if np.isfinite(coupling) and np.isfinite(trace) else np.nan
    return SignSummary(
        mu_l1=mu_l1,
        trace=trace,
        off_diagonal=off(jnp.sign(mu_a), jnp.sign(mu_b)),
        snr=aligned / mu_l1 if mu_l1 else np.nan,  # a loss without a slope
        b_noise=np.pi * trace / (2 * coupling) if peaked else unknown,
        max_lr=aligned / (2 * np.sqrt(trace * coupling)) if peaked else unknown,
    )


def _flat_halves(
    one: Sequence[GradientMoments], other: Sequence[GradientMoments]
) -> tuple[jax.Array, ...]:
    """Mean [P] of either half and variance [P] of both."""
    first = _merged(one)
    second = _merged(other)
    trees = (first.mean, second.mean, merge(first, second).variance)
    return tuple(ravel_pytree(tree)[0] for tree in trees)


@jax.jit
def _cross_parts(hessian: Hessian, mu_a: Any, mu_b: Any, variance: Any, sizes: Any) -> jax.Array:
    """a and q [2, b] with every product of means taken between two disjoint sets of examples."""
    sigma = jnp.sqrt(variance)

    def at(size: jax.Array) -> jax.Array:
        one = sign_mean(size, mu_a, sigma)
        other = sign_mean(size, mu_b, sigma)
        drift = 0.5 * (one @ mu_b + other @ mu_a)
        return jnp.stack(
            [drift, one @ hessian.product(other) + ((1 - one * other) * hessian.diagonal).sum()]
        )

    return jax.lax.map(at, sizes).T


def _merged(groups: Sequence[GradientMoments]) -> GradientMoments:
    total = groups[0]
    for group in groups[1:]:
        total = merge(total, group)
    return total
