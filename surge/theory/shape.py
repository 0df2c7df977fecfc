"""The shape of a basin: a parabola in log ε whose slope is bent by as much as the data ask for.

With z = log ε − log ε_opt the slope is z exp(g(z)) with g(0) = 0, so that every such basin has its
one minimum at z = 0. g is a line, the skew, plus a walk with independent steps between KNOTS, to
either side: whatever lies far away says little of the middle unless near values agree with it.
With exp(g) = exp(1.5 p z) it is the parabola in ε^p, ((ε/ε_opt)^p − 1)²/2p², to 1.2% at
p |z| = 0.7.
"""

import numpy as np

KNOTS = np.array([0.0, 0.35, 0.7, 1.05, 1.4, 2.0, 2.8, 4.0])  # |z|, multiples of STEP
STEP = 0.05
LIMIT = 8.0  # of |z| and of |g|
TERMS = 1 + 2 * (len(KNOTS) - 1)
SKEW = 1.0  # typical slope of g
ROUGHNESS = 0.7  # typical change of g over one nat, beside its slope


def precision() -> np.ndarray:
    """Inverse variances [TERMS] of the shape, over problems."""
    steps = ROUGHNESS**2 * np.diff(KNOTS)
    return 1 / np.concatenate([[SKEW**2], steps, steps])


def _bends(z: np.ndarray) -> np.ndarray:
    """Derivatives [..., TERMS] of g(z) by the shape."""
    width = np.diff(KNOTS)
    right, left = (np.clip((side * z[..., None] - KNOTS[:-1]) / width, 0, 1) for side in (1, -1))
    return np.concatenate([z[..., None], right, left], -1)


def _slopes(bends: np.ndarray, z: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """Slope [..., 1 + TERMS] at z, and its derivatives by the shape."""
    slope = z * np.exp(np.clip(bends @ shape, -LIMIT, LIMIT))
    return slope[..., None] * np.concatenate([np.ones_like(bends[..., :1]), bends], -1)


_GRID = np.arange(-round(LIMIT / STEP), round(LIMIT / STEP) + 1) * STEP
_MIDDLE = _GRID[:-1] + STEP / 2
_GRID_BENDS = _bends(_GRID)
_MIDDLE_BENDS = _bends(_MIDDLE)


def unit_basin(z: np.ndarray, shape: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Height [n], slope [n], and derivatives of the height [n, TERMS] by the shape [TERMS]."""
    z = np.clip(z, -LIMIT + STEP, LIMIT - STEP)
    at_grid = _slopes(_GRID_BENDS, _GRID, shape)
    at_middle = _slopes(_MIDDLE_BENDS, _MIDDLE, shape)
    pieces = STEP / 6 * (at_grid[:-1] + 4 * at_middle + at_grid[1:])  # Simpson's rule
    total = np.concatenate([np.zeros((1, 1 + TERMS)), pieces.cumsum(0)])
    total -= total[len(_GRID) // 2]  # heights are above z = 0

    # From the grid point below z on, by Simpson's rule again: the height has no steps in z.
    below = np.floor((z + LIMIT) / STEP).astype(int)
    start = _GRID[below]
    half = (start + z) / 2
    at_half = _slopes(_bends(half), half, shape)
    at_z = _slopes(_bends(z), z, shape)
    rest = (z - start)[:, None] / 6 * (at_grid[below] + 4 * at_half + at_z)
    height = total[below] + rest
    return height[:, 0], at_z[:, 0], height[:, 1:]
