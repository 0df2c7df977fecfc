"""The optimal learning rate of one batch size, with its interval, from replicated runs."""

import itertools
import math
from typing import NamedTuple

import numpy as np

MANY_SEEDS = 8  # runs at each rate, from which on they are resampled
POWERS = (
    0.0,
    0.5,
    1.0,
)  # the parabola is in a power of ε between its logarithm (0) and ε itself (1)
WINDOW = math.log(
    2
)  # in log ε, on each side of the best rate: the rates that the parabola is put through
HALF_INTERVAL = 1.96  # standard errors from the middle of a 95% interval to its end
RIDGE = 3 * math.sqrt(2)  # standard errors by which a ridge stands above two basins
NEAR = 1.0  # a basin whose minimum is higher by more is none
FEWEST = 5  # of them, where the grid is coarse or ends


class Optimum(NamedTuple):
    """ε_opt of one batch size.

    Attributes:
      lr: the optimum, or the last rate that was tried where it lies beyond; nan if undefined.
      low, high: 95% interval; nan if undefined.
      error: standard error of log lr; nan if undefined.
      bound: 0 inside the grid; +1 where the optimum is at least lr, the highest rate; -1 where it
        is at most lr, the lowest rate.
      basins: number of separate minima that the noise does not explain; above 1 the deepest counts.
      value: the objective at the optimum (log steps, or loss).
      n: runs that the fit rests on.
      why: reason for what is undefined or doubtful, else "".
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

    @property
    def at_edge(self) -> bool:
        """The optimum may lie beyond the rates that were tried."""
        return self.bound != 0


def optimal_lr(
    learning_rate: np.ndarray,
    value: np.ndarray,
    seed: np.ndarray,
    *,
    resamples: int = 400,
    rng_seed: int = 0,
) -> Optimum:
    """Vertex of a weighted parabola through the replicated cells around the best rate.

    The parabola is in log ε, √ε or ε, whichever fits best: the loss after one step is a parabola in
    ε, and one in log ε through five rates of ratio √2 would place its vertex 15% too low.

    It goes through the rates within WINDOW of the best smoothed mean, and through FEWEST where
    those are fewer.

    The interval holds 95% of its vertices when the cell means are drawn anew, and the window and
    the power are chosen anew each time. How they are drawn depends on the runs:

    * at least MANY_SEEDS at every rate: a bootstrap over seeds. Where the same seeds were run at
      every rate whole seeds are resampled, which keeps what the runs of a seed have in common; else
      the runs within each cell.
    * fewer: no bootstrap but a parametric draw, for the means of two or three resampled runs say
      nothing of their tails. Each mean moves by Student's t times its standard error, from the
      noise pooled over the window (about the effects of rate and seed, where seeds are the same at
      every rate) with the freedom that leaves.
    * one run a cell: the same, with the residuals of a parabola in log ε for the noise; the misfit
      of the parabola counts as noise.

    Args:
      learning_rate: of each run [n], > 0.
      value: of each run [n], lower is better; nan or inf where a run diverged or did not get there.
        A rate at which any run did so is not a candidate.
      seed: of each run [n]; runs of one seed share their data.
      resamples: draws for the interval.
      rng_seed: of the draws.

    Returns:
      Optimum.
    """
    rates = np.unique(learning_rate)
    cells = [value[learning_rate == rate] for rate in rates]
    seeds = [seed[learning_rate == rate] for rate in rates]
    usable = np.array([bool(np.isfinite(cell).all()) for cell in cells])
    if usable.sum() < 1:
        return Optimum(
            math.nan,
            math.nan,
            math.nan,
            math.nan,
            0,
            0,
            math.nan,
            0,
            "no learning rate reached the target",
        )
    x = np.log(rates[usable])
    kept = [
        cell[np.argsort(each)] for cell, each, use in zip(cells, seeds, usable, strict=True) if use
    ]
    mean = np.array([cell.mean() for cell in kept])
    count = np.array([len(cell) for cell in kept], float)
    best = int(mean.argmin())
    position = int(np.flatnonzero(usable)[best])
    bound = int(position == len(rates) - 1) - int(position == 0)
    if len(x) < 3:
        only = "fewer than three learning rates reached the target: refine the grid"
        return Optimum(
            math.exp(x[best]),
            math.nan,
            math.nan,
            math.nan,
            bound,
            1,
            mean[best],
            int(count.sum()),
            only,
        )
    vertex, height, inside = _vertex(x, mean[None], count)
    window = np.flatnonzero(inside[0])
    paired = len({tuple(np.sort(each)) for each in seeds}) == 1 and len(np.unique(seeds[0])) == len(
        seeds[0]
    )
    spread, freedom = _spread(x[window], [kept[index] for index in window], paired)
    rng = np.random.default_rng(rng_seed)
    if count.min() >= MANY_SEEDS:
        resampled = _bootstrap(kept, paired, resamples, rng)
    else:
        resampled = mean + rng.standard_t(max(freedom, 1), (resamples, len(x))) * spread / np.sqrt(
            count
        )
    draws = _vertex(x, resampled, count)[0]
    low, high = np.exp(np.quantile(draws, (0.025, 0.975)))
    why = "the best rate is at the edge of the grid: extend it" if bound else ""
    if not np.isfinite(spread):
        low = high = math.nan
        why = why or "one run per cell and too few rates to tell the noise: add seeds"
    basins = count_basins(mean, spread / np.sqrt(count))
    if basins > 1:
        why = why or f"{basins} separate basins: the deepest is reported"
    lr = math.exp(vertex[0])
    # The interval holds the estimate even where resampling skews it.
    return Optimum(
        lr,
        min(low, lr),
        max(high, lr),
        math.log(high / low) / (2 * HALF_INTERVAL),
        bound,
        basins,
        float(height[0]),
        int(count[window].sum()),
        why,
    )


def _bootstrap(
    cells: list[np.ndarray], paired: bool, resamples: int, rng: np.random.Generator
) -> np.ndarray:
    """Means of resampled cells [resamples, rates]; the same seeds in every cell where they are
    paired."""
    draws = [
        rng.integers(0, len(cell), (resamples, len(cell)))
        for cell in (cells[:1] if paired else cells)
    ]
    means = [
        # the mean of n resampled runs varies by (n - 1)/n of what that of n new ones does
        cell.mean() + (cell[draw].mean(1) - cell.mean()) * math.sqrt(len(cell) / (len(cell) - 1))
        for cell, draw in zip(cells, itertools.cycle(draws), strict=False)
    ]
    return np.stack(means, 1)


def _windows(x: np.ndarray) -> np.ndarray:
    """The rates that belong to a parabola around each rate [rates, rates]."""
    distance = np.abs(x - x[:, None])
    nearest = np.sort(distance, 1)[:, min(FEWEST, len(x)) - 1]
    return distance <= np.maximum(nearest, WINDOW)[:, None] * (1 + 1e-6)


def _vertex(
    x: np.ndarray, mean: np.ndarray, count: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vertex, height [rows] and window [rows, rates] of a parabola around the smallest smoothed
    mean of each row."""
    padded = np.pad(mean, ((0, 0), (1, 1)), mode="edge")
    smooth = (padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]) / 4
    inside = _windows(x)[smooth.argmin(1)]
    centre = inside @ x / inside.sum(1)
    # Of each row only the columns of its window, for speed; a narrower window than others has zeros
    # beside it.
    width = inside.sum(1).max()
    columns = np.minimum(inside.argmax(1), len(x) - width)[:, None] + np.arange(width)
    used = np.take_along_axis(inside, columns, 1)
    y, weight = np.take_along_axis(mean, columns, 1), count[columns] * used
    shift = np.where(used, x[columns] - centre[:, None], 0.0)
    options = [
        _parabola(shift if power == 0 else np.expm1(power * shift) / power, y, weight)
        for power in POWERS
    ]
    chosen = np.stack([misfit for _, _, misfit in options]).argmin(0)
    at = np.arange(len(mean))
    offset = np.stack(
        [
            vertex if power == 0 else np.log(np.maximum(1 + power * vertex, 1e-3)) / power
            for power, (vertex, _, _) in zip(POWERS, options, strict=True)
        ]
    )[chosen, at]
    height = np.stack([lowest for _, lowest, _ in options])[chosen, at]
    return centre + np.clip(offset, 1.5 * shift.min(1), 1.5 * shift.max(1)), height, inside


def _parabola(
    t: np.ndarray, y: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vertex, height and misfit of a parabola through each row of t and y with weights, all [rows,
    k].

    In polynomials orthogonal on the row's own points (Forsythe 1957): stable however uneven they
    lie.
    """
    share = weight / weight.sum(1, keepdims=True)
    mean = lambda values: np.einsum("rk,rk->r", share, values)[:, None]  # noqa: E731
    middle = mean(t)
    line = t - middle
    variance = mean(line**2)
    skew = mean(line**3) / variance
    arch = line**2 - skew * line - variance
    constant, slope, bend = mean(y), mean(line * y) / variance, mean(arch * y) / mean(arch**2)
    misfit = mean((y - constant - slope * line - bend * arch) ** 2)
    # Without an upward bend the window's own lowest cell is all there is to report.
    lowest = np.take_along_axis(line, np.where(weight > 0, y, np.inf).argmin(1, keepdims=True), 1)
    vertex = np.where(bend > 0, skew / 2 - slope / (2 * np.where(bend > 0, bend, 1.0)), lowest)
    held = np.where(weight > 0, t, 0.0)
    vertex = (
        np.clip(vertex + middle, 1.5 * held.min(1, keepdims=True), 1.5 * held.max(1, keepdims=True))
        - middle
    )
    height = constant + slope * vertex + bend * (vertex**2 - skew * vertex - variance)
    return (vertex + middle)[:, 0], height[:, 0], misfit[:, 0]


def _spread(x: np.ndarray, cells: list[np.ndarray], paired: bool) -> tuple[float, int]:
    """Standard deviation of one run in the window, and its degrees of freedom; nan and 0 if it
    cannot be told.

    Where the same seeds were run at every rate, what a seed has in common does not move the vertex
    and is taken out.
    """
    if paired and len(cells[0]) > 1:
        table = np.stack(cells)
        table = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
        freedom = (table.shape[0] - 1) * (table.shape[1] - 1)
        return math.sqrt((table**2).sum() / freedom), freedom
    freedom = sum(len(cell) - 1 for cell in cells)
    if freedom > 0:
        return math.sqrt(
            sum(((cell - cell.mean()) ** 2).sum() for cell in cells) / freedom
        ), freedom
    freedom = len(cells) - 3
    if freedom <= 0:
        return math.nan, 0
    mean = np.array([cell.mean() for cell in cells])
    residual = mean - np.polynomial.Polynomial.fit(x, mean, 2)(x)
    return math.sqrt((residual**2).sum() / freedom), freedom


def count_basins(mean: np.ndarray, error: np.ndarray) -> int:
    """Minima no more than NEAR above the deepest, behind ridges that the noise does not explain.

    Args:
      mean: value at each rate [rates], rates rising; without rates at which runs failed.
      error: its standard error [rates].
    """
    if not len(mean):
        return 1
    minima, lowest, ridge, falling = [], math.inf, -math.inf, True
    threshold = RIDGE * float(np.nan_to_num(error).max())
    for value in mean:
        if falling:
            lowest = min(lowest, value)
            if value > lowest + threshold:
                minima.append(lowest)
                ridge, falling = value, False
        else:
            ridge = max(ridge, value)
            if value < ridge - threshold:
                lowest, falling = value, True
    if falling:
        minima.append(lowest)
    return max(sum(value <= min(minima) + NEAR for value in minima), 1)
