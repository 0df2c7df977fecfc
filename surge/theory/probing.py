"""Which learning rate to try next at a new batch size, and what the tries so far say.

A run at distance d = log rate − log optimum takes level + c·d² + noise log steps to the target, c
being one of two, below and above the optimum. Nothing of this is known but by its prior: ψ by what
rules and laws leave open, c by the sweeps that were judged (`judged.COST`), and the level not at
all. All hypotheses stand on one grid, so that what a try would tell is a sum over them.

No basin is a parabola: a rate's error grows with how far up the parabola it lies. All runs of one
rate have that error in common, so that another rate soon tells more than one more of the same.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import log_ndtr, ndtr

from surge.theory.judged import BEYOND, COST, FAILED

# Three points have the mean and the variance of a normal, here of log c about its judged median.
BENDS = np.exp(0.6 * math.sqrt(3) * np.array([-1.0, 0.0, 1.0]))
BEND_WEIGHTS = np.array([1.0, 4.0, 1.0]) / 6
NOISE = np.array([0.04, 0.12, 0.36])  # of log steps between seeds
SHAPE_ERROR = 0.3  # of c·d², by which a basin is no parabola
SLIPS = 0.03  # of runs at rates that are not too high fail as well
PATIENCE = 4.0  # times the fewest steps so far, where a run is given up
REACH = 1.4  # in log ε beyond the open ones: rates that are tried
SPACING = math.log(2) / 2  # between rates that are tried
BINS = 24  # of outcomes
SPARSE = 10  # points of the grid of ψ to one hypothesis
UNSEEN = 1e-7  # probability of a ψ that is not considered


class Try(NamedTuple):
    """A run of the probe.

    Attributes:
      rate: log of its rate over the one that was tuned at B0.
      steps: log of the steps to the target; nan where it was not reached.
      limit: log of the steps at which it was or would have been given up.
    """

    rate: float
    steps: float
    limit: float


class Hypotheses(NamedTuple):
    """All that may be, on one grid.

    Attributes:
      psi: log ε(B)/ε(B0) [p, 1].
      prior: of them [p].
      low, high: c below and above the optimum [1, h].
      noise: of log steps [1, h].
      weight: of these [h].
    """

    psi: np.ndarray
    prior: np.ndarray
    low: np.ndarray
    high: np.ndarray
    noise: np.ndarray
    weight: np.ndarray


def hypotheses(grid: np.ndarray, mass: np.ndarray) -> Hypotheses:
    """From a distribution of ψ [g], as `surge.theory.transfer` has it."""
    count = len(grid) // SPARSE
    coarse = grid[: count * SPARSE].reshape(count, SPARSE).mean(1)
    prior = mass[: count * SPARSE].reshape(count, SPARSE).sum(1)
    seen = prior > UNSEEN
    low, high, noise = np.meshgrid(
        COST["low"][0] * BENDS, COST["high"][0] * BENDS, NOISE, indexing="ij"
    )
    weight = BEND_WEIGHTS[:, None, None] * BEND_WEIGHTS[:, None] * np.ones(NOISE.size)
    return Hypotheses(
        coarse[seen, None],
        prior[seen] / prior[seen].sum(),
        low.reshape(1, -1),
        high.reshape(1, -1),
        noise.reshape(1, -1),
        weight.ravel() / weight.sum(),
    )


class _Forecast(NamedTuple):
    """Of a run under each hypothesis [p, h]: extra log steps, the error of the parabola there, the
    chance of failure."""

    extra: np.ndarray
    shape: np.ndarray
    fails: np.ndarray


def _forecast(known: Hypotheses, rate: float) -> _Forecast:
    distance = rate - known.psi
    extra = np.where(distance < 0, known.low, known.high) * distance**2
    failed, tried = FAILED
    fails = np.where(distance > math.log(BEYOND), failed / tried, SLIPS)
    return _Forecast(extra, SHAPE_ERROR * extra, fails)


class _Cell(NamedTuple):
    """Runs of one rate that arrived: how many, their mean log steps and sum of squares about it."""

    rate: float
    count: int
    mean: float
    scatter: float


def _cells(tries: Sequence[Try]) -> list[_Cell]:
    arrived: dict[float, list[float]] = {}
    for one in tries:
        if math.isfinite(one.steps):
            arrived.setdefault(round(one.rate, 9), []).append(one.steps)
    return [
        _Cell(rate, len(steps), float(np.mean(steps)), float(np.var(steps) * len(steps)))
        for rate, steps in arrived.items()
    ]


class _Level(NamedTuple):
    """The steps at the optimum under each hypothesis [p, h], their error, log likelihood so far."""

    middle: np.ndarray
    error: np.ndarray
    log_likelihood: np.ndarray


def _level(known: Hypotheses, tries: Sequence[Try]) -> _Level:
    """From the runs that arrived; an error of inf where none did."""
    cells = _cells(tries)
    shape = len(known.psi), known.noise.size
    total = np.zeros(shape)
    weighted = np.zeros(shape)
    squares = np.zeros(shape)
    logs = np.zeros(shape)
    for cell in cells:
        said = _forecast(known, cell.rate)
        # About the first cell, or squares would lose their digits.
        place = cell.mean - cells[0].mean - said.extra
        weight = 1 / (known.noise**2 / cell.count + said.shape**2)
        total += weight
        weighted += weight * place
        squares += weight * place**2
        logs += np.log(weight) / 2 + cell.count * np.log1p(-said.fails)
        logs -= (cell.count - 1) * np.log(known.noise) + cell.scatter / (2 * known.noise**2)
    if not cells:
        return _Level(np.zeros(shape), np.full(shape, math.inf), logs)
    middle = weighted / total
    logs += -np.log(total) / 2 - (squares - weighted * middle) / 2
    return _Level(cells[0].mean + middle, total**-0.5, logs)


def log_likelihood(known: Hypotheses, tries: Sequence[Try]) -> np.ndarray:
    """log likelihood of each hypothesis [p, h], the level of the steps being integrated out."""
    level = _level(known, tries)
    logs = level.log_likelihood
    for one in tries:
        if not math.isfinite(one.steps):
            said = _forecast(known, one.rate)
            late = log_ndtr(-_standard(one.limit, level, said, np.hypot(known.noise, said.shape)))
            logs = logs + np.logaddexp(np.log(said.fails), np.log1p(-said.fails) + late)
    return logs


def _standard(log_steps: Any, level: _Level, said: _Forecast, error: np.ndarray) -> np.ndarray:
    """Log steps in standard errors of a run's forecast; 0 where no run has told the level."""
    return (log_steps - level.middle - said.extra) / np.hypot(level.error, error)


def _new_error(known: Hypotheses, said: _Forecast, repeats: int) -> np.ndarray:
    """Error of a run that stands beside so many of the same rate: that of one independent run which
    tells as much [p, h]."""
    if not repeats:
        return np.hypot(known.noise, said.shape)
    before = known.noise**2 / repeats + said.shape**2
    after = known.noise**2 / (repeats + 1) + said.shape**2
    return np.sqrt(before * after / (before - after))


def posterior(known: Hypotheses, tries: Sequence[Try]) -> np.ndarray:
    """Probability of each hypothesis [p, h]."""
    logs = log_likelihood(known, tries)
    mass = np.exp(logs - logs.max()) * known.prior[:, None] * known.weight
    return mass / mass.sum()


def likelihood(known: Hypotheses, tries: Sequence[Try], grid: np.ndarray) -> np.ndarray:
    """Likelihood of each ψ of a grid [g], in all 1; 0 where the prior has nothing."""
    logs = log_likelihood(known, tries)
    told = np.exp(logs - logs.max()) @ known.weight
    mass = np.interp(grid, known.psi[:, 0], told, left=0.0, right=0.0)
    return mass / mass.sum()


def information(known: Hypotheses, tries: Sequence[Try], rate: float, limit: float) -> float:
    """What a run is expected to tell of ψ, in nats: the mutual information of ψ and its outcome."""
    now = posterior(known, tries)
    level = _level(known, tries)
    said = _forecast(known, rate)
    lowest = min((one.steps for one in tries if math.isfinite(one.steps)), default=limit) - 1.0
    edges = np.linspace(lowest, limit, BINS)[:, None, None]
    repeats = sum(
        cell.count for cell in _cells(tries) if math.isclose(cell.rate, rate, abs_tol=1e-6)
    )
    error = _new_error(known, said, repeats)
    below = (1 - said.fails) * ndtr(_standard(edges, level, said, error))  # [bins, p, h]
    last = np.ones((1, *below.shape[1:]))
    chances = np.diff(np.concatenate([0 * last, below, last]), axis=0)
    joint = (chances * now).sum(2)  # [bins + 1, p]
    apart = joint.sum(1, keepdims=True) * joint.sum(0)
    seen = joint > 0
    return float((joint[seen] * np.log(joint[seen] / apart[seen])).sum())


def expected_steps(known: Hypotheses, tries: Sequence[Try], rate: float, limit: float) -> float:
    """Steps that a run is expected to take, given up at its limit."""
    level = _level(known, tries)
    said = _forecast(known, rate)
    steps = np.exp(np.minimum(level.middle + said.extra, limit))
    steps = np.where(np.isfinite(level.error), steps, math.exp(limit))
    expected = (1 - said.fails) * steps + said.fails * math.exp(limit)
    return float((posterior(known, tries) * expected).sum())


def limit_of(tries: Sequence[Try], longest: float) -> float:
    """log of the steps at which the next run is given up."""
    arrived = [one.steps for one in tries if math.isfinite(one.steps)]
    return min([math.log(longest), *(steps + math.log(PATIENCE) for steps in arrived)])


def interval(known: Hypotheses, tries: Sequence[Try]) -> tuple[float, float, float]:
    """Median and 95% interval of ψ."""
    cumulative = posterior(known, tries).sum(1).cumsum()
    places = np.searchsorted(cumulative, (0.5, 0.025, 0.975)).clip(0, len(cumulative) - 1)
    middle, low, high = known.psi[places, 0].tolist()
    return middle, low, high


def next_rate(known: Hypotheses, tries: Sequence[Try], longest: float) -> float:
    """log of the rate to try next, over ε0: where a step is expected to tell most of ψ.

    Before a run has arrived nothing tells how many steps are few, and the most likely rate is
    tried; after one that failed, the middle of what is left.

    Args:
      known: all hypotheses.
      tries: so far.
      longest: steps of the longest run that is allowed.
    """
    middle, low, high = interval(known, tries)
    if not any(math.isfinite(one.steps) for one in tries):
        return SPACING * round(middle / SPACING)
    limit = limit_of(tries, longest)
    first = math.ceil((low - REACH) / SPACING)
    last = math.floor((high + REACH) / SPACING)
    rates = [SPACING * step for step in range(first, last + 1)]
    worth = [
        information(known, tries, rate, limit) / expected_steps(known, tries, rate, limit)
        for rate in rates
    ]
    return rates[int(np.argmax(worth))]
