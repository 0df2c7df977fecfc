"""Runs of a sweep as a fit of basins sees them: which count, and what they share."""

import math
from typing import NamedTuple

import numpy as np

LARGEST_SHARE = 0.3  # of runs that may fail at a rate that still counts: failed / (runs + 1)
FEWEST = 5  # rates that a basin is looked at through, where there are so many
LOWEST = 3  # rates, and LOWEST_SHARE of them at least, whose height above the lowest is a basin's
LOWEST_SHARE = 0.15
TALL = 40.0  # times that height: a rate that is higher does not count
WINDOW = 2.0  # in log ε to each side of the optimum; farther runs do not count
SMOOTH = 0.7  # in log ε: over so much to each side values are smoothed to find where they are low


class Runs(NamedTuple):
    """Runs that count, sorted by batch size.

    Attributes:
      size: index of each run's batch size [n].
      cell: index of its batch size and rate together [n].
      value: [n].
      level: index of what has a level of its own [n]: a seed of a batch size where its seeds were
        run at several rates, else the batch size.
      cluster: index of what is independent [n]: such a seed, else the run.
      log_lr: of each cell [cells].
      cell_size: index of each cell's batch size [cells].
      log_size: log B [sizes].
    """

    size: np.ndarray
    cell: np.ndarray
    value: np.ndarray
    level: np.ndarray
    cluster: np.ndarray
    log_lr: np.ndarray
    cell_size: np.ndarray
    log_size: np.ndarray


def count(batch_size: np.ndarray, log_lr: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Whether each run counts [n]: it is no failure, and its rate is neither failing nor too high.

    Where runs fail by chance, those that did not are as good as all; where most fail, the few that
    did not are the lucky ones.
    """
    cell = _index(batch_size, log_lr)
    runs = np.bincount(cell)
    finite = np.isfinite(value)
    failed = np.bincount(cell, ~finite)
    counts = finite & (failed <= LARGEST_SHARE * (runs + 1))[cell]
    for size in np.unique(batch_size):
        own = counts & (batch_size == size)
        counts[own] = _low(log_lr[own], value[own])
    return counts


def _low(log_lr: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Whether the mean at each run's rate [n] is near enough to the lowest.

    What diverged to a number is no part of a basin.
    """
    cell = _index(log_lr)
    mean = np.bincount(cell, value) / np.bincount(cell)
    height = mean - mean.min(initial=np.inf)
    rank = max(LOWEST, math.ceil(LOWEST_SHARE * len(height)))
    if rank > len(height):
        return np.ones(len(value), bool)
    return (height <= TALL * np.sort(height)[rank - 1])[cell]


def make_runs(
    batch_size: np.ndarray,
    log_lr: np.ndarray,
    value: np.ndarray,
    seed: np.ndarray | None,
) -> Runs:
    """Runs [n] of rows that count, sorted by batch size; seed None: none have a seed in common."""
    sizes, size = np.unique(batch_size, return_inverse=True)
    cell = _index(size, log_lr)
    first = np.unique(cell, return_index=True)[1]
    level = size
    cluster = np.arange(len(size))
    if seed is not None:
        level, cluster = _shared(size, log_lr, seed)
    return Runs(size, cell, value, level, cluster, log_lr[first], size[first], np.log(sizes))


def _index(*columns: np.ndarray) -> np.ndarray:
    """Index of each row [n] among the different ones."""
    return np.unique(np.stack(columns), axis=1, return_inverse=True)[1].ravel()


def _shared(
    size: np.ndarray, log_lr: np.ndarray, seed: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Level and cluster of each run [n]: its seed, where the seeds of a batch size meet rates."""
    own = _index(size, seed)
    size_of_own = size[np.unique(own, return_index=True)[1]]
    seeds = np.bincount(size_of_own)
    met = np.unique(np.stack([own, log_lr]), axis=1)[0].astype(int)
    rates = np.bincount(size_of_own[met])
    paired = ((seeds > 1) & (rates >= 2 * seeds))[size]
    level = np.where(paired, len(seeds) + own, size)
    cluster = np.where(paired, own, len(own) + np.arange(len(own)))
    return _index(level), _index(cluster)


def centred(runs: Runs, weight: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Columns [n, c] less their weighted means in each level."""
    total = np.bincount(runs.level, weight)
    total = np.where(total > 0, total, 1.0)[:, None]
    sums = np.stack([np.bincount(runs.level, weight * column) for column in columns.T], 1)
    return columns - (sums / total)[runs.level]


def kernel(runs: Runs, centre: np.ndarray) -> np.ndarray:
    """Weight of each cell [cells]: tricube in its distance from the optimum [sizes]."""
    distance = np.abs(runs.log_lr - centre[runs.cell_size])
    reach = np.empty(len(centre))
    for index in range(len(centre)):
        near = np.sort(distance[runs.cell_size == index])[:FEWEST]
        reach[index] = max(WINDOW, 1.25 * near[-1])
    return tricube(distance / reach[runs.cell_size])


def tricube(distance: np.ndarray) -> np.ndarray:
    """Weight: 1 at no distance, 0 from 1 on."""
    return np.clip(1 - distance**3, 0, None) ** 3


def cell_means(runs: Runs) -> np.ndarray:
    """Mean value of each cell [cells], as if every seed had been run in each."""
    value = runs.value
    if len(np.unique(runs.level)) > len(runs.log_size):
        for _ in range(3):  # rates and levels by turns: seeds may be missing from cells
            mean = np.bincount(runs.cell, value) / np.bincount(runs.cell)
            rest = value - mean[runs.cell]
            value = value - (np.bincount(runs.level, rest) / np.bincount(runs.level))[runs.level]
    return np.bincount(runs.cell, value) / np.bincount(runs.cell)


def lowest(log_lr: np.ndarray, mean: np.ndarray) -> tuple[float, float]:
    """Rate [cells] where means, smoothed by lines, are lowest, and the curvature around it."""
    heights = []
    for at in log_lr:
        # A line through the neighbours, by moments: its height at this rate.
        z = log_lr - at
        distance = np.abs(z)
        reach = max(SMOOTH, 1.5 * np.sort(distance)[2])
        weight = tricube(distance / reach)
        moment = [(weight * z**power).sum() for power in range(3)]
        cross = [(weight * z**power * mean).sum() for power in range(2)]
        fitted = moment[2] * cross[0] - moment[1] * cross[1]
        heights.append(fitted / (moment[0] * moment[2] - moment[1] ** 2))
    best = int(np.argmin(heights))
    distance = np.abs(log_lr - log_lr[best])
    near = distance <= max(2 * SMOOTH, 1.01 * np.sort(distance)[:FEWEST][-1])
    return log_lr[best], 2 * np.polyfit(log_lr[near] - log_lr[best], mean[near], 2)[0]
