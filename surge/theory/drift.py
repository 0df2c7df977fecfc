"""How a quantity moves with the training loss: a power law through a few checkpoints."""

import math

import numpy as np
from scipy import stats

from surge.theory.noise import Estimate, undefined


def power_law(loss: np.ndarray, value: np.ndarray) -> Estimate:
    """Exponent p of value ∝ loss^p by least squares in logarithms, with Student's interval.

    Args:
      loss: training losses [n], > 0.
      value: the quantity at each [n]; what is not positive and finite is left out.

    Returns:
      Estimate of p: numerator and denominator are the covariance and the variance of the
      logarithms.
    """
    usable = (value > 0) & np.isfinite(value) & (loss > 0)
    n = int(usable.sum())
    if n < 3 or np.ptp(loss[usable]) == 0:
        return undefined(n, math.nan, math.nan, "defined at fewer than three losses")
    fit = stats.linregress(np.log(loss[usable]), np.log(value[usable]))
    reach = stats.t.ppf(0.975, n - 2) * fit.stderr
    variance = float(np.var(np.log(loss[usable])))
    slope = float(fit.slope)
    return Estimate(slope, slope - reach, slope + reach, n, slope * variance, variance)
