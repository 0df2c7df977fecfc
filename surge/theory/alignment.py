"""Basins of several batch sizes laid over each other: the shifts in log ε that make them one.

Parameters are, in this order, log ε_opt and log curvature of each batch size and the shape that
they share; Gauss-Newton with runs weighted by their distance from the optimum of the moment.
"""

from typing import NamedTuple

import numpy as np
from scipy import stats

from surge.theory import clustered
from surge.theory.replicates import Runs, cell_means, centred, kernel, lowest
from surge.theory.shape import TERMS, precision, unit_basin

CURVATURE = 1.0  # typical distance of log curvatures from a power of B
ITERATIONS = 60
PATIENCE = 15  # iterations at full steps
STEPS = 0.35, 1.0, 0.7  # largest in an iteration, of log ε_opt, log curvature and shape
REACH = 2.0  # in log ε: so far beyond the rates an optimum is looked for
FLATTEST = 4.0  # log curvatures stay this near to where they start
# A run this share of its height above the optimum from where it should be is no surprise: far runs,
# which rest on the shape, do not rule near ones, however little noise there is.
MISSHAPEN = 0.2
QUIET = 1e-10  # of the variance of values: noise is taken to be at least this
POOLED = 4  # degrees of freedom at which batch sizes share their noise


class Basin(NamedTuple):
    """Parameters: of each batch size [sizes], and of the shape [TERMS]."""

    centre: np.ndarray  # log ε_opt
    bend: np.ndarray  # log curvature
    shape: np.ndarray


class Alignment(NamedTuple):
    """Basins as they were fitted, and what errors are made of.

    Attributes:
      basin: the parameters, p = 2 sizes + TERMS of them.
      moving: how far each centre went in the last iteration [sizes].
      height: value at each centre [sizes].
      runs: number of runs within each window [sizes].
      variance: of one run [sizes].
      inverse: of the normal matrix [p, p].
      prior: precision of the parameters over problems [p, p].
      gram, squares: normal matrix of each batch size [sizes, c, c], c = 2 + TERMS, and the same
        with squared weights.
      score: gradient of the log likelihood [p], 0 where the fit has settled.
      skewed: each batch size's part in the gradient by the skew [sizes].
      noise, freedom: variance of one run as each centre feels it, and its degrees of freedom
        [sizes].
    """

    basin: Basin
    moving: np.ndarray
    height: np.ndarray
    runs: np.ndarray
    variance: np.ndarray
    inverse: np.ndarray
    prior: np.ndarray
    gram: np.ndarray
    squares: np.ndarray
    score: np.ndarray
    skewed: np.ndarray
    noise: np.ndarray
    freedom: np.ndarray


class _Slopes(NamedTuple):
    residual: np.ndarray  # [n]
    columns: np.ndarray  # [n, c] derivatives of the value by centre, bend and shape
    level: np.ndarray  # [n] value at the optimum, of each run's level
    weight: np.ndarray  # [n]
    variance: np.ndarray  # [sizes]


def align(runs: Runs) -> Alignment:
    """Fits one shape to the basins of all batch sizes in `runs`."""
    start = _start(runs)
    sizes = len(start.centre)
    lowest_rate, highest_rate = _ends(runs)
    prior = _prior(runs.log_size)
    basin = start
    moving = np.full(sizes, np.inf)
    variance = np.full(sizes, np.var(runs.value))
    for iteration in range(ITERATIONS):
        slopes = _slopes(runs, basin, variance)
        variance = slopes.variance
        normal = _whole(_gram(runs, slopes.weight, slopes.columns)) + prior
        score = _score(runs, slopes, basin, prior)[0]
        ridge = 1e-9 * np.diag(np.diag(normal)) + 1e-12 * np.eye(len(normal))
        move = np.linalg.solve(normal + ridge, score)
        limit = np.repeat(STEPS, (sizes, sizes, TERMS))
        # Steps shrink where they would go to and fro.
        move = np.clip(move, -limit, limit) * min(1.0, PATIENCE / (iteration + 1))
        centre = np.clip(basin.centre + move[:sizes], lowest_rate - REACH, highest_rate + REACH)
        bend = basin.bend + move[sizes : 2 * sizes]
        bend = np.clip(bend, start.bend - FLATTEST, start.bend + FLATTEST)
        moving = np.abs(centre - basin.centre)
        basin = Basin(centre, bend, basin.shape + move[2 * sizes :])
        if moving.max() < 1e-8:
            break
    return _alignment(runs, basin, moving, prior, variance)


def covariance(alignment: Alignment, noise: np.ndarray) -> np.ndarray:
    """Of the parameters [p, p], for runs of each batch size with so much noise [sizes]."""
    meat = _whole(alignment.squares * noise[:, None, None]) + alignment.prior
    return alignment.inverse @ meat @ alignment.inverse


def own_variance(alignment: Alignment, noise: np.ndarray) -> np.ndarray:
    """Part of each centre's variance [sizes] that comes from the runs of its own batch size."""
    variance = []
    for index, squares in enumerate(alignment.squares):
        pull = alignment.inverse[index, _places(len(noise), index)]
        variance.append(noise[index] * pull @ squares @ pull)
    return np.array(variance)


def shape_variance(alignment: Alignment) -> np.ndarray:
    """Part of each centre's variance [sizes] that no run tells: basins differ over problems."""
    whole = alignment.inverse @ alignment.prior @ alignment.inverse
    return np.diag(whole)[: len(alignment.moving)]


def one_skew(alignment: Alignment, noise: np.ndarray, freedom: float) -> float:
    """p-value of one skew for all batch sizes: a score test against a skew for each."""
    sizes = len(noise)
    if sizes < 2:
        return 1.0
    width = len(alignment.inverse)
    own, cross = np.zeros((2, sizes - 1, width))
    for index in range(sizes - 1):  # the last one's skew is what is left of the shared one
        own[index, _places(sizes, index)] = alignment.gram[index, 2]
        cross[index, _places(sizes, index)] = noise[index] * alignment.squares[index, 2]
    meat = _whole(alignment.squares * noise[:, None, None]) + alignment.prior
    project = -own @ alignment.inverse
    spread = project @ meat @ project.T + project @ cross.T + cross @ project.T
    spread += np.diag(noise[:-1] * alignment.squares[:-1, 2, 2])
    score = alignment.skewed[:-1] + project @ alignment.score
    statistic = score @ np.linalg.pinv(spread, hermitian=True) @ score
    return float(stats.f.sf(statistic / (sizes - 1), sizes - 1, max(freedom, 1)))


def _alignment(
    runs: Runs, basin: Basin, moving: np.ndarray, prior: np.ndarray, variance: np.ndarray
) -> Alignment:
    sizes = len(moving)
    slopes = _slopes(runs, basin, variance)
    gram = _gram(runs, slopes.weight, slopes.columns)
    squares = _gram(runs, slopes.weight**2, slopes.columns)
    inverse = np.linalg.pinv(_whole(gram) + prior, hermitian=True)
    score, skewed = _score(runs, slopes, basin, prior)
    noise, freedom = np.empty((2, sizes))
    for index in range(sizes):
        noise[index], freedom[index] = _noise(runs, slopes, inverse, index)
    inside = slopes.weight > 0
    used = np.bincount(runs.size, inside, sizes)
    height = np.bincount(runs.size, slopes.level * inside, sizes) / used
    return Alignment(
        basin,
        moving,
        height,
        used.astype(int),
        slopes.variance,
        inverse,
        prior,
        gram,
        squares,
        score,
        skewed,
        noise,
        freedom,
    )


def _start(runs: Runs) -> Basin:
    """Parabolas where smoothed means are lowest."""
    mean = cell_means(runs)
    own = [runs.cell_size == index for index in range(len(runs.log_size))]
    centre, curvature = np.array([lowest(runs.log_lr[cells], mean[cells]) for cells in own]).T
    bowls = curvature[curvature > 0]
    least = np.median(bowls) / 5 if len(bowls) else max(np.ptp(mean), QUIET)
    return Basin(centre, np.log(np.maximum(curvature, least)), np.zeros(TERMS))


def _ends(runs: Runs) -> tuple[np.ndarray, np.ndarray]:
    own = [runs.log_lr[runs.cell_size == index] for index in range(len(runs.log_size))]
    return np.array([rates.min() for rates in own]), np.array([rates.max() for rates in own])


def _prior(log_size: np.ndarray) -> np.ndarray:
    """Precision [p, p]: of the shape, and of log curvatures about a line in log B."""
    sizes = len(log_size)
    line = np.column_stack([np.ones(sizes), log_size])
    prior = np.zeros((2 * sizes + TERMS, 2 * sizes + TERMS))
    prior[sizes : 2 * sizes, sizes : 2 * sizes] = np.eye(sizes) - line @ np.linalg.pinv(line)
    prior /= CURVATURE**2
    prior[2 * sizes :, 2 * sizes :] = np.diag(precision())
    return prior


def _slopes(runs: Runs, basin: Basin, variance: np.ndarray) -> _Slopes:
    """The basins at each run and their derivatives; the variance [sizes] that was last found."""
    z = runs.log_lr - basin.centre[runs.cell_size]
    unit, slope, by_shape = unit_basin(z, basin.shape)
    curvature = np.exp(basin.bend)[runs.cell_size][:, None]
    cells = curvature * np.column_stack([-slope, unit, by_shape, unit])
    height = cells[:, -1]
    spread = variance[runs.cell_size] + (MISSHAPEN * height) ** 2
    weight = (kernel(runs, basin.centre) / spread)[runs.cell]
    table = np.column_stack([runs.value - height[runs.cell], cells[:, :-1][runs.cell]])
    table = centred(runs, weight, table)
    level = runs.value - height[runs.cell] - table[:, 0]
    return _Slopes(table[:, 0], table[:, 1:], level, weight, _variance(runs, weight, table[:, 0]))


def _variance(runs: Runs, weight: np.ndarray, residual: np.ndarray) -> np.ndarray:
    """Noise of one run of each batch size [sizes], drawn towards that of all."""
    sizes = len(runs.log_size)
    inside = weight > 0
    first = np.unique(runs.level[inside], return_index=True)[1]
    levels = np.bincount(runs.size[inside][first], minlength=sizes)
    count = np.bincount(runs.size, inside, sizes)
    freedom = np.maximum(count - levels - 2, 0.5)
    mean_weight = np.bincount(runs.size, weight, sizes) / count
    squares = np.bincount(runs.size, weight * residual**2, sizes) / mean_weight
    pooled = squares.sum() / freedom.sum()
    drawn = (squares + POOLED * pooled) / (freedom + POOLED)
    return np.maximum(drawn, QUIET * np.var(runs.value) + 1e-30)


def _gram(runs: Runs, weight: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Weighted products of columns [n, c] in each batch size [sizes, c, c]."""
    starts = np.searchsorted(runs.size, np.arange(len(runs.log_size)))[1:]
    parts = zip(np.split(columns * weight[:, None], starts), np.split(columns, starts), strict=True)
    return np.stack([left.T @ right for left, right in parts])


def _score(
    runs: Runs, slopes: _Slopes, basin: Basin, prior: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Gradient of the log likelihood [p], and each batch size's part by the skew [sizes]."""
    sizes = len(basin.centre)
    pull = slopes.columns * (slopes.weight * slopes.residual)[:, None]
    own = np.stack([np.bincount(runs.size, column, sizes) for column in pull.T], 1)
    score = np.concatenate([own[:, 0], own[:, 1], own[:, 2:].sum(0)])
    return score - prior @ np.concatenate(basin), own[:, 2]


def _noise(runs: Runs, slopes: _Slopes, inverse: np.ndarray, index: int) -> tuple[float, float]:
    """Variance of one run of a batch size as its centre feels it, and its degrees of freedom."""
    own = (runs.size == index) & (slopes.weight > 0)
    weight = slopes.weight[own]
    places = _places(len(runs.log_size), index)
    hat = np.zeros((len(places) + 1, len(places) + 1))
    hat[:-1, :-1] = inverse[np.ix_(places, places)]
    # A seed's level takes nothing from its pull, whose sum over the seed's runs is 0.
    alone = len(np.unique(runs.level[own])) == 1
    hat[-1, -1] = 1 / weight.sum() if alone else 0.0
    columns = np.column_stack([slopes.columns[own], np.ones(len(weight))])
    direction = np.append(hat[0, :-1], 0.0)
    return clustered.noise(direction, hat, columns, weight, slopes.residual[own], runs.cluster[own])


def _whole(blocks: np.ndarray) -> np.ndarray:
    """One matrix [p, p] of the blocks of each batch size [sizes, c, c]."""
    sizes = len(blocks)
    whole = np.zeros((2 * sizes + TERMS, 2 * sizes + TERMS))
    for index, block in enumerate(blocks):
        places = _places(sizes, index)
        whole[np.ix_(places, places)] += block
    return whole


def _places(sizes: int, index: int) -> np.ndarray:
    """Where the columns of a batch size stand among the parameters."""
    return np.concatenate([[index, sizes + index], 2 * sizes + np.arange(TERMS)])
