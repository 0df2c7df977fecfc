"""The optimal learning rate of one batch size: what is said of it, and a first look at it."""

import math
from typing import NamedTuple

import numpy as np

POWERS = (0.0, 0.5, 1.0)  # of ε that a vertex's parabola is in; 0 is log ε
WINDOW = math.log(2)  # in log ε, on each side of the best rate: what the parabola is put through
FEWEST = 5  # rates of it, where the grid is coarse or ends
FARTHEST = 1.5  # half windows: so far from its middle a vertex may be
HALF_INTERVAL = 1.96  # standard errors from the middle of a 95% interval to its end
RIDGE = 3 * math.sqrt(2)  # standard errors by which a ridge stands above the basins beside it
NEAR = 1.0  # above the deepest minimum: one that is higher by more is no basin


class Optimum(NamedTuple):
    """ε_opt of one batch size.

    Attributes:
      lr: the optimum, or the last rate that was tried where it lies beyond; nan if undefined.
      low: start of its 95% interval; 0 where the optimum is at most lr, nan if undefined.
      high: end of its 95% interval; inf where the optimum is at least lr, nan if undefined.
      error: standard error of log lr; nan if undefined.
      bound: 0 inside the grid; +1 where the optimum is at least lr, the highest rate; -1 where it
        is at most lr, the lowest rate.
      basins: number of separate minima that the noise does not explain; above 1 the deepest counts.
      value: the objective at the optimum (log steps, or loss).
      n: runs that the fit rests on.
      why: reason for what is undefined or doubtful, else "".
      relative_error: the part of the error that other batch sizes do not share, at least half of
        it, which is what a law of B is fitted with; equal to `error` where the shape of the basin
        is not shared.
    """

    lr: float
    low: float
    high: float
    error: float
    bound: int
    basins: int
    value: float
    n: int
    why: str
    relative_error: float = math.nan

    @property
    def at_edge(self) -> bool:
        """The optimum lies beyond the rates that were tried."""
        return self.bound != 0


class Vertex(NamedTuple):
    """Learning rate and value at the vertex of a parabola; nan where no rate has one."""

    lr: float
    value: float


def lowest_vertex(learning_rate: np.ndarray, value: np.ndarray) -> Vertex:
    """Where one batch size is about best, for a search that must choose its next rates.

    The vertex of a parabola through the mean values around the best rate: those within WINDOW of it
    and FEWEST at least. It is in log ε, √ε or ε, whichever fits best: the loss after one step is a
    parabola in ε, and one in log ε would place its vertex 15% too low.

    Args:
      learning_rate: of each run [n], > 0.
      value: of each run [n], lower is better; nan or inf where it failed. A rate at which any run
        failed is left out: runs that a search ends early are the slow ones, not a sample.
    """
    rates = np.unique(learning_rate)
    cells = [value[learning_rate == rate] for rate in rates]
    usable = np.array([bool(np.isfinite(cell).all()) for cell in cells], bool)
    if not usable.any():
        return Vertex(math.nan, math.nan)
    x = np.log(rates[usable])
    kept = [cell for cell, use in zip(cells, usable, strict=True) if use]
    mean = np.array([cell.mean() for cell in kept])
    runs = np.array([len(cell) for cell in kept], float)
    if len(x) < 3:
        best = int(mean.argmin())
        return Vertex(math.exp(x[best]), float(mean[best]))
    inside = _inside(x, mean)
    # Three rates have a parabola in every power, and rounding chooses: sums are those with which
    # sweeps were run, so that the same rates are run again.
    centre = (inside[None] @ x / inside.sum())[0]
    shift = x[inside] - centre
    fits = [_parabola(power, shift, mean[inside], runs[inside]) for power in POWERS]
    offset, height, _ = min(fits, key=lambda fit: fit[2])
    offset = min(max(offset, FARTHEST * shift.min()), FARTHEST * shift.max())
    return Vertex(math.exp(centre + offset), height)


def _inside(x: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """The rates [rates] around the lowest smoothed mean."""
    padded = np.pad(mean, 1, mode="edge")
    smooth = (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4
    distance = np.abs(x - x[smooth.argmin()])
    nearest = np.sort(distance)[min(FEWEST, len(x)) - 1]
    return distance <= max(nearest, WINDOW) * (1 + 1e-6)


def _parabola(
    power: float, shift: np.ndarray, mean: np.ndarray, runs: np.ndarray
) -> tuple[float, float, float]:
    """Vertex in log ε, height and misfit of a parabola in ε^power through means [k].

    In polynomials orthogonal on the points themselves (Forsythe 1957): stable however uneven they
    lie.
    """
    share = runs / runs.sum()

    def average(values: np.ndarray) -> float:
        return np.einsum("rk,rk->r", share[None], values[None])[0]

    point = shift if power == 0 else np.expm1(power * shift) / power
    middle = average(point)
    line = point - middle
    variance = average(line**2)
    skew = average(line**3) / variance
    arch = line**2 - skew * line - variance
    constant = average(mean)
    slope = average(line * mean) / variance
    bend = average(arch * mean) / average(arch**2)
    misfit = average((mean - constant - slope * line - bend * arch) ** 2)
    # Without an upward bend the lowest mean is all there is to report.
    vertex = skew / 2 - slope / (2 * bend) if bend > 0 else line[mean.argmin()]
    farthest = FARTHEST * point
    vertex = min(max(vertex + middle, farthest.min()), farthest.max()) - middle
    height = constant + slope * vertex + bend * (vertex**2 - skew * vertex - variance)
    vertex += middle
    if power > 0:
        vertex = math.log(max(1 + power * vertex, 1e-3)) / power
    return float(vertex), float(height), float(misfit)


def count_basins(mean: np.ndarray, error: np.ndarray) -> int:
    """Minima no more than NEAR above the deepest, behind ridges that the noise does not explain.

    Args:
      mean: value at each rate [rates], rates rising; without rates at which runs failed.
      error: its standard error [rates].
    """
    if not len(mean):
        return 1
    threshold = RIDGE * float(np.nan_to_num(error).max())
    minima = []
    lowest = ridge = mean[0]
    falling = True
    for value in mean:
        lowest = min(lowest, value)
        ridge = max(ridge, value)
        if falling and value > lowest + threshold:
            minima.append(lowest)
            ridge = value
            falling = False
        elif not falling and value < ridge - threshold:
            lowest = value
            falling = True
    if falling:
        minima.append(lowest)
    return int(sum(value <= min(minima) + NEAR for value in minima))
