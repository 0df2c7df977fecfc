"""From a rate that is right at one batch size to the rate at another, with a 95% interval.

A rate ε0 tuned at B0 becomes ε0 · ε(B)/ε(B0). What says the ratio is either a *law* fitted to a
sweep, with every shape that the sweep leaves open, or a *rule*, which a user applies without a
sweep, alone or with numbers of one checkpoint. Nobody knows which is right, so the answer averages
over all that remain, and its interval holds the spread between them. A rule has no interval of its
own: it gets the errors that it made where it was judged (`surge.theory.judged`).

Everything is in ψ = log ε(B)/ε(B0), on one grid.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from surge.theory.fit import ERROR_FLOOR, Fit, log_shapes
from surge.theory.judged import JUDGED
from surge.theory.rivals import LAWS
from surge.theory.rules import RULES, Known

CONFIDENCE = 0.95
HALF_INTERVAL = 1.96  # standard errors from the middle of a 95% interval to its end
STEP = 0.005  # of the grid of ψ
OUTSIDE = 4.0  # of the grid beyond the linear rule, in ψ
PRIOR_ERROR = 0.1  # of a rule, in log ε for each e-fold of batch size, before it was judged
PRIOR_TASKS = 2.0  # tasks that this guess counts for
ANY = 1e12  # examples: a noise scale beyond which, and below whose inverse, no rule changes
NO_OVERLAP = 1e-6  # of two distributions, below which one of them must be wrong


class Belief(NamedTuple):
    """What one rule or law says of ψ: its weight among its rivals, and its distribution [grid]."""

    name: str
    weight: float
    mass: np.ndarray


class Transfer(NamedTuple):
    """The ratio ε(B)/ε(B0) with its 95% interval, and what each rule or law says of it.

    Attributes:
      ratio, low, high: median and interval of the average; nan where nothing says anything.
      parts: name -> (weight, median, low, high) of each rule or law, in ratios.
      grid, mass: ψ and its distribution [g].
      why: reason for what is undefined or doubtful, else "".
    """

    ratio: float
    low: float
    high: float
    parts: dict[str, tuple[float, float, float, float]]
    grid: np.ndarray
    mass: np.ndarray
    why: str


def psi_grid(batch_size: float, base: float) -> np.ndarray:
    """The grid of ψ, wide enough for the linear rule with all its error."""
    most = math.ceil((2 * abs(math.log(batch_size / base)) + OUTSIDE) / STEP)
    return np.arange(-most, most + 1) * STEP


class Spread(NamedTuple):
    """Student's t of a rule's errors in log ε for each e-fold of B, and the log of its evidence."""

    scale: float
    freedom: float
    log_evidence: float


def spread(squares: Iterable[float]) -> Spread:
    """How far off a rule is, from its mean squared errors in the tasks where it was judged.

    A task counts once however many moves it had: its moves share their base and their noise. With a
    conjugate guess of PRIOR_ERROR that counts for PRIOR_TASKS tasks, a new error is a Student t.
    """
    known = list(squares)
    freedom = PRIOR_TASKS + len(known)
    total = PRIOR_TASKS * PRIOR_ERROR**2 + sum(known)
    return Spread(math.sqrt(total / freedom), freedom, -freedom / 2 * math.log(total))


def judged_errors(rule: str, kind: str, left_out: str = "") -> list[float]:
    """Mean squared errors per squared e-fold of a rule in each task of a kind of optimizer.

    For a kind that was never judged, "", the mean of each kind that was: it is one more of them.
    """
    kinds = {
        name: [square for task, square in tasks.items() if task != left_out]
        for name, tasks in JUDGED.get(rule, {}).items()
    }
    if kind:
        return kinds.get(kind, [])
    return [float(np.mean(squares)) for squares in kinds.values() if squares]


def from_rules(
    batch_size: float,
    base: float,
    known: Known,
    left_out: str = "",
) -> list[Belief]:
    """What every rule that has an answer says of ψ, with the errors it made where it was judged.

    Args:
      batch_size: B.
      base: B0.
      known: of the task.
      left_out: name of a task whose judgement is not used, to test the intervals on it.

    Returns:
      One Belief a rule; weights by the evidence of the judged errors, in all 1.
    """
    middles = {name: rule(batch_size, base, known) for name, rule in RULES.items()}
    answers = {
        name: middle for name, middle in middles.items() if math.isfinite(middle) and name in JUDGED
    }
    spreads = {name: spread(judged_errors(name, known.kind, left_out)) for name in answers}
    tasks = {name: len(judged_errors(name, known.kind)) for name in answers}
    weights = _normalised(spreads, tasks)

    grid = psi_grid(batch_size, base)
    distance = abs(math.log(batch_size / base))
    beliefs = []
    for name, middle in answers.items():
        noise = _noise_of_b_simple(RULES[name], batch_size, base, known)
        scale = math.hypot(spreads[name].scale * distance, noise)
        mass = _student(grid, middle, scale, spreads[name].freedom)
        beliefs.append(Belief(name, weights[name], mass))
    return beliefs


def from_laws(
    fits: Mapping[str, Fit],
    weights: Mapping[str, float],
    batch_size: float,
    base: float,
) -> list[Belief]:
    """What every law that a sweep leaves open says of ψ, with all its shapes that it leaves open.

    No law is exact: how far it is off at the swept optima is part of what it says of another, else
    a cap would be known without error.

    Args:
      fits: of the laws, by name, on the sweep's optima.
      weights: of those that are not ruled out, such as Akaike's.
      batch_size: B.
      base: B0.
    """
    grid = psi_grid(batch_size, base)
    sizes = np.array([base, batch_size], float)
    total = sum(weights.values())
    beliefs = []
    for name, weight in weights.items():
        fit = fits[name]
        old, new = log_shapes(LAWS[name], fit.shapes, sizes).T
        mass = profile_mass(grid, new - old, fit.excess)
        off = _law_error(fit, batch_size, base)
        beliefs.append(Belief(f"{name} law", weight / total, _blurred(mass, off)))
    return beliefs


def _law_error(fit: Fit, batch_size: float, base: float) -> float:
    """Standard error of a law's ψ from its residuals, which batch sizes within an octave share."""
    # By their median: that of a bound may be large, and is no error.
    scatter = max(ERROR_FLOOR, 1.4826 * float(np.median(np.abs(fit.residuals))))
    octaves = abs(math.log2(batch_size / base))
    return math.sqrt(2) * scatter * min(octaves, 1.0)


def _blurred(mass: np.ndarray, error: float) -> np.ndarray:
    """A distribution of ψ with a Gaussian error beside it."""
    if error < STEP / 10:
        return mass
    reach = math.ceil(4 * error / STEP)
    kernel = np.exp(-((np.arange(-reach, reach + 1) * STEP / error) ** 2) / 2)
    blurred = np.convolve(mass, kernel)[reach : reach + len(mass)]
    return blurred / blurred.sum()


def _normalised(spreads: Mapping[str, Spread], tasks: Mapping[str, int]) -> dict[str, float]:
    """Weights by evidence; a rule judged on fewer tasks than others is not compared: 0."""
    most = max(tasks.values(), default=0)
    compared = {name: one.log_evidence for name, one in spreads.items() if tasks[name] == most}
    top = max(compared.values(), default=0.0)
    raw = {name: math.exp(evidence - top) for name, evidence in compared.items()}
    total = sum(raw.values())
    return {name: raw.get(name, 0.0) / total for name in spreads}


def _noise_of_b_simple(
    rule: Callable[[float, float, Known], float], batch_size: float, base: float, known: Known
) -> float:
    """Standard error of a rule's answer from that of B_simple, which may be open at an end."""
    ends = (known.b_simple_low, known.b_simple_high)
    if any(math.isnan(end) for end in ends):
        return 0.0
    ends = tuple(min(max(end, 1 / ANY), ANY) for end in ends)
    low, high = (rule(batch_size, base, known._replace(b_simple=end)) for end in ends)
    width = abs(high - low)
    return width / (2 * HALF_INTERVAL) if math.isfinite(width) else 0.0


def _student(grid: np.ndarray, middle: float, scale: float, freedom: float) -> np.ndarray:
    """Student's t about a rule's answer on the grid; a point where the batch size does not move."""
    edges = np.append(grid - STEP / 2, grid[-1] + STEP / 2)
    mass = np.diff(stats.t.cdf(edges, freedom, middle, max(scale, STEP / 10)))
    return mass / mass.sum()


def profile_mass(grid: np.ndarray, psi: np.ndarray, excess: np.ndarray) -> np.ndarray:
    """Distribution of ψ from a profile: the shapes' ψ [g] and misfits in units of the critical one.

    At each ψ the best shape counts, so that how shapes are parametrised does not.
    """
    usable = np.isfinite(psi) & (excess < 4)
    place = np.clip(np.rint((psi[usable] - grid[0]) / STEP).astype(int), 0, len(grid) - 1)
    best = np.full(len(grid), np.inf)
    np.minimum.at(best, place, excess[usable])
    filled = np.flatnonzero(np.isfinite(best))
    # Between two neighbouring shapes of the grid lie all ψ between theirs.
    between = np.interp(np.arange(len(grid)), filled, best[filled], left=np.inf, right=np.inf)
    mass = np.exp(-(HALF_INTERVAL**2) / 2 * between)
    return mass / mass.sum()


def average(grid: np.ndarray, *evidence: Sequence[Belief], why: str = "") -> Transfer:
    """The ratio from one or more independent kinds of evidence.

    Within a kind the average over rivals, by their weights; between kinds the product.

    Args:
      grid: ψ [g].
      *evidence: beliefs of each kind, such as the laws of a sweep and the rules of a checkpoint.
      why: put into the answer.
    """
    said = [beliefs for beliefs in evidence if beliefs]
    if not said:
        nothing = np.full(len(grid), math.nan)
        return Transfer(math.nan, math.nan, math.nan, {}, grid, nothing, why or "nothing is known")
    mass = np.ones(len(grid))
    for beliefs in said:
        mass = mass * _mixed(beliefs)
    if mass.sum() < NO_OVERLAP:
        mass = _mixed(said[0])
        why = why or "runs of the task contradict what is known beside them: the runs are followed"
    mass = mass / mass.sum()
    parts = {
        belief.name: (belief.weight, *_quantiles(grid, belief.mass))
        for beliefs in said
        for belief in beliefs
    }
    return Transfer(*_quantiles(grid, mass), parts, grid, mass, why)


def _mixed(beliefs: Sequence[Belief]) -> np.ndarray:
    return np.sum([belief.weight * belief.mass for belief in beliefs], 0)


def _quantiles(grid: np.ndarray, mass: np.ndarray) -> tuple[float, float, float]:
    """Median and 95% interval of exp ψ."""
    tail = (1 - CONFIDENCE) / 2
    cumulative = np.cumsum(mass)
    places = np.searchsorted(cumulative, (0.5, tail, 1 - tail)).clip(0, len(grid) - 1)
    middle, low, high = np.exp(grid[places]).tolist()
    return middle, low, high
