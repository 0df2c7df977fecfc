"""How well the optimum of each batch size is found: simulated sweeps whose optima are known.

    python scripts/audit_basins.py                       # every case, 20 sweeps each, half a minute
    python scripts/audit_basins.py --repetitions=200     # docs/results/audit_basins.md
    python scripts/audit_basins.py --case=wall           # one case

A sweep has batch sizes a factor 4 apart, rates a factor √2 apart and three paired seeds, noise of
standard deviation 0.1, unless its case says otherwise. Columns: the root mean square (rms) of
log(estimate/truth) the old way, by a parabola through five rates of each batch size; ours: bias,
rms, rms after the mean of each sweep is taken away, which is what a law of B sees; the standard
error that the fit states; the share of 95% intervals that hold the truth; the share of sweeps whose
batch sizes share one shape; the share of optima that are bounds; milliseconds for a fit.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from absl import app, flags

from surge.cli import fail, parsed
from surge.theory.basin import fit_basins
from surge.theory.optimum import lowest_vertex

COLUMNS = (
    "parabolas",
    "bias",
    "rms",
    "rms, relative",
    "error",
    "coverage",
    "shared",
    "bounds",
    "ms",
)
BEND = 0.35
FAILS_FROM = 2.5  # in log ε from the optimum, where a case does not say how it ends


def symmetric(z: np.ndarray) -> np.ndarray:
    """A parabola in log ε."""
    return BEND * z**2


def cubic(z: np.ndarray) -> np.ndarray:
    """A little steeper on the right."""
    return BEND * z**2 * (1 + 0.15 * z)


def in_rate(z: np.ndarray) -> np.ndarray:
    """A parabola in ε: the loss after one step."""
    return BEND * np.expm1(z) ** 2


def in_inverse(z: np.ndarray) -> np.ndarray:
    """A parabola in 1/√ε: steeper on the left."""
    return BEND * np.expm1(-z / 2) ** 2 * 4


def kinked(z: np.ndarray) -> np.ndarray:
    """1.7 times the curvature on the right."""
    return np.where(z > 0, 0.6, 0.35) * z**2


def kinked_left(z: np.ndarray) -> np.ndarray:
    """1.7 times the curvature on the left."""
    return kinked(-z)


def wall(z: np.ndarray) -> np.ndarray:
    """Seven times the curvature from a factor 2.2 above the optimum on."""
    return BEND * z**2 + 2.0 * np.maximum(z - 0.8, 0.0) ** 2


def steps(z: np.ndarray) -> np.ndarray:
    """log steps where a step gains ε(2 − ε): 1/ε on the left, none from twice the optimum on."""
    return np.where(z < np.log(1.98), -z - np.log(np.maximum(2 - np.exp(z), 1e-9)), np.nan)


class Case(NamedTuple):
    """What is simulated."""

    basin: Callable[[np.ndarray], np.ndarray] = cubic
    sizes: int = 6
    seeds: int = 3
    noise: float = 0.1
    along: float = 0.0  # correlation of the noise of neighbouring rates of one seed
    growth: float = 0.0  # of log noise, per nat from the optimum
    failing: float = 0.0  # share of runs that fail by chance
    ratio: float = 2**0.5
    rates: int = 15
    random: bool = False  # every rate its own, no seed in common
    unequal: bool = False  # two to six seeds, by batch size
    missing: float = 0.0  # share of cells that were not run
    below: float = 0.0  # the grid's middle is so much below the optimum, in log ε


CASES = {
    "symmetric": Case(symmetric),
    "a little skewed": Case(cubic),
    "steep right": Case(in_rate),
    "steep left": Case(in_inverse),
    "kinked right": Case(kinked),
    "kinked left": Case(kinked_left),
    "wall": Case(wall),
    "steps": Case(steps),
    "sd .03": Case(cubic, noise=0.03),
    "sd .03, steep right": Case(in_rate, noise=0.03),
    "sd .03, wall": Case(wall, noise=0.03),
    "sd .3": Case(cubic, noise=0.3),
    "correlated": Case(symmetric, along=0.8),
    "correlated, wall": Case(wall, along=0.8),
    "heteroscedastic": Case(cubic, growth=0.7),
    "12% fail, 3 seeds": Case(cubic, failing=0.12),
    "12% fail, 10 seeds": Case(cubic, failing=0.12, seeds=10),
    "12% fail, 30 seeds": Case(cubic, failing=0.12, seeds=30),
    "12% fail, 100 seeds": Case(cubic, failing=0.12, seeds=100),
    "unequal seeds": Case(cubic, unequal=True),
    "missing cells": Case(cubic, missing=0.2),
    "random search": Case(cubic, random=True),
    "random search, wall": Case(wall, random=True),
    "3 sizes": Case(cubic, sizes=3),
    "11 sizes": Case(cubic, sizes=11),
    "1 size, 10 seeds": Case(cubic, sizes=1, seeds=10),
    "4 seeds, 7 rates": Case(cubic, seeds=4, rates=7),
    "4 seeds, 5 rates": Case(cubic, seeds=4, rates=5),
    "ratio 2": Case(cubic, ratio=2.0, rates=9),
    "64 seeds, steep right": Case(in_rate, seeds=64),
    "256 seeds, steep right": Case(in_rate, seeds=256),
}


def simulate(case: Case, rng: np.random.Generator) -> tuple[dict, dict[float, float]]:
    """Columns of a sweep as `fit_basins` takes them, and batch size -> log ε_opt."""
    sizes = 16.0 * 4.0 ** np.arange(case.sizes)
    truth = np.log(0.01) + 0.35 * np.log(sizes / 16) + rng.uniform(-0.3, 0.3, len(sizes))
    parts = []
    for size, centre in zip(sizes, truth, strict=True):
        seeds = int(rng.integers(2, 7)) if case.unequal else case.seeds
        log_lr = _rates(case, centre, rng)
        z = (log_lr - centre)[:, None]
        noise = _noise(case, z, 1 if case.random else seeds, rng)
        value = np.log(500 * (1 + 300 / size)) + case.basin(z) + noise
        value = np.where(np.abs(z) > FAILS_FROM, np.nan, value)
        value[rng.uniform(size=value.shape) < case.failing] = np.inf
        run = rng.uniform(size=value.shape) >= case.missing
        table = np.broadcast_arrays(size, log_lr[:, None], value, np.arange(value.shape[1]))
        parts.append(np.stack([column[run] for column in table]))
    size, log_lr, value, seed = np.concatenate(parts, 1)
    columns = {"batch_size": size, "learning_rate": np.exp(log_lr), "value": value}
    return columns | {"seed": None if case.random else seed}, dict(zip(sizes, truth, strict=True))


def _rates(case: Case, centre: float, rng: np.random.Generator) -> np.ndarray:
    """log ε: of a grid that holds 1, about the optimum, or drawn about it."""
    width = np.log(case.ratio)
    if case.random:
        reach = width * case.rates / 2
        return centre + rng.uniform(-reach, reach, case.rates * case.seeds)
    middle = np.floor((centre - case.below) / width)
    return (middle + np.arange(case.rates) - case.rates // 2) * width


def _noise(case: Case, z: np.ndarray, seeds: int, rng: np.random.Generator) -> np.ndarray:
    """[rates, seeds], with what a seed has in common at all rates."""
    noise = rng.normal(size=(len(z), seeds))
    for index in range(1, len(z)):
        fresh = np.sqrt(1 - case.along**2) * noise[index]
        noise[index] = case.along * noise[index - 1] + fresh
    common = 0.0 if case.random else case.noise * rng.normal(size=seeds)
    return case.noise * noise * np.exp(case.growth * np.abs(z)) + common


class Summary(NamedTuple):
    """Of all optima of a case."""

    bias: float
    deviation: float  # root mean square of log(estimate/truth)
    relative: float  # the same after each sweep's mean is taken away
    error: float  # root mean square of the stated errors
    coverage: float
    shared: float
    bounds: float  # share of optima that are bounds
    milliseconds: float


def audit(case: Case, repetitions: int, seed: int = 0) -> Summary:
    """Fits so many simulated sweeps of one case."""
    rng = np.random.default_rng(seed)
    away, relative, errors, covered, shared, bounds = [], [], [], [], [], []
    seconds = 0.0
    for _ in range(repetitions):
        columns, truth = simulate(case, rng)
        started = time.perf_counter()
        basins = fit_basins(**columns)
        seconds += time.perf_counter() - started
        shared.append(basins.shared)
        log_truth = np.array([truth[size] for size in basins.optima])
        optima = basins.optima.values()
        distance = np.log([optimum.lr for optimum in optima]) - log_truth
        away.extend(distance)
        if len(distance) > 1:
            relative.extend(
                (distance - distance.mean()) * np.sqrt(len(distance) / (len(distance) - 1))
            )
        errors.extend(optimum.error for optimum in optima)
        bounds.extend(optimum.bound != 0 for optimum in optima)
        ends = np.array([(optimum.low, optimum.high) for optimum in optima])
        covered.extend((ends[:, 0] <= np.exp(log_truth)) & (np.exp(log_truth) <= ends[:, 1]))
    return Summary(
        float(np.mean(away)),
        float(np.sqrt(np.mean(np.square(away)))),
        float(np.sqrt(np.mean(np.square(relative)))) if relative else 0.0,
        float(np.sqrt(np.nanmean(np.square(errors)))),
        float(np.mean(covered)),
        float(np.mean(shared)),
        float(np.mean(bounds)),
        1000 * seconds / repetitions,
    )


def by_parabolas(case: Case, repetitions: int, seed: int = 0) -> float:
    """Root mean square of log(estimate/truth) by a parabola through five rates of each size."""
    rng = np.random.default_rng(seed)
    away = []
    for _ in range(repetitions):
        columns, truth = simulate(case, rng)
        for size, centre in truth.items():
            own = columns["batch_size"] == size
            vertex = lowest_vertex(columns["learning_rate"][own], columns["value"][own])
            away.append(np.log(vertex.lr) - centre)
    return float(np.sqrt(np.mean(np.square(away))))


def main(argv: list[str]) -> None:
    del argv
    if _CASE.value and _CASE.value not in CASES:
        fail(f"no case {_CASE.value!r}: choose one of {', '.join(CASES)}")
    chosen = [_CASE.value] if _CASE.value else list(CASES)
    print(f"| case | {' | '.join(COLUMNS)} |")
    print("| --- |" + " ---: |" * len(COLUMNS))
    for name in chosen:
        old = by_parabolas(CASES[name], _REPETITIONS.value)
        new = audit(CASES[name], _REPETITIONS.value)
        numbers = [f"{number:.3f}" for number in (old, *new[:-1])]
        numbers.append(f"{new.milliseconds:.0f}")
        print(f"| {name} | {' | '.join(numbers)} |", flush=True)


if __name__ == "__main__":  # flags too: a test imports the rest
    _REPETITIONS = flags.DEFINE_integer("repetitions", 20, "Sweeps of each case.", lower_bound=2)
    _CASE = flags.DEFINE_string("case", None, "Only this case.")
    app.run(main, flags_parser=parsed)
