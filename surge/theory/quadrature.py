"""Gauss-Legendre quadrature."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

NODES = 48


def legendre(dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Points in [-1, 1] and their weights, both [NODES]."""
    points, weights = np.polynomial.legendre.leggauss(NODES)
    return jnp.asarray(points, dtype), jnp.asarray(weights, dtype)
