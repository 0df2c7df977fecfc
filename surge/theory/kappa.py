"""Is a surge to be expected? κ, the curvature that a step's noise feels over that of its mean.

Split a step u(B) into its mean and its noise, of which the mean holds a share x(B) of what a
noiseless step is worth: aᵀ∇L = √x · a∞. Its curvature is then q = x·S + (1 − x)·N, where S is that
of a step all signal and N that of one all noise. With K = N/S, and 1/x − 1 = y for the noise over
the signal of a batch's gradient,

    ε_opt(B) = a/q = ε_∞ · √(1 + y) / (1 + K·y).

It surges if and only if K < 1/2: up to x = K/(1 − K), where it is 1/(2√(K(1 − K))) times the
plateau that it falls to. A momentum takes a part k of the noise out of one step, K = kκ; over a run
of many steps the noise adds up again, K = κ. Correlations between coordinates are in N. Steps that
do not shrink where the gradient is noise (SGD) have x = 1, q = S + N·y, and never surge.
"""

from typing import Any, NamedTuple

import numpy as np
from scipy import optimize, special

from surge.theory.noise import NOT_FINITE

READINGS = ("one step", "long run")
TURNS = np.geomspace(1e-2, 1e9, 4_000)  # batch sizes at which signal may equal noise
SEEN = 0.1  # the least share of signal at the largest batch size from which S can be told
QUIET = 0.9  # and the share at the smallest, beyond which N cannot
LEVEL = 9.0  # χ² by which a drift that falls with noise must beat a level one: three errors
FLOOR = 0.01  # relative error of a drift or curvature, at least: of the shape, not of the sample


def mean_field_share(batch_size: Any, turn: Any) -> np.ndarray:
    """x = 1/(1 + y), y = turn/B: u = g/√(E g²), as Adam's at large β2."""
    return 1 / (1 + np.asarray(turn) / batch_size)


def sign_share(batch_size: Any, turn: Any) -> np.ndarray:
    """x = erf²: u = sign(g) of Gaussian g, with the same x for small B."""
    return special.erf(np.sqrt(np.pi / 4 * np.asarray(batch_size) / turn)) ** 2


SHARES = (mean_field_share, sign_share)


def peak_over_plateau(ratio: Any) -> np.ndarray:
    """How far the optimum at the peak lies above that at large B, 1 where there is no peak.

    Args:
      ratio: K [...].

    Example:
      >>> [round(float(share), 2) for share in peak_over_plateau([0.1, 0.3, 0.5, 2.0])]
      [1.67, 1.09, 1.0, 1.0]
    """
    low = np.minimum(np.asarray(ratio, float), 0.5)
    with np.errstate(divide="ignore"):
        return 1 / (2 * np.sqrt(low * (1 - low)))


def peak_position(ratio: Any, turn: Any, share: Any = mean_field_share) -> np.ndarray:
    """B at which the optimum peaks, inf where it only rises.

    Args:
      ratio: K [...].
      turn: batch size at which y = 1, of the same shape.
      share: one of SHARES.
    """
    ratio, turn = np.broadcast_arrays(np.asarray(ratio, float), np.asarray(turn, float))
    surges = ratio < 0.5
    signal = np.where(surges, ratio / (1 - np.where(surges, ratio, 0.0)), 0.0)
    if share is sign_share:
        position = 4 / np.pi * special.erfinv(np.sqrt(signal)) ** 2 * turn
    else:
        position = turn * signal / (1 - signal)
    return np.where(surges, position, np.where(np.isnan(ratio), np.nan, np.inf))


class Split(NamedTuple):
    """Steps split into signal and noise; r rows, of all samples and with a part left out.

    Attributes:
      ratio: K = N/S [r].
      turn: batch size at which signal equals noise [r].
      share: one of SHARES; None where the drift is level: such steps never surge.
      why: a reason where undefined.
    """

    ratio: np.ndarray
    turn: np.ndarray
    share: Any
    why: str


def split(
    batch_size: np.ndarray,
    drift: np.ndarray,
    curvature: np.ndarray,
    error: np.ndarray,
    noise_scale: float | None,
    known: np.ndarray | None = None,
) -> Split:
    """Fits the law's parts to drifts and curvatures.

    Args:
      batch_size: B [b].
      drift: a [r, b]; the first row is of all samples.
      curvature: q [r, b].
      error: standard error of log a [b].
      noise_scale: batch size at which a level drift's gradients are signal and noise alike,
        tr Σ/|μ|²; None where the steps are known not to grow with the gradient.
      known: where the curvature is known [b]; None: everywhere.
    """
    rows = len(drift)
    good = (drift > 0).all(0) & np.isfinite(drift).all(0) & np.isfinite(error)
    bent = good & np.isfinite(curvature).all(0) & (True if known is None else known)
    nothing = np.full(rows, np.nan)
    if not np.isfinite(drift[0]).any():
        return Split(nothing, nothing, None, NOT_FINITE)
    if good.sum() < 3 or bent.sum() < 2:
        return Split(nothing, nothing, None, "too few batch sizes at which steps descend for sure")
    weight = 1 / (np.where(good, error, np.inf) ** 2 + FLOOR**2) * good
    logs = np.log(np.where(good, drift, 1.0))
    fits = {share: _turns(batch_size, logs, weight, share) for share in SHARES}
    share = min(SHARES, key=lambda share: fits[share][1])
    turn, misfit = fits[share]
    level = _level_misfit(logs[:1], weight)[0]
    if noise_scale is not None and level - misfit < LEVEL:
        return _level_split(batch_size[bent], curvature[:, bent], noise_scale)
    shares = share(batch_size[None], turn[:, None])
    if shares[0, good].max() < SEEN:
        return Split(nothing, turn, share, "steps are all noise up to the largest batch size")
    if shares[0, good].min() > QUIET:
        return Split(nothing, turn, share, "steps are all signal down to the smallest batch size")
    ratio = np.array(
        [
            _ratio(signal, 1 - signal, bend)
            for signal, bend in zip(shares[:, bent], curvature[:, bent], strict=True)
        ]
    )
    return Split(ratio, turn, share, "" if np.isfinite(ratio[0]) else "steps have no curvature")


def _turns(
    batch_size: np.ndarray, logs: np.ndarray, weight: np.ndarray, share: Any
) -> tuple[np.ndarray, float]:
    """Where each row of log a [r, b] turns [r], by least squares; the first row's χ²."""
    shape = 0.5 * np.log(share(batch_size[None], TURNS[:, None]))  # [turn, b]
    misfit = np.stack([_level_misfit(row - shape, weight) for row in logs])
    return TURNS[misfit.argmin(1)], float(misfit[0].min())


def _level_misfit(logs: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """χ² of rows [n, b] about their means [n]."""
    mean = logs @ weight / weight.sum()
    return (logs - mean[:, None]) ** 2 @ weight


def _level_split(batch_size: np.ndarray, curvature: np.ndarray, noise_scale: float) -> Split:
    ratio = np.array(
        [_ratio(np.ones(len(batch_size)), noise_scale / batch_size, bend) for bend in curvature]
    )
    known = np.isfinite(ratio[0])
    why = "" if known else "steps have no curvature, or the noise scale is unknown"
    return Split(ratio, np.full(len(ratio), noise_scale), None, why)


def _ratio(signal: np.ndarray, noise: np.ndarray, curvature: np.ndarray) -> float:
    """N/S of q = S·signal + N·noise, by least squares of relative errors, neither below 0."""
    if not (np.isfinite(signal) & np.isfinite(noise) & (curvature > 0)).all():
        return np.nan
    parts = np.stack([signal, noise], -1) / curvature[:, None]
    of_signal, of_noise = optimize.nnls(parts, np.ones(len(curvature)))[0]
    return of_noise / of_signal if of_signal else np.inf
