"""How what is measured moves with the training loss."""

import numpy as np
import xarray as xr

from surge.measurement.point import BOUNDS, bounds
from surge.theory.drift import power_law


def drift(dataset: xr.Dataset) -> xr.Dataset:
    """Exponents of the loss.

    Args:
      dataset: statistics with a dimension checkpoint, and the loss of each.
    """
    fits = {name: power_law(dataset.loss.values, values) for name, values in _series(dataset)}
    return xr.Dataset(
        {
            "drift": (("quantity", "bound"), bounds(*fits.values())),
            "drift_n": ("quantity", [fit.n for fit in fits.values()]),
            "drift_why": ("quantity", [fit.why for fit in fits.values()]),
        },
        coords={"quantity": list(fits), "bound": list(BOUNDS)},
    )


def _series(dataset: xr.Dataset) -> list[tuple[str, np.ndarray]]:
    values = dataset.sel(bound="value")
    series = [
        (f"noise scale, {scale}", values.noise_scale.sel(scale=scale).values)
        for scale in dataset.scale.values
    ]
    series += [
        ("validity bound, median", values.validity.sel(quantile=0.5).values),
        ("r = D/O", dataset.r.values),
        ("B_noise of the independent law", dataset.b_noise.values),
    ]
    series += [
        (f"B_peak measured, {label}", values.measured_peak.sel(optimizer=label).values)
        for label in dataset.optimizer.values
    ]
    return series
