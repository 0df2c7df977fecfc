"""What the fits say of planted sweeps: is a wrong law named, a peak claimed, a true peak seen?

    python scripts/audit_fits.py --repetitions=100      # writes docs/results/audit_fits.md

Optima of a known curve get normal errors of a known size; nothing is trained. A law is *wrong*
where its fitted curve leaves the truth by more than a factor of 1.2 anywhere within the data.
"""

import itertools
import math
import zlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import app, flags
from scipy import stats
from scipy.special import erf

from surge.cli import parsed
from surge.theory.comparison import EQUIVALENT, compare_laws
from surge.theory.peak import find_peak
from surge.theory.rivals import LAWS

FIRST = 4.0  # the smallest batch size
COUNTS = (4, 5, 6, 7, 8, 11)  # batch sizes in a sweep
ERRORS = (0.05, 0.1, 0.2)  # standard errors of log ε
THREE_SEEDS = 0.045  # that of 3 seeds with noise of 0.1 in log steps and one basin for all


class Truth(NamedTuple):
    """A planted curve: log ε at batch sizes, given all of them; and whether it peaks inside."""

    log_lr: Callable[[np.ndarray, np.ndarray], np.ndarray]
    peaked: bool


def _power(exponent: float) -> Truth:
    return Truth(lambda size, grid: exponent * np.log(size), False)


def _middle(grid: np.ndarray) -> float:
    return math.sqrt(grid[0] * grid[-1])


def _mccandlish(alpha: float) -> Truth:
    return Truth(lambda size, grid: -alpha * np.log1p(_middle(grid) / size), False)


def _then_flat(size: np.ndarray, grid: np.ndarray) -> np.ndarray:
    return 0.5 * np.log(np.minimum(1.0, size / _middle(grid)))


def _saturating(r: float) -> Truth:
    """Sign descent at one signal-to-noise ratio, exactly; a peak where r < 1."""

    def log_lr(size: np.ndarray, grid: np.ndarray) -> np.ndarray:
        mean = erf(np.sqrt(size / _middle(grid)))
        return np.log(mean / (r + mean**2))

    return Truth(log_lr, r < 1)


def _surge(reach: float) -> Truth:
    """The surge, with its peak where the largest batch size is so many times larger."""

    def log_lr(size: np.ndarray, grid: np.ndarray) -> np.ndarray:
        root = np.sqrt(size * reach / grid[-1])
        return -np.log(root + 1 / root)

    return Truth(log_lr, reach > 1)


TRUTHS = {
    "constant": _power(0.0),
    "√": _power(0.5),
    "power 0.2": _power(0.2),
    "power 0.33": _power(0.33),
    "linear": _power(1.0),
    "α = ½": _mccandlish(0.5),
    "α = 1": _mccandlish(1.0),
    "√, then flat": Truth(_then_flat, False),
    "saturating, r = 0.3": _saturating(0.3),
    "saturating, r = 1": _saturating(1.0),
    "saturating, r = 2": _saturating(2.0),
    "surge to 1x": _surge(1.0),
    "surge to 4x": _surge(4.0),
    "surge to 16x": _surge(16.0),
}


class Outcome(NamedTuple):
    """Of so many sweeps of one kind, the shares of what was said."""

    named: float  # any law
    wrong: float  # a law that is off by more than 1.2
    peak: float  # a rise and a fall
    covered: float  # the peak's interval holds the true one; nan without a peak


def batch_sizes(count: int, ratio: float) -> np.ndarray:
    """A geometric grid."""
    return FIRST * ratio ** np.arange(count)


def audit(name: str, count: int, ratio: float, error: float, repetitions: int) -> Outcome:
    """Fits so many sweeps of one truth, each with its own noise."""
    truth = TRUTHS[name]
    grid = batch_sizes(count, ratio)
    dense = np.geomspace(grid[0], grid[-1], 8 * count)
    line = truth.log_lr(grid, grid)
    curve = truth.log_lr(dense, grid)
    summit = dense[curve.argmax()]
    errors = np.full(count, error)
    rng = np.random.default_rng(zlib.crc32(f"{name} {count} {ratio} {error}".encode()))
    said = np.zeros((repetitions, 4))
    for row in said:
        lr = np.exp(line + error * rng.normal(size=count))
        comparison = compare_laws(grid, lr, errors)
        peak = find_peak(grid, lr, errors, comparison)
        if comparison.best:
            fitted = comparison.fits[comparison.best].parameters
            found = np.log(LAWS[comparison.best].function(dense, **fitted))
            row[0] = 1
            row[1] = np.abs(found - curve).max() > EQUIVALENT
        row[2] = math.isfinite(peak.value)
        row[3] = peak.low <= summit <= peak.high if truth.peaked else math.nan
    return Outcome(*said.mean(0).tolist())


def ratios(count: int) -> tuple[float, ...]:
    """Factors between neighbouring batch sizes: few sizes are spread wide."""
    return (4.0,) if count < 6 else (2.0, 4.0) if count < 11 else (2.0,)


def cells() -> list[tuple[str, int, float, float]]:
    """Every kind of sweep: truth, number of batch sizes, their ratio, error."""
    wide = [(count, ratio) for count in COUNTS for ratio in ratios(count)]
    audited = [
        (name, count, ratio, error)
        for name, (count, ratio), error in itertools.product(TRUTHS, wide, ERRORS)
    ]
    return audited + [("surge to 4x", count, ratio, THREE_SEEDS) for count, ratio in wide]


def _audit(cell: tuple[str, int, float, float], repetitions: int) -> Outcome:
    return audit(*cell, repetitions)


def main(argv: list[str]) -> None:
    del argv
    todo = cells()
    repetitions = _REPETITIONS.value
    with ProcessPoolExecutor(_PROCESSES.value) as pool:
        outcomes = pool.map(_audit, todo, itertools.repeat(repetitions), chunksize=4)
        results = dict(zip(todo, outcomes, strict=True))
    text = page(results, repetitions)
    Path(_OUT.value).write_text(text)
    print(text)


def page(results: dict[tuple[str, int, float, float], Outcome], repetitions: int) -> str:
    """The table, and what stands out of it."""
    worst = {
        what: max(
            (getattr(outcome, what), cell)
            for cell, outcome in results.items()
            if what == "wrong" or not TRUTHS[cell[0]].peaked
        )
        for what in ("wrong", "peak")
    }
    claimed = np.mean([x.peak for cell, x in results.items() if not TRUTHS[cell[0]].peaked])
    power = {cell: outcome.peak for cell, outcome in results.items() if cell[3] == THREE_SEEDS}
    kinds = len(results)
    wrong = np.mean([outcome.wrong for outcome in results.values()])
    lines = [
        "# What the fits say of planted sweeps",
        "",
        "Written by `scripts/audit_fits.py`, which says what is planted: optima of a known curve",
        "with normal errors of log ε, on a geometric grid of batch sizes. A law is *wrong* where",
        "its fitted curve leaves the truth by more than a factor of 1.2 anywhere within the data.",
        f"{repetitions} sweeps of each of {kinds} kinds, shares in percent. Of so many kinds the",
        f"worst shows {_chance(repetitions, kinds):.0%} where each has 5%.",
        "",
        f"* A wrong law is named in {wrong:.1%} of all sweeps, in the worst kind in",
        f"  {_worst(worst['wrong'])}.",
        f"* A peak is claimed of curves without one in {claimed:.1%} of sweeps, in the worst kind",
        f"  in {_worst(worst['peak'])}.",
        f"* The peak of a surge whose data end at 4x it is seen in {min(power.values()):.0%} to",
        f"  {max(power.values()):.0%} of sweeps at an error of {THREE_SEEDS}: 3 seeds, noise 0.1.",
        "",
        "| truth | batch sizes | error | named | wrong | peak | peak covered |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (name, count, ratio, error), outcome in results.items():
        shares = ["–" if math.isnan(share) else f"{100 * share:.0f}" for share in outcome]
        lines.append(f"| {name} | {count}, x{ratio:g} | {error:g} | {' | '.join(shares)} |")
    return "\n".join(lines) + "\n"


def _worst(worst: tuple[float, tuple[str, int, float, float]]) -> str:
    share, (name, count, ratio, error) = worst
    return f"{share:.0%} ({name}, {count} batch sizes x{ratio:g}, error {error:g})"


def _chance(repetitions: int, kinds: int) -> float:
    """The median of the largest of so many shares that are 5% each."""
    return float(stats.binom.ppf(0.5 ** (1 / kinds), repetitions, 0.05)) / repetitions


if __name__ == "__main__":  # flags too: a test imports the rest
    _REPETITIONS = flags.DEFINE_integer("repetitions", 100, "sweeps of each kind")
    _OUT = flags.DEFINE_string("out", "docs/results/audit_fits.md", "where the table goes")
    _PROCESSES = flags.DEFINE_integer("processes", 2, "how many work at once")
    app.run(main, flags_parser=parsed)
