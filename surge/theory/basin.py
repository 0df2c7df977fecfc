"""One basin for all batch sizes: where each one's learning rate is best, with errors that hold.

value = level(B, seed) + curvature(B) · basin(log ε − log ε_opt(B)) + noise, with a basin whose
shape all batch sizes share (theory/shape.py). What one batch size alone cannot tell, how skewed its
basin is, all of them tell together; what none can tell widens the intervals by as much as basins
differ over problems.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from surge.theory import clustered, replicates
from surge.theory.alignment import (
    Alignment,
    align,
    covariance,
    one_skew,
    own_variance,
    shape_variance,
)
from surge.theory.optimum import Optimum, count_basins
from surge.theory.shape import unit_basin

SHAPE_LEVEL = 0.01  # each batch size is alone where one shape is refused at this level
FEWEST_RATES = 3  # of one batch size, for a fit
ROUNDING = 1e-9  # relative difference of values that are the same
RISE = 1.5  # standard errors of a mean by which values must rise from an optimum inside the grid
LEAST_OWN = 0.5  # of an error is a batch size's own: the share that is common is an estimate too
SETTLED = 1e-2  # in log ε: an optimum that still moves by more is none
COVERAGE = 0.95
ENDS = {1: "highest", -1: "lowest"}
UNKNOWN = math.nan, math.nan, math.nan
CURVE = 25  # points of a basin that is told


class Basins(NamedTuple):
    """The optimum of each batch size, and what their basins share.

    Attributes:
      optima: of each batch size.
      skew: slope of g in the shared basin, whose slope is z exp(g(z)): 0 for a parabola in log ε,
        1.5 for one in ε; nan where each batch size has its own.
      skew_error: its standard error.
      common: the part of the standard errors of log ε_opt that all batch sizes share, for it comes
        from the shape: it moves all optima alike, and so no law of B but by its level. 0 where
        nothing is shared.
      shared: one shape is fitted to all batch sizes.
      why: reason where it is not, else "".
      curves: batch size -> (rates, values) of its basin, between the rates that count.
    """

    optima: dict[float, Optimum]
    skew: float
    skew_error: float
    common: float
    shared: bool
    why: str
    curves: dict[float, tuple[np.ndarray, np.ndarray]]


class _Group(NamedTuple):
    """Batch sizes whose basins were fitted together."""

    sizes: list[float]
    fit: Alignment


class _Sweep(NamedTuple):
    """Runs sorted by batch size, rate, seed and value [n], and whether they count."""

    size: np.ndarray
    log_lr: np.ndarray
    value: np.ndarray
    seed: np.ndarray | None
    counts: np.ndarray


def fit_basins(
    batch_size: np.ndarray,
    learning_rate: np.ndarray,
    value: np.ndarray,
    seed: np.ndarray | None = None,
) -> Basins:
    """Optimal learning rate of each batch size, from all runs of a sweep.

    Grids, random search, missing cells and unequal seeds are the same fit. Intervals are Student's
    t about errors clustered by batch size and seed, so that noise may be alike along the rates.

    Args:
      batch_size: of each run [n], > 0.
      learning_rate: of each run [n], > 0.
      value: of each run [n], lower is better (log steps, or a loss); inf or nan where it failed. A
        rate at which more than about 0.3 of the runs failed is no candidate.
      seed: of each run [n]: runs of one batch size and seed share their data. None: nothing is
        shared.

    Returns:
      Basins; fewer than three rates that count at a batch size give it an optimum without an
      interval, and a reason.
    """
    sweep = _sweep(batch_size, learning_rate, value, seed)
    sizes = np.unique(sweep.size).tolist()
    known = [size for size in sizes if _tells(sweep, size)]
    optima = {size: _few(sweep, size) for size in sizes if size not in known}
    if not known:
        return Basins(optima, math.nan, math.nan, 0.0, False, "", {})
    groups, noise, freedom, why = _fitted(sweep, known)
    skew = skew_error = math.nan
    common = 0.0
    curves = {}
    for group in groups:
        own = np.isin(known, group.sizes)
        spread = covariance(group.fit, noise[own])
        if not why:
            skew, skew_error, common = _shape(group, spread, noise[own])
        optima |= _optima(sweep, group, spread, freedom[own], common)
        curves |= _curves(sweep, group)
    shared = len(known) > 1 and not why
    return Basins(dict(sorted(optima.items())), skew, skew_error, common, shared, why, curves)


def optimal_lr(
    learning_rate: np.ndarray, value: np.ndarray, seed: np.ndarray | None = None
) -> Optimum:
    """Optimal learning rate of one batch size; arguments as for `fit_basins`."""
    one = np.ones(len(np.asarray(value)))
    return fit_basins(one, learning_rate, value, seed).optima[1.0]


def _sweep(
    batch_size: np.ndarray,
    learning_rate: np.ndarray,
    value: np.ndarray,
    seed: np.ndarray | None,
) -> _Sweep:
    """The runs in an order of their own, so that the order they came in does not matter."""
    size, rate, value = (np.asarray(column, float) for column in (batch_size, learning_rate, value))
    label = np.zeros(len(size), int) if seed is None else np.unique(seed, return_inverse=True)[1]
    order = np.lexsort((value, label, rate, size))
    size, log_lr, value = size[order], np.log(rate[order]), value[order]
    counts = replicates.count(size, log_lr, value)
    return _Sweep(size, log_lr, value, None if seed is None else label[order], counts)


def _rates(sweep: _Sweep, size: float) -> np.ndarray:
    """log ε of the rates that count."""
    return np.unique(sweep.log_lr[sweep.counts & (sweep.size == size)])


def _tells(sweep: _Sweep, size: float) -> bool:
    """Whether enough rates count for a fit, and are not all as good."""
    return len(_rates(sweep, size)) >= FEWEST_RATES and not _flat(sweep, size)


def _flat(sweep: _Sweep, size: float) -> bool:
    """Whether all runs that count end alike, to rounding."""
    values = sweep.value[sweep.counts & (sweep.size == size)]
    return bool(np.ptp(values) <= ROUNDING * np.abs(values).max())


def _runs(sweep: _Sweep, sizes: Sequence[float]) -> replicates.Runs:
    rows = sweep.counts & np.isin(sweep.size, sizes)
    seed = None if sweep.seed is None else sweep.seed[rows]
    return replicates.make_runs(sweep.size[rows], sweep.log_lr[rows], sweep.value[rows], seed)


def _fitted(
    sweep: _Sweep, sizes: Sequence[float]
) -> tuple[list[_Group], np.ndarray, np.ndarray, str]:
    """Batch sizes together or, where one shape is refused, each alone and why; noise, freedom."""
    together = align(_runs(sweep, sizes))
    noise, freedom = clustered.moderated(together.noise, together.freedom)
    if one_skew(together, noise, together.freedom.sum()) >= SHAPE_LEVEL:
        return [_Group(list(sizes), together)], noise, freedom, ""
    alone = [align(_runs(sweep, [size])) for size in sizes]
    noise, freedom = clustered.moderated(
        np.concatenate([fit.noise for fit in alone]),
        np.concatenate([fit.freedom for fit in alone]),
    )
    groups = [_Group([size], fit) for size, fit in zip(sizes, alone, strict=True)]
    return groups, noise, freedom, "the basins of the batch sizes differ in shape: each is alone"


def _few(sweep: _Sweep, size: float) -> Optimum:
    """What is known where too few rates count for a fit, or all are as good."""
    rates = _rates(sweep, size)
    if not len(rates):
        why = "no learning rate reached the target"
        return Optimum(math.nan, *UNKNOWN, 0, 0, math.nan, 0, why)
    n = int((sweep.counts & (sweep.size == size)).sum())
    if len(rates) >= FEWEST_RATES:
        why = "all learning rates end alike: none is best"
        return Optimum(math.nan, *UNKNOWN, 0, 0, math.nan, n, why)
    means = [_mean(sweep, size, rate) for rate in rates]
    best = int(np.argmin(means))
    bound = _bound(rates[best], sweep.log_lr[sweep.size == size])
    why = "fewer than three learning rates reached the target: refine the grid"
    return Optimum(math.exp(rates[best]), *UNKNOWN, bound, 1, means[best], n, why)


def _mean(sweep: _Sweep, size: float, log_lr: float) -> float:
    """Mean value of the runs of one cell that count."""
    cell = sweep.counts & (sweep.size == size) & (sweep.log_lr == log_lr)
    return float(sweep.value[cell].mean())


def _bound(log_lr: float, tried: np.ndarray) -> int:
    """1 or -1 where the highest or lowest rate that was tried is the best that is known."""
    return int(log_lr >= tried.max()) - int(log_lr <= tried.min())


def _shape(group: _Group, spread: np.ndarray, noise: np.ndarray) -> tuple[float, float, float]:
    """Skew, its error, and the error that all centres share.

    Never what the runs of one batch size add.
    """
    sizes = len(group.sizes)
    skew = float(group.fit.basin.shape[0])
    skew_error = math.sqrt(spread[2 * sizes, 2 * sizes])
    settled = group.fit.moving < SETTLED
    if settled.sum() < 2:
        return skew, skew_error, 0.0
    centres = spread[:sizes, :sizes][np.ix_(settled, settled)]
    rest = (np.diag(spread)[:sizes] - own_variance(group.fit, noise))[settled]
    apart = np.median(centres[~np.eye(len(centres), dtype=bool)])
    return skew, skew_error, math.sqrt(np.clip(apart, 0, max(rest.min(), 0)))


def _curves(sweep: _Sweep, group: _Group) -> dict[float, tuple[np.ndarray, np.ndarray]]:
    """The basin of each batch size as it was fitted."""
    basin = group.fit.basin
    curves = {}
    for index, size in enumerate(group.sizes):
        rates = _rates(sweep, size)
        log_lr = np.linspace(rates[0], rates[-1], CURVE)
        rise = unit_basin(log_lr - basin.centre[index], basin.shape)[0]
        value = group.fit.height[index] + math.exp(basin.bend[index]) * rise
        curves[size] = np.exp(log_lr), value
    return curves


def _optima(
    sweep: _Sweep,
    group: _Group,
    spread: np.ndarray,  # covariance of the group's parameters
    freedom: np.ndarray,  # [sizes]
    common: float,
) -> dict[float, Optimum]:
    variance = np.diag(spread)[: len(group.sizes)]
    # Only noise is estimated, with so much freedom; the variance by the shape is taken as known,
    # and the sum of both is nearer to normal (Satterthwaite 1946).
    noisy = np.maximum(variance - shape_variance(group.fit), ROUNDING * variance)
    freedom = np.maximum(freedom, 1) * (variance / noisy) ** 2
    optima = {}
    for index, size in enumerate(group.sizes):
        error = math.sqrt(variance[index])
        half = error * float(stats.t.ppf((1 + COVERAGE) / 2, freedom[index]))
        optima[size] = _optimum(sweep, group, index, (error, half, common))
    return optima


def _optimum(
    sweep: _Sweep, group: _Group, index: int, errors: tuple[float, float, float]
) -> Optimum:
    """One batch size's optimum, held between the rates that count."""
    error, half, common = errors
    size = group.sizes[index]
    fit = group.fit
    own = sweep.size == size
    rates = _rates(sweep, size)
    centre = float(fit.basin.centre[index])
    within = float(np.clip(centre, rates[0], rates[-1]))
    lr = math.exp(within)
    with np.errstate(over="ignore"):  # where nothing is known of it the upper end is infinite
        low = min(float(np.exp(centre - half)), lr)
        high = max(float(np.exp(centre + half)), lr)
    value = float(fit.height[index])
    bound = 0
    why = ""
    side = _bound(_seen(fit, index, rates, own, sweep), sweep.log_lr[own])
    if side:
        end = rates[-1] if side > 0 else rates[0]
        bound = side
        lr = math.exp(end)
        low, high = (min(low, lr), math.inf) if side > 0 else (0.0, max(high, lr))
        error = max(error, abs(end - centre))
        value = _mean(sweep, size, end)
        why = f"values do not rise towards the {ENDS[side]} rate: extend the grid"
    elif fit.moving[index] > SETTLED or not math.isfinite(error):
        low = high = error = math.nan
        why = "no basin stands out of the noise: add seeds or rates"
    basins = _separate(sweep, own, math.sqrt(fit.variance[index]))
    if basins > 1:
        why = why or f"{basins} separate basins: the deepest is reported"
    n = int(fit.runs[index])
    relative = max(math.sqrt(max(error**2 - common**2, 0.0)), LEAST_OWN * error)
    return Optimum(lr, low, high, float(error), bound, basins, value, n, why, relative)


def _seen(fit: Alignment, index: int, rates: np.ndarray, own: np.ndarray, sweep: _Sweep) -> float:
    """The optimum, or the end of the rates beside it where no rise is seen towards that end."""
    centre = float(fit.basin.centre[index])
    noise = math.sqrt(fit.variance[index])
    for end, inner in (rates[:2], rates[:-3:-1]):
        inside = (centre - end) / (inner - end)  # in steps of the grid
        runs = int((own & sweep.counts & (sweep.log_lr == end)).sum())
        rise = unit_basin(np.array([end - centre]), fit.basin.shape)[0][0]
        seen = math.exp(fit.basin.bend[index]) * rise >= RISE * noise / math.sqrt(runs)
        if inside <= 0 or (inside <= 1 and not seen):
            return float(end)
    return centre


def _separate(sweep: _Sweep, own: np.ndarray, noise: float) -> int:
    """Basins of a batch size, by the medians of the rates at which no run failed."""
    medians, errors = [], []
    for rate in np.unique(sweep.log_lr[own]):
        values = sweep.value[own & (sweep.log_lr == rate)]
        if np.isfinite(values).all():
            medians.append(np.median(values))
            errors.append(noise / math.sqrt(len(values)))
    return count_basins(np.array(medians), np.array(errors))
