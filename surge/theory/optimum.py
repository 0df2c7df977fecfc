"""The optimal learning rate of one batch size, with its interval, from replicated runs."""

import math
from typing import NamedTuple

import numpy as np

MANY_SEEDS = 8  # from here on whole seeds are resampled
POWERS = (0.0, 0.5, 1.0)  # the parabola is in a power of ε between its logarithm (0) and ε itself (1)
NEIGHBOURS = 2  # learning rates on each side of the best one that the parabola is put through


class OptimalLR(NamedTuple):
    """ε_opt of one batch size.

    Attributes:
      lr: vertex of the parabola; nan if undefined.
      low, high: 95% interval; nan if undefined.
      at_edge: the best rate is the lowest or highest that was tried, so the optimum may lie beyond it.
      basins: number of separate minima that the noise does not explain; above 1 the vertex is of the deepest.
      value: the objective at the vertex (log steps, or loss).
      n: runs that the parabola was put through.
      why: reason for what is undefined or doubtful, else "".
    """

    lr: float
    low: float
    high: float
    at_edge: bool
    basins: int
    value: float
    n: int
    why: str


def optimal_lr(
    learning_rate: np.ndarray, value: np.ndarray, seed: np.ndarray, *, resamples: int = 400, rng_seed: int = 0
) -> OptimalLR:
    """Vertex of a weighted parabola through the replicated cells around the best rate.

    The parabola is in log ε, √ε or ε, whichever fits best: the loss after one step is a parabola in ε, and one in
    log ε through five rates of ratio √2 would place its vertex 15% too low.

    The interval is a bootstrap, with the choice of the window repeated in every resample. Where at least
    MANY_SEEDS were run at every rate, whole seeds are resampled, which keeps what the runs of a seed have in
    common. With fewer, the cells' noise about the effects of rate and seed is pooled over the window and drawn from
    Student's t with the freedom that leaves. With one run per cell, the residuals of the parabola itself serve.

    Args:
      learning_rate: of each run [n], > 0.
      value: of each run [n], lower is better; nan or inf where a run diverged or did not get there. A rate
        at which any run did so is not a candidate.
      seed: of each run [n]; runs of one seed share their data.
      resamples: of the bootstrap.
      rng_seed: of the bootstrap.

    Returns:
      OptimalLR.
    """
    rates = np.unique(learning_rate)
    cells = [value[learning_rate == rate] for rate in rates]
    seeds = [seed[learning_rate == rate] for rate in rates]
    usable = np.array([bool(np.isfinite(cell).all()) for cell in cells])
    if usable.sum() < 1:
        return OptimalLR(math.nan, math.nan, math.nan, False, 0, math.nan, 0, "no learning rate reached the target")
    x = np.log(rates[usable])
    kept = [cell[np.argsort(each)] for cell, each, use in zip(cells, seeds, usable, strict=True) if use]
    mean = np.array([cell.mean() for cell in kept])
    count = np.array([len(cell) for cell in kept], float)
    best = int(mean.argmin())
    position = int(np.flatnonzero(usable)[best])
    at_edge = position in (0, len(rates) - 1)
    if len(x) < 3:
        only = "fewer than three learning rates reached the target: refine the grid"
        return OptimalLR(math.exp(x[best]), math.nan, math.nan, at_edge, 1, mean[best], int(count.sum()), only)
    vertex, height, window = _vertex(x, mean[None], count)
    chosen = [kept[index] for index in window[0]]
    paired = len({tuple(np.sort(each)) for each in seeds}) == 1 and len(np.unique(seeds[0])) == len(seeds[0])
    spread, freedom = _spread(x[window[0]], chosen, paired)
    rng = np.random.default_rng(rng_seed)
    if paired and count[0] >= MANY_SEEDS:
        table = np.stack(kept)  # [rates, seeds]
        picks = rng.integers(0, table.shape[1], (resamples, table.shape[1]))
        resampled = np.stack([table[:, pick].mean(1) for pick in picks])
    else:
        resampled = mean + rng.standard_t(max(freedom, 1), (resamples, len(x))) * spread / np.sqrt(count)
    draws = _vertex(x, resampled, count)[0]
    low, high = np.exp(np.quantile(draws, (0.025, 0.975)))
    why = "the best rate is at the edge of the grid: extend it" if at_edge else ""
    if not np.isfinite(spread):
        low = high = math.nan
        why = why or "one run per cell and too few rates to tell the noise: add seeds"
    basins = _basins(mean, spread / np.sqrt(count))
    if basins > 1:
        why = why or f"{basins} separate basins: the deepest is reported"
    lr = math.exp(vertex[0])
    # The interval holds the estimate even where resampling skews it.
    return OptimalLR(
        lr, min(low, lr), max(high, lr), at_edge, basins, float(height[0]), int(count[window[0]].sum()), why
    )


def _vertex(x: np.ndarray, mean: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vertex, height [rows] and window [rows, k] of a parabola around the smallest smoothed mean of each row."""
    padded = np.pad(mean, ((0, 0), (1, 1)), mode="edge")
    smooth = (padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]) / 4
    width = min(2 * NEIGHBOURS + 1, len(x))
    first = np.clip(smooth.argmin(1) - NEIGHBOURS, 0, len(x) - width)
    window = first[:, None] + np.arange(width)
    centre = x[window].mean(1)
    y, weight = np.take_along_axis(mean, window, 1), np.sqrt(count[window])
    shift = x[window] - centre[:, None]
    options = [_parabola(shift if power == 0 else np.expm1(power * shift) / power, y, weight) for power in POWERS]
    chosen = np.stack([misfit for _, _, misfit in options]).argmin(0)
    at = np.arange(len(mean))
    offset = np.stack(
        [
            vertex if power == 0 else np.log(np.maximum(1 + power * vertex, 1e-3)) / power
            for power, (vertex, _, _) in zip(POWERS, options, strict=True)
        ]
    )[chosen, at]
    height = np.stack([lowest for _, lowest, _ in options])[chosen, at]
    reach = 1.5 * shift.max(1)
    return centre + np.clip(offset, -reach, reach), height, window


def _parabola(t: np.ndarray, y: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vertex, height and misfit of a weighted parabola through each row of t, y [rows, k]."""
    design = np.stack([np.ones_like(t), t, t**2], -1) * weight[..., None]
    beta = np.einsum("rik,rk->ri", np.linalg.pinv(design), y * weight)
    misfit = ((np.einsum("rki,ri->rk", design, beta) - y * weight) ** 2).sum(1)
    constant, slope, bend = beta.T
    # Without an upward bend the window's own lowest cell is all there is to report.
    lowest = np.take_along_axis(t, y.argmin(1)[:, None], 1)[:, 0]
    vertex = np.where(bend > 0, -slope / (2 * np.where(bend > 0, bend, 1.0)), lowest)
    vertex = np.clip(vertex, 1.5 * t.min(1), 1.5 * t.max(1))
    return vertex, constant + slope * vertex + bend * vertex**2, misfit


def _spread(x: np.ndarray, cells: list[np.ndarray], paired: bool) -> tuple[float, int]:
    """Standard deviation of one run in the window, and its degrees of freedom; nan and 0 if it cannot be told.

    Where the same seeds were run at every rate, what a seed has in common does not move the vertex and is taken out.
    """
    if paired and len(cells[0]) > 1:
        table = np.stack(cells)
        table = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
        freedom = (table.shape[0] - 1) * (table.shape[1] - 1)
        return math.sqrt((table**2).sum() / freedom), freedom
    freedom = sum(len(cell) - 1 for cell in cells)
    if freedom > 0:
        return math.sqrt(sum(((cell - cell.mean()) ** 2).sum() for cell in cells) / freedom), freedom
    freedom = len(cells) - 3
    if freedom <= 0:
        return math.nan, 0
    mean = np.array([cell.mean() for cell in cells])
    residual = mean - np.polynomial.Polynomial.fit(x, mean, 2)(x)
    return math.sqrt((residual**2).sum() / freedom), freedom


def _basins(mean: np.ndarray, error: np.ndarray) -> int:
    """Minima separated by a ridge more than three standard errors above both."""
    found, lowest, ridge, falling = 0, math.inf, -math.inf, True
    threshold = 3 * float(np.nan_to_num(error).max()) * math.sqrt(2)
    for value in mean:
        if falling:
            lowest = min(lowest, value)
            if value > lowest + threshold:
                found, ridge, falling = found + 1, value, False
        else:
            ridge = max(ridge, value)
            if value < ridge - threshold:
                lowest, falling = value, True
    return max(found + falling, 1)
