"""Where the peak of a curve may lie, by order alone: rising before it and falling after, no more.

Between two neighbouring points, before the first and after the last there is a gap. A curve that
peaks in a gap rises through all points before it and falls through all after it, and the best such
curve is two isotonic regressions (Barlow et al. 1972). A gap is rejected where it costs more χ²
than the best gap does by what happens, rarely enough, to a curve that is flat around it: no other
curve with its peak there is so easily mistaken.
"""

import functools
import math

import numpy as np
from scipy.optimize import isotonic_regression
from scipy.special import chdtrc

DRAWS = 4000  # of a flat curve: a probability of 5% is known to 0.35%
STEP = 0.2  # of log errors that share their draws
NOT_FLAT = 0.005  # probability of leaving a point out of the flat part of a curve that it is in
UNDOUBTED = 2.0  # χ² that one-sided tests at 5% never take for significant
ALTERNATIONS = 40  # between a curve and the optima that lie somewhere beyond a bound


def prefix_costs(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """χ² of the best rising curve through the first p points, p = 0 … n, of each row.

    Pool adjacent violators, for all rows at once: what the blocks explain, Σ (Σwy)²/Σw over them,
    is what is missing from Σwy².

    Args:
      values: [r, n].
      weight: 1/error² [n].

    Returns:
      [r, n + 1].
    """
    rows, n = values.shape
    moment = np.zeros((rows, n + 1))
    mass = np.ones((rows, n + 1))
    top = np.zeros(rows, int)  # blocks of a row; block 0 is a sentinel below all values
    moment[:, 0] = -np.inf
    explained = np.zeros(rows)
    costs = np.zeros((rows, n + 1))
    everyone = np.arange(rows)
    for point in range(n):
        # A block of its own for each new point; blocks that fall are merged until all rise.
        top += 1
        moment[everyone, top] = weight[point] * values[:, point]
        mass[everyone, top] = weight[point]
        explained += weight[point] * values[:, point] ** 2
        violators = everyone
        while len(violators):
            last = top[violators]
            ends = moment[violators, last] / mass[violators, last]
            falls = moment[violators, last - 1] > ends * mass[violators, last - 1]
            violators = violators[falls]
            last = last[falls]
            explained[violators] -= _pool(moment, mass, violators, last)
            top[violators] -= 1
        total = (weight[: point + 1] * values[:, : point + 1] ** 2).sum(1)
        costs[:, point + 1] = np.maximum(total - explained, 0.0)
    return costs


def _pool(moment: np.ndarray, mass: np.ndarray, rows: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Merges the last block of these rows into the one before it; what is explained less by it."""
    before = moment[rows, last - 1] ** 2 / mass[rows, last - 1]
    before += moment[rows, last] ** 2 / mass[rows, last]
    moment[rows, last - 1] += moment[rows, last]
    mass[rows, last - 1] += mass[rows, last]
    return before - moment[rows, last - 1] ** 2 / mass[rows, last - 1]


def gap_costs(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """χ² of the best curve that peaks in each gap of each row [r, n + 1]."""
    before = prefix_costs(values, weight)
    after = prefix_costs(values[:, ::-1], weight[::-1])[:, ::-1]
    return before + after


def _seen_costs(y: np.ndarray, weight: np.ndarray, bound: np.ndarray) -> np.ndarray:
    """The same of one row [n + 1], whose points may lie anywhere beyond a bound."""
    n = len(y)
    before = [_rising_cost(y[:p], weight[:p], bound[:p]) for p in range(n + 1)]
    after = [_rising_cost(y[p:][::-1], weight[p:][::-1], bound[p:][::-1]) for p in range(n + 1)]
    return np.array(before) + np.array(after)


def _rising_cost(y: np.ndarray, weight: np.ndarray, bound: np.ndarray) -> float:
    """χ² of the best rising curve, with each point beyond a bound put where the curve wants it."""
    if len(y) < 2:
        return 0.0
    placed = y
    cost = 0.0
    for _ in range(ALTERNATIONS if bound.any() else 1):
        curve = isotonic_regression(placed, weights=weight).x
        cost = float(weight @ (placed - curve) ** 2)
        placed = np.where(bound > 0, np.maximum(y, curve), y)
        placed = np.where(bound < 0, np.minimum(y, curve), placed)
    return cost


def p_values(y: np.ndarray, error: np.ndarray, bound: np.ndarray | None = None) -> np.ndarray:
    """Probability of what is seen, or more, if the curve peaks in each gap [n + 1].

    The first is of a curve that falls from the first point on, the last of one that rises to the
    last point. Of a gap in between that is in no doubt it is given as 1. Points beyond a bound
    count for a gap whatever serves it best, and as known points in what chance does: both make
    rejections rarer.

    Args:
      y: [n], in order of the curve's argument.
      error: standard errors [n].
      bound: +1 where the truth is at least y, -1 at most, 0 where it is around y [n].
    """
    weight = 1 / np.asarray(error, float) ** 2
    bound = np.zeros(len(y), int) if bound is None else np.asarray(bound)
    costs = _seen_costs(y, weight, bound)
    excess = costs - costs.min()
    p = np.ones(len(costs))
    doubted = excess > UNDOUBTED
    doubted[[0, -1]] = True  # of the ends the probability itself is told
    for gap in np.flatnonzero(doubted).tolist():
        # With bounds the points have no order that a flat part could be told by.
        start, end = (0, len(y)) if bound.any() else flat_part(y, weight, gap)
        null = _null(_rounded(error[start:end]))[gap - start]
        # What is seen counts as one of the draws: a p-value of 0 would claim too much.
        p[gap] = (1 + len(null) - null.searchsorted(excess[gap])) / (1 + len(null))
    return p


def flat_part(y: np.ndarray, weight: np.ndarray, gap: int) -> tuple[int, int]:
    """First and last + 1 of the points around a gap through which the curve may be flat.

    Points that lie clearly lower tell nothing of the peak and would only blur the test.
    """
    before = _flat_points(y[:gap][::-1], weight[:gap][::-1])
    after = _flat_points(y[gap:], weight[gap:])
    return gap - before, gap + after


def _flat_points(y: np.ndarray, weight: np.ndarray) -> int:
    """How many of the first points may be equal, for all that a fall along them shows."""
    known = np.zeros(len(y), int)
    for count in range(2, len(y) + 1):
        part, share = y[:count], weight[:count]
        level = share @ part / share.sum()
        falling = _rising_cost(-part, share, known[:count])
        explained = float(share @ (part - level) ** 2) - falling
        if _chi_bar_tail(explained, count) < NOT_FLAT:
            return count - 1
    return len(y)


def _chi_bar_tail(value: float, count: int) -> float:
    """Probability that the best falling curve explains more of so many equal points.

    With equal weights the number of its levels has the law of the cycles of a random permutation
    (Barlow et al. 1972), of χ² with one degree of freedom less.
    """
    freedom = np.arange(1, count)
    return float(_levels(count)[2:] @ chdtrc(freedom, value))


@functools.lru_cache
def _levels(count: int) -> np.ndarray:
    """Probability of 0, 1, … cycles in a random permutation of so many."""
    return np.poly(-np.arange(count))[::-1] / math.factorial(count)


def _rounded(error: np.ndarray) -> tuple[float, ...]:
    """Errors relative to their mean, coarse enough to share draws."""
    log = np.log(error)
    return tuple((np.round((log - log.mean()) / STEP) * STEP).tolist())


@functools.lru_cache(maxsize=256)
def _null(log_error: tuple[float, ...]) -> np.ndarray:
    """Sorted excess χ² of each gap over the best one, of draws of a flat curve [n + 1, draws]."""
    error = np.exp(np.array(log_error))
    draws = error * np.random.default_rng(0).normal(size=(DRAWS, len(error)))
    costs = gap_costs(draws, 1 / error**2)
    excess = costs - costs.min(1, keepdims=True)
    return np.sort(excess, 0).T.copy()  # a view would keep all draws in the cache
