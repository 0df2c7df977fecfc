"""κ from one checkpoint: see `surge.theory.kappa` for what it is and what follows from it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from surge.gradients.one_step import (
    by_group,
    drifts_and_curvatures,
    jackknifed,
    standard_errors,
)
from surge.gradients.steps import StepSample
from surge.optimizers import Optimizer
from surge.theory import kappa as theory


class Kappa(NamedTuple):
    """κ, and the surge that it lets expect, in both readings of momentum.

    Arrays of value, low and high; where there are two rows, those of theory.READINGS.

    Attributes:
      kappa: K [2, 3]: of one step, kκ, and over a run, κ.
      turn: batch size at which steps are signal and noise alike [3].
      peak_over_plateau: how far ε_opt at its peak lies above ε_opt at large B [2, 3]; 1 without a
        peak.
      b_peak: where [2, 3]; inf without a peak.
      momentum: k = Σw², the part of a batch's noise that one step has.
      layers: κ of each layer, stepped in alone [layer, 3]; nan where that was not asked for.
      why: a reason where undefined.
    """

    kappa: np.ndarray
    turn: np.ndarray
    peak_over_plateau: np.ndarray
    b_peak: np.ndarray
    momentum: float
    layers: np.ndarray
    why: str


def kappa(
    samples: Sequence[StepSample],
    batch_sizes: Sequence[int],
    momentum: float,
    noise_scale: float | None = None,
) -> Kappa:
    """κ from the drifts and curvatures of sampled steps, with a jackknife over their groups.

    Args:
      samples: of one optimizer, at each batch size.
      batch_sizes: B [b].
      momentum: k = Σw² of the weights of past gradients, which sum to 1.
      noise_scale: tr Σ/|μ|², for steps that grow with the gradient; None: those of signs.
    """
    sizes = np.asarray(batch_sizes, float)
    drift, curvature = drifts_and_curvatures(samples)
    split = theory.split(sizes, drift, curvature, standard_errors(drift), noise_scale)
    ratios = np.stack([split.ratio, split.ratio / momentum])  # [reading, 1 + GROUPS]
    values = np.stack([_interval(row) for row in ratios])
    heights = theory.peak_over_plateau(values[:, [0, 2, 1]])
    if split.share is None:
        heights = np.where(np.isnan(values), np.nan, 1.0)
        peaks = np.where(np.isnan(values), np.nan, np.inf)
    else:
        rows = theory.peak_position(ratios, split.turn, split.share)
        peaks = np.stack([_open_interval(row) for row in rows])
    return Kappa(
        kappa=values,
        turn=_interval(split.turn),
        peak_over_plateau=heights,
        b_peak=peaks,
        momentum=momentum,
        layers=_layers(samples, sizes, momentum, noise_scale),
        why=split.why,
    )


def of_optimizer(
    samples: Sequence[StepSample],
    batch_sizes: Sequence[int],
    optimizer: Optimizer,
    noise_scale: float,
) -> Kappa:
    """κ of an optimizer's steps.

    Args:
      samples, batch_sizes: as for `kappa`.
      optimizer: whose momentum and kind count.
      noise_scale: tr Σ/|μ|² of the gradients, in the unit of batch_sizes.
    """
    weights = optimizer.weights(min(batch_sizes))
    momentum = float((weights**2).sum())
    return kappa(samples, batch_sizes, momentum, None if optimizer.sign_like else noise_scale)


def _layers(
    samples: Sequence[StepSample], sizes: np.ndarray, momentum: float, noise_scale: float | None
) -> np.ndarray:
    """κ of each layer [layer, 3]."""
    known = np.array([sample.layer_curvature is not None for sample in samples])
    by_layer = [sample.layer_drift for sample in samples if sample.layer_drift is not None]
    if not known.any():
        return np.full((0, 3), np.nan)
    drifts = np.stack(by_layer)  # [b, layer, k]
    missing = np.full(drifts.shape[1:], np.nan)
    curvatures = np.stack(
        [
            missing if sample.layer_curvature is None else sample.layer_curvature
            for sample in samples
        ]
    )
    values = []
    for layer in range(drifts.shape[1]):
        drift = by_group(drifts[:, layer])
        curvature = by_group(curvatures[:, layer])
        error = standard_errors(drift)
        split = theory.split(sizes, drift, curvature, error, noise_scale, known)
        values.append(_interval(split.ratio / momentum))
    return np.stack(values)


def _interval(rows: np.ndarray) -> np.ndarray:
    """Value, low and high of rows [1 + GROUPS]; nan where the value is."""
    low, high = jackknifed(rows[:, None])
    if np.isnan(rows[0]):
        return np.full(3, np.nan)
    return np.array([rows[0], low[0], high[0]])


def _open_interval(rows: np.ndarray) -> np.ndarray:
    """The same, open above where a part of the samples has no peak."""
    if np.isfinite(rows).all() or np.isnan(rows[0]):
        return _interval(rows)
    return np.array([rows[0], np.nanmin(rows), np.inf])
