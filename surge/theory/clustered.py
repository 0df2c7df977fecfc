"""Noise of an estimate when runs of one seed are alike: by clusters, and few of them."""

import math

import numpy as np
from scipy import special


def noise(
    direction: np.ndarray,  # [c] of the estimate, in the columns
    hat: np.ndarray,  # [c, c] inverse of the fit's normal matrix
    columns: np.ndarray,  # [n, c] that were fitted
    weight: np.ndarray,  # [n]
    residual: np.ndarray,  # [n]
    cluster: np.ndarray,  # [n]
) -> tuple[float, float]:
    """Variance of one run's noise as the estimate feels it, and its degrees of freedom.

    The estimate is a sum over clusters of weight · residual · (columns @ direction). Its squares
    are held against what independent noise of variance 1 would leave of them after the fit; the
    freedom is that of a χ² with the same mean and variance (Bell and McCaffrey 2002, here with all
    matrices of the size of the columns). nan and 0 where nothing is left.
    """
    cluster = np.unique(cluster, return_inverse=True)[1]

    def sums(rows: np.ndarray) -> np.ndarray:
        return np.stack([np.bincount(cluster, column) for column in rows.T], 1)

    pull = weight * (columns @ direction)
    score = np.bincount(cluster, pull * residual)
    # What is left of cluster g's pull is pull_g − W X hat X' pull_g; `outer` holds the products.
    pulled = sums(columns * pull[:, None]) @ hat
    weighted = sums(columns * (weight * pull)[:, None])
    squares = (columns * weight[:, None]).T @ (columns * weight[:, None])
    sides = np.concatenate([weighted, pulled], 1)
    one = np.eye(len(hat))
    nothing = np.zeros_like(hat)
    outer = np.block([[nothing, -one], [-one, squares]])
    diagonal = np.bincount(cluster, pull**2)
    taken = np.einsum("gi,ij,gj->g", sides, outer, sides)
    inner = outer @ (sides.T @ sides)
    mean = (diagonal + taken).sum()
    spread = (diagonal**2).sum() + 2 * (diagonal * taken).sum() + np.trace(inner @ inner)
    # As many clusters as columns: the fit leaves nothing to tell noise by.
    if mean <= 1e-9 * diagonal.sum() or spread <= 0:
        return math.nan, 0.0
    return float((score**2).sum() / mean), float(mean**2 / spread)


def moderated(variance: np.ndarray, freedom: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Variances [k] drawn towards what they have in common, and their freedom.

    An error that came out small by chance would rule whatever is fitted with it. How far variances
    are drawn follows from how much they differ beyond chance (Smyth 2004, limma).
    """
    known = (freedom > 0.5) & (variance > 0)
    if not known.any():
        return np.where(freedom > 0.5, variance, np.nan), freedom
    own = np.where(known, freedom, 0.0)
    middle = np.average(variance[known], weights=own[known])
    half = freedom[known] / 2
    # log χ²/freedom has the mean ψ(half) − log half and the variance ψ'(half): taken off, what is
    # left differs by the variances themselves.
    logs = np.log(variance[known]) - special.digamma(half) + np.log(half)
    excess = -1.0
    if len(logs) > 1:
        excess = np.var(logs, ddof=1) - special.polygamma(1, half).mean()
    if excess <= 0:
        return np.full(len(variance), middle), np.full(len(variance), own.sum())
    prior = 2 * _inverse_trigamma(excess)
    middle = math.exp(logs.mean() + special.digamma(prior / 2) - math.log(prior / 2))
    drawn = (own * np.where(known, variance, 0.0) + prior * middle) / (own + prior)
    return drawn, np.minimum(own + prior, own.sum())


def _inverse_trigamma(value: float) -> float:
    """Where ψ' is `value`, by Newton's method for 1/ψ', which is nearly straight."""
    x = 0.5 + 1 / value
    for _ in range(20):
        now = special.polygamma(1, x)
        x += now * (1 - now / value) / special.polygamma(2, x)
    return float(x)
