"""How the best rate moves with the batch size: up, level, down, and what of it is chance."""

import functools
import math
from typing import NamedTuple

import numpy as np
from scipy import stats

from surge.report.reading import Entry, Point, known

HALF_INTERVAL = 1.96  # standard errors from the middle of a 95% interval to its end
FLOOR = 0.02  # of a standard error: none is known better
SAME = math.log(1.1)  # log rates so near to each other are one rate to whoever sets it


class Optimum(NamedTuple):
    """An optimum inside the grid: log of its rate, and the standard error of that."""

    batch_size: float
    log_lr: float
    error: float


class Course(NamedTuple):
    """How ε_opt moves with B: up from `first` to `top`, level to `end`, down to `bottom`.

    Attributes:
      first, top, end, last: optima; `top` to `end` cannot be told from the highest.
      bottom: the lowest after `end`, which need not be the last one; the last if none is.
      level: weighted mean of these.
      slope, slope_error: of log ε_opt against log B over all optima.
    """

    first: Optimum
    top: Optimum
    end: Optimum
    bottom: Optimum
    last: Optimum
    level: Optimum
    slope: float
    slope_error: float


def course(entry: Entry) -> Course | None:
    """The course of an entry's optima, None where fewer than two are inside the grid."""
    optima = inside(entry)
    if len(optima) < 2:
        return None
    highest = max(range(len(optima)), key=lambda index: optima[index].log_lr)
    reach = _reach(len(optima))
    top = highest
    while top > 0 and _level(optima[top - 1], optima[highest], reach):
        top -= 1
    end = highest
    while end < len(optima) - 1 and _level(optima[end + 1], optima[highest], reach):
        end += 1
    # Neighbours that agree may climb together: a plateau has no slope either.
    while 0 < top < highest and _leans(optima[top : highest + 1]) > 0:
        top += 1
    while highest < end < len(optima) - 1 and _leans(optima[highest : end + 1]) < 0:
        end -= 1
    slope, error = _slope(optima)
    level = _mean(optima[top : end + 1])
    bottom = min(optima[end + 1 :], key=lambda optimum: optimum.log_lr, default=optima[-1])
    return Course(optima[0], optima[top], optima[end], bottom, optima[-1], level, slope, error)


def inside(entry: Entry) -> list[Optimum]:
    """Optima with an interval, by batch size."""
    points = [point for point in entry["optimal_lr"] if known(point)]
    return sorted(
        Optimum(point["batch_size"], math.log(point["lr"]), _error(point)) for point in points
    )


def _error(point: Point) -> float:
    """Standard error of the log rate, which an earlier fit.json has only as an interval."""
    if point.get("error"):
        return point["error"]
    return math.log(point["high"] / point["low"]) / (2 * HALF_INTERVAL)


@functools.cache
def _reach(total: int) -> float:
    """Standard errors between two of `total` equal rates, which no pair exceeds in 95% of cases.

    The highest of many is high by chance: Tukey's range test, as Kramer extended it to errors that
    differ.
    """
    return float(stats.studentized_range.ppf(0.95, total, np.inf)) / math.sqrt(2)


def _level(one: Optimum, other: Optimum, reach: float) -> bool:
    """Whether two rates cannot be told apart, or need not."""
    apart = abs(one.log_lr - other.log_lr)
    return apart <= max(SAME, reach * math.hypot(one.error, other.error))


def _leans(optima: list[Optimum]) -> int:
    """1 or -1 where a line through optima rises or falls beyond chance, else 0."""
    slope, error = _slope(optima)
    return int(np.sign(slope)) if abs(slope) > HALF_INTERVAL * error else 0


def _mean(optima: list[Optimum]) -> Optimum:
    weights = [max(optimum.error, FLOOR) ** -2 for optimum in optima]
    rates = [optimum.log_lr for optimum in optima]
    value = float(np.average(rates, weights=weights))
    return Optimum(math.nan, value, sum(weights) ** -0.5)


def _slope(optima: list[Optimum]) -> tuple[float, float]:
    """Weighted least squares of log ε on log B, and its standard error."""
    x = np.log([optimum.batch_size for optimum in optima])
    y = np.array([optimum.log_lr for optimum in optima])
    error = np.array([optimum.error for optimum in optima])
    weight = np.maximum(error, FLOOR) ** -2.0
    centred = x - np.average(x, weights=weight)
    spread = weight @ centred**2
    return float((weight * centred) @ y / spread), float(spread**-0.5)
