"""Noise scales of the gradient, as a whole and by layer, and where the small-batch law holds."""

import numpy as np
import xarray as xr
from jax.flatten_util import ravel_pytree

from surge.gradients.noise import QUANTILES, VALIDITY_EDGES
from surge.measurement.point import BOUNDS, Point, bounds
from surge.measurement.statistics import statistic

SCALES = ("b_simple", "sign (l1)", "b_simple, normalisation layers")


@statistic
def noise(point: Point) -> xr.Dataset:
    """Scales with their intervals, quantiles and histogram of πσ²/2μ², share of exact zeros."""
    found = point.noise
    scales = found.b_simple, found.sign, found.norms
    layers = found.layers
    zeros = np.asarray(ravel_pytree(found.moments.zero_share)[0])
    return xr.Dataset(
        {
            "noise_scale": (("scale", "bound"), bounds(*scales)),
            "noise_scale_why": ("scale", [scale.why for scale in scales]),
            "layer_noise": (("layer", "bound"), bounds(*layers.values())),
            "layer_noise_why": ("layer", [layer.why for layer in layers.values()]),
            "validity": (("quantile", "bound"), found.validity),
            "validity_share": ("validity_bin", found.histogram),
            "zero_share": ((), float(zeros.mean())),
        },
        coords={
            "bound": list(BOUNDS),
            "scale": list(SCALES),
            "layer": list(layers),
            "quantile": list(QUANTILES),
            "validity_bin": VALIDITY_EDGES[:-1],
        },
    )
