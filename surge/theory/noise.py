"""Noise scales from gradient moments.

Numerators and denominators are unbiased; 95% intervals are over examples.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
ROUNDING = 1e-6  # of the mean square norm: gradients alike to this share differ by float32 alone
NOT_FINITE = "a gradient or a loss is not finite"
ALL_ZERO = "every gradient is zero: the loss does not depend on the parameters here"


class Estimate(NamedTuple):
    """A number with its 95% interval.

    Beside it the n examples it came from, its two parts, and why it is undefined.
    """

    value: float
    low: float
    high: float
    n: int
    numerator: float
    denominator: float
    why: str = ""


def undefined(n: int, numerator: float, denominator: float, why: str) -> Estimate:
    """nan with a reason."""
    return Estimate(math.nan, math.nan, math.nan, n, numerator, denominator, why)


def b_simple(square_norms: np.ndarray, alignments: np.ndarray, mean_square_norm: float) -> Estimate:
    """tr Σ/|μ|², the batch size at which noise and signal of the gradient are equal.

    McCandlish et al., equation 2.9.

    Both parts are unbiased; their covariance comes from the jackknife, exactly, since leaving
    example i out changes |ḡ|² by a function of |g_i|² and ⟨g_i, ḡ⟩ alone. The interval is
    Fieller's: open above where |μ|² is not significantly positive.

    Args:
      square_norms: |g_i|² of each example [n].
      alignments: ⟨g_i, ḡ⟩ with the mean ḡ of these same examples [n].
      mean_square_norm: |ḡ|².

    Returns:
      Estimate with numerator tr Σ and denominator |μ|²; nan with a reason where |μ|² reads as not
      positive, where a gradient is not finite (named by index), and for n < 3.
    """
    square_norms = np.asarray(square_norms, float)
    alignments = np.asarray(alignments, float)
    n = len(square_norms)
    broken = np.flatnonzero(~np.isfinite(square_norms))
    if len(broken):
        return undefined(
            n, math.nan, math.nan, f"the gradient of example {broken[0]} is not finite"
        )
    if n < 3:
        return undefined(n, math.nan, math.nan, f"{n} examples are too few: at least 3")
    total = square_norms.sum()
    if total == 0:
        return undefined(n, 0.0, 0.0, ALL_ZERO)
    squares = n**2 * mean_square_norm

    def parts(squares: Any, total: Any, n: int) -> tuple[Any, Any]:
        signal = (squares - total) / (n * (n - 1))
        return total / n - signal, signal

    trace, signal = parts(squares, total, n)
    without = parts(squares - 2 * n * alignments + square_norms, total - square_norms, n - 1)
    covariance = np.cov(np.stack(without), ddof=0) * (n - 1)
    covariance[0, 0] += (ROUNDING * total / n) ** 2
    return ratio(float(trace), float(signal), covariance, n)


def ratio(
    numerator: float,
    denominator: float,
    covariance: np.ndarray,
    n: int,
    freedom: float | None = None,
) -> Estimate:
    """numerator/denominator with Fieller's interval from their covariance [2, 2].

    Args:
      numerator, denominator: whose ratio it is.
      covariance: of both [2, 2].
      n: examples behind them.
      freedom: degrees of freedom of the covariance; None: n - 1.

    Returns:
      Estimate; nan with a reason for a denominator that is not positive; the upper end is inf where
      the denominator is not significantly positive. Neither the value nor an end is below 0, which
      no noise scale is: a numerator that noise or rounding made negative reads as 0.
    """
    if not denominator > 0:
        return undefined(
            n,
            numerator,
            denominator,
            f"the denominator reads {denominator:.3g}: take more examples",
        )
    quantile = float(stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1 if freedom is None else freedom))
    v11, v12, v22 = (float(covariance[at]) for at in ((0, 0), (0, 1), (1, 1)))
    a = denominator**2 - quantile**2 * v22
    b = numerator * denominator - quantile**2 * v12
    c = numerator**2 - quantile**2 * v11
    root = math.sqrt(max(b**2 - a * c, 0.0))
    value = max(numerator / denominator, 0.0)
    if a <= 0:
        low = c / (b + root) if b + root > 0 else 0.0
        high = math.inf
    else:
        low = (b - root) / a
        high = (b + root) / a
    # Fieller's set holds the ratio; its ends may miss it by rounding.
    low = min(max(low, 0.0), value)
    return Estimate(value, low, max(high, value), n, numerator, denominator)


def two_batch(small: np.ndarray, big: np.ndarray, small_size: int, big_size: int) -> Estimate:
    """tr Σ/|μ|² from squared norms of gradients at two batch sizes.

    McCandlish et al., appendix A.1.

    Args:
      small: |G|² of independent batches of small_size [k].
      big: |G|² of independent batches of big_size [m].
      small_size: B_small.
      big_size: B_big > B_small.

    Raises:
      ValueError: big_size is not above small_size, or fewer than two batches of either.
    """
    if big_size <= small_size or min(len(small), len(big)) < 2:
        raise ValueError("two_batch needs big_size > small_size and at least two batches of each")
    small = np.asarray(small, float)
    big = np.asarray(big, float)
    small_mean = np.mean(small)
    big_mean = np.mean(big)
    weights = np.array(
        [
            [1 / (1 / small_size - 1 / big_size), -1 / (1 / small_size - 1 / big_size)],
            [-small_size / (big_size - small_size), big_size / (big_size - small_size)],
        ]
    )
    numerator, denominator = weights @ [small_mean, big_mean]
    spread = np.diag([np.var(small, ddof=1) / len(small), np.var(big, ddof=1) / len(big)])
    return ratio(numerator, denominator, weights @ spread @ weights.T, min(len(small), len(big)))


def sign_noise_scale(mean_a: np.ndarray, mean_b: np.ndarray, std: np.ndarray, n: int) -> Estimate:
    """(‖σ‖₁/‖μ‖₁)², the noise scale in the dual norm of sign descent (Naganuma et al. 2602.03001).

    ‖μ‖₁ by plug-in is biased up by noise; two disjoint halves give Σ sign(μ_a)·μ_b <= ‖μ‖₁,
    unbiased for what sign descent on one half gains on the other. The interval is from the two
    halves' exchange and the noise of the sum, treating coordinates as independent (as the law
    does).

    Args:
      mean_a: mean gradient of one half [P].
      mean_b: of the other [P].
      std: per-example σ [P].
      n: examples in both halves.
    """
    signal = 0.5 * float(np.sign(mean_a) @ mean_b + np.sign(mean_b) @ mean_a)
    spread = float(np.abs(std).sum())
    if not (math.isfinite(signal) and math.isfinite(spread)):
        return undefined(n, spread, signal, NOT_FINITE)
    if spread == 0 and not mean_a.any():
        return undefined(n, spread, signal, ALL_ZERO)
    noise = math.sqrt(float((std**2).sum()) / n)
    quantile = float(stats.norm.ppf(0.5 + CONFIDENCE / 2))
    if signal <= 0:
        return undefined(
            n,
            spread,
            signal,
            "the l1 norm of the mean gradient reads as not positive: more examples",
        )
    low, high = (spread / (signal + quantile * noise)) ** 2, math.inf
    if signal > quantile * noise:
        high = (spread / (signal - quantile * noise)) ** 2
    return Estimate((spread / signal) ** 2, low, high, n, spread, signal)


def validity_quantiles(
    mean: np.ndarray, std: np.ndarray, n: int, quantiles: np.ndarray
) -> np.ndarray:
    """Quantiles over parameters of πσ²/2μ².

    Far below it the small-batch law holds (the paper, section 2).

    The plug-in μ of n examples puts a ceiling of about πn/2 on the bound of a parameter whose mean
    is all noise. The interval takes every parameter at an end of its own 95% interval, so that it
    holds the quantile more often.

    Args:
      mean: μ [P] over n examples.
      std: σ [P] of one example; parameters with σ = 0 are left out.
      n: examples.
      quantiles: [q], in [0, 1].

    Returns:
      [q, 3]: value, low and high, which is inf where the means may be zero; nan where no parameter
      has noise.
    """
    snr = _snr(mean, std)
    if not len(snr):
        return np.full((len(quantiles), 3), math.nan)
    reach = stats.norm.ppf(0.5 + CONFIDENCE / 2) / math.sqrt(n)
    # The bound falls as the signal-to-noise ratio rises: its q quantile belongs to that ratio's 1 -
    # q quantile.
    ends = [snr, snr + reach, np.maximum(snr - reach, 0)]
    at = 1 - np.asarray(quantiles)
    with np.errstate(divide="ignore"):
        return np.stack([np.pi / (2 * np.quantile(ratios, at) ** 2) for ratios in ends], -1)


def _snr(mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    active = std > 0
    return np.abs(mean[active]) / std[active]


def validity_histogram(mean: np.ndarray, std: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Share of parameters whose πσ²/2μ² lies between neighbouring edges [e] -> [e - 1].

    What lies beyond the outermost edges counts in the outermost bins; all nan where no parameter
    has noise. See `validity_quantiles`.
    """
    with np.errstate(divide="ignore"):
        bound = np.clip(np.pi / (2 * _snr(mean, std) ** 2), edges[0], edges[-1])
    if not len(bound):
        return np.full(len(edges) - 1, math.nan)
    return np.histogram(bound, edges)[0] / len(bound)
