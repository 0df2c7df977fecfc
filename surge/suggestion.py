"""One answer: the learning rate at another batch size, with all that goes with it."""

import math
from typing import NamedTuple

import numpy as np

from surge.evidence import Bound, Cost, Evidence, Swept
from surge.hyperparameters import co_scaled, paste, resumed
from surge.optimizers.spec import parse
from surge.theory import transfer
from surge.theory.budget import critical_batch_size
from surge.theory.comparison import compare_laws
from surge.theory.judged import BEYOND, COST, FAILED, JUDGED
from surge.theory.rules import RULES, Known
from surge.theory.transfer import Transfer

SHOWN = ("sqrt", "linear", "constant")  # what users apply, whose cost is told
WIDE = 2.0  # high over low: ±√2, beyond which rates to try are given
UNTOLD = 10.0  # high over low, beyond which no rate is recommended
JUDGED_RATIO = 64.0  # the largest move that rules were judged on
TOP = 50.0  # of an exponent: beyond it a run never arrives


class Alternative(NamedTuple):
    """A rule of thumb: its rate, and what it costs on this evidence.

    Attributes:
      lr: its rate.
      cost, low, high: extra steps as a share, or extra loss; median and 95% interval.
      fails: probability that a run does not get there.
    """

    lr: float
    cost: float
    low: float
    high: float
    fails: float


class Suggestion(NamedTuple):
    """The learning rate at a new batch size, and what goes with it.

    Attributes:
      lr, low, high: the rate with its 95% interval; nan where nothing tells it.
      why: the reason where it cannot be told, and what would tell; else "".
      from_batch_size, from_lr, to_batch_size, optimizer: as they were given.
      rests_on: sentences on the evidence.
      parts: each rule's or law's weight and what it says alone: (weight, lr, low, high).
      alternatives: √, linear and constant, with their costs.
      unit: of these costs, "steps" (a share) or "loss".
      co_scaled: rule -> hyperparameters at the new batch size, or where it ends.
      overhead: batch size beyond which examples exceed the least by over 20%.
      rises_to: batch size from which on the rate does not rise.
      trials: rates to try, the most informative; empty where the interval is narrow.
      warnings: where the evidence ends.
      paste: one line.
      probe: runs that were made for it; None without.
      resumed: what becomes of the second moment in a run that goes on at the new batch size; ""
        where nothing tells it.
    """

    lr: float
    low: float
    high: float
    why: str
    from_batch_size: float
    from_lr: float
    to_batch_size: float
    optimizer: str
    rests_on: list[str]
    parts: dict[str, tuple[float, float, float, float]]
    alternatives: dict[str, Alternative]
    unit: str
    co_scaled: dict[str, dict[str, float] | str]
    overhead: Bound
    rises_to: Bound
    trials: list[float]
    warnings: list[str]
    paste: str
    probe: Cost | None = None
    resumed: str = ""

    def _repr_html_(self) -> str:
        from surge.notebook import of_suggestion  # which imports figures

        return of_suggestion(self)


class Told(NamedTuple):
    """What evidence says of the ratio, and whether laws and rules had a part; a sentence on what
    other groups lent."""

    transfer: Transfer
    laws: bool
    rules: bool
    pooled: str


def suggestion(
    evidence: Evidence,
    *,
    from_batch_size: float | None,
    from_lr: float | None,
    to_batch_size: float | None,
    optimizer: str,
    horizon_ratio: float = 1.0,
) -> Suggestion:
    """The rate at a new batch size from a rate that is right at another.

    Args:
      evidence: what is known of the task.
      from_batch_size, from_lr: B0 and the rate that was tuned there.
      to_batch_size: B.
      optimizer: its spec.
      horizon_ratio: new / old length of the run in examples.

    Raises:
      ValueError: one of the numbers is missing or not above 0, or an unknown optimizer.
    """
    base, lr, size = given(from_batch_size, from_lr, to_batch_size, horizon_ratio)
    spec = parse(optimizer)
    swept = evidence.swept
    measured = math.isfinite(evidence.known.b_simple)
    heard = told(evidence, size, base)
    said = heard.transfer
    alone = {
        name: (weight, lr * middle, lr * low, lr * high)
        for name, (weight, middle, low, high) in said.parts.items()
    }
    return Suggestion(
        lr=said.ratio * lr,
        low=said.low * lr,
        high=said.high * lr,
        why=said.why or _untold(said, swept, measured),
        from_batch_size=base,
        from_lr=lr,
        to_batch_size=size,
        optimizer=optimizer,
        rests_on=_rests_on(evidence, heard),
        parts=alone,
        alternatives={name: _alternative(name, said, lr, size, base, swept) for name in SHOWN},
        unit="loss" if swept and swept.judged_by != "steps" else "steps",
        co_scaled=co_scaled(spec, size / base, said.ratio, horizon_ratio),
        overhead=_overhead(evidence),
        rises_to=_rises_to(swept, evidence.known),
        trials=_trials(said, lr),
        warnings=[*_warnings(swept, evidence.known, base, lr, size), *evidence.remarks],
        paste=paste(spec, said.ratio * lr, size, base, said.ratio, horizon_ratio),
        probe=evidence.probed.cost if evidence.probed else None,
        resumed=resumed(spec, size, base, evidence.known.b_simple),
    )


def told(evidence: Evidence, size: float, base: float) -> Told:
    """The ratio ε(B)/ε(B0) on all evidence, and which kinds of it there are."""
    measured = math.isfinite(evidence.known.b_simple)
    laws, pooled = _laws(evidence, size, base)
    # A sweep of the task itself says more than rules that other tasks judged.
    rules = transfer.from_rules(size, base, evidence.known) if measured or not laws else []
    belief = evidence.probed.belief if evidence.probed else None
    probe = [belief] if belief else []
    said = transfer.average(transfer.psi_grid(size, base), probe, laws, rules)
    return Told(said, laws != [], rules != [], pooled)


def given(
    from_batch_size: float | None,
    from_lr: float | None,
    to_batch_size: float | None,
    horizon_ratio: float = 1.0,
) -> tuple[float, float, float]:
    """B0, ε0 and B.

    Raises:
      ValueError: one of the numbers is missing or not above 0.
    """
    if from_batch_size is None:
        raise ValueError(
            "a learning rate says nothing without the batch size it was tuned at: give "
            "from_batch_size"
        )
    if from_lr is None:
        raise ValueError(f"which rate was right at batch size {from_batch_size:g}? give from_lr")
    if to_batch_size is None:
        raise ValueError("to which batch size do you go? give to_batch_size")
    for name, value in (
        ("from_batch_size", from_batch_size),
        ("from_lr", from_lr),
        ("to_batch_size", to_batch_size),
        ("horizon_ratio", horizon_ratio),
    ):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be a finite number above 0, got {value}")
    return float(from_batch_size), float(from_lr), float(to_batch_size)


def _laws(evidence: Evidence, size: float, base: float) -> tuple[list[transfer.Belief], str]:
    """What the laws say that a sweep leaves open, with others like it where there are some, and a
    sentence on those; nothing where neither has an optimum."""
    pooled, said = evidence.pool.beliefs(size, base) if evidence.pool else ([], "")
    return pooled or _own_laws(evidence.swept, size, base), said


def _own_laws(swept: Swept | None, size: float, base: float) -> list[transfer.Belief]:
    """What the laws say that a sweep leaves open; nothing where it has no optimum."""
    if swept is None or not (swept.bound == 0).any():
        return []
    comparison = compare_laws(swept.batch_size, swept.lr, swept.error, swept.bound)
    weights = {name: comparison.weights[name] for name in comparison.remaining}
    return transfer.from_laws(comparison.fits, weights, size, base)


def _untold(said: Transfer, swept: Swept | None, measured: bool) -> str:
    """Why the rate cannot be told, and what would tell it; "" where it can."""
    settles = "three rates tried at the new batch size settle it (--probe chooses and runs them)"
    if not said.high / said.low > UNTOLD:
        return ""
    factor = f"cannot tell: the interval spans a factor of {said.high / said.low:.2g}"
    if swept is None and not measured:
        return (
            f"{factor}; the noise scale of one checkpoint narrows it (--stages=measure, then "
            f"--workdir), and {settles}"
        )
    return f"{factor}; {settles}"


def _rests_on(evidence: Evidence, heard: Told) -> list[str]:
    said = []
    if evidence.probed is not None:
        said.append(evidence.probed.rests_on)
    if heard.laws and evidence.swept is not None:
        said.append(evidence.swept.rests_on)
    if heard.pooled:
        said.append(heard.pooled)
    if heard.rules and evidence.measured:
        noise = evidence.known
        said.append(
            f"{evidence.measured}, B_simple {noise.b_simple:.3g} "
            f"[{noise.b_simple_low:.2g}, {noise.b_simple_high:.2g}]"
        )
    if heard.rules:
        kind = evidence.known.kind
        tasks = JUDGED["sqrt"].get(kind, {})
        where = f"for {kind} on {', '.join(tasks)}" if kind else "for other optimizers"
        alone = "" if said else "no sweep and no checkpoint: "
        said.append(f"{alone}rules, with the errors they made {where}")
    return said


def _alternative(
    name: str, said: Transfer, lr: float, size: float, base: float, swept: Swept | None
) -> Alternative:
    """A rule of thumb and its cost, over all that the optimum may be."""
    psi = RULES[name](size, base, Known())
    distance = psi - said.grid
    steep = [median for median, _, _ in (COST["low"], COST["high"])]
    failed, tried = FAILED
    if swept is not None:
        steep = [
            own if math.isfinite(own) else judged
            for own, judged in zip(swept.steepness, steep, strict=True)
        ]
        failed, tried = (swept.failed, swept.tried) if swept.tried else (failed, tried)
    exponent = np.where(distance < 0, steep[0], steep[1]) * distance**2
    loss = swept is not None and swept.judged_by != "steps"
    cost = exponent if loss else np.expm1(np.minimum(exponent, TOP))
    middle, low, high = _weighted_quantiles(cost, said.mass)
    fails = float(said.mass[distance > math.log(BEYOND)].sum()) * failed / tried
    return Alternative(lr * math.exp(psi), middle, low, high, fails)


def _weighted_quantiles(values: np.ndarray, mass: np.ndarray) -> tuple[float, float, float]:
    order = np.argsort(values)
    places = np.searchsorted(np.cumsum(mass[order]), (0.5, 0.025, 0.975))
    middle, low, high = values[order][places.clip(0, len(values) - 1)].tolist()
    return middle, low, high


def noise_scale(evidence: Evidence) -> Bound:
    """The noise scale that steps follow, from the sweep's steps or from a checkpoint; nan and what
    would tell it without either."""
    swept, known = evidence.swept, evidence.known
    if swept is not None and math.isfinite(swept.noise_scale.value):
        return swept.noise_scale._replace(why="from the steps of the sweep")
    if math.isnan(known.b_simple):
        told = swept.noise_scale.why if swept is not None else ""
        nothing = "steps to a target, or a checkpoint, tell it"
        return Bound(math.nan, math.nan, math.nan, told or nothing)
    ends = known.b_simple_low, known.b_simple_high
    return Bound(known.b_simple, *ends, "from B_simple, if steps follow it")


def _overhead(evidence: Evidence) -> Bound:
    """Batch size beyond which examples exceed the least by over 20%."""
    scale = noise_scale(evidence)
    value, low, high = (critical_batch_size(end) for end in scale[:3])
    return Bound(value, low, high, scale.why)


def _rises_to(swept: Swept | None, known: Known) -> Bound:
    """Batch size from which on the rate does not rise."""
    if swept is not None and not math.isnan(swept.peak.low):
        return swept.peak
    seen = math.isfinite(known.b_simple)
    why = (
        "B_simple, where the surge rule has its peak"
        if seen
        else "a sweep or a checkpoint tells it"
    )
    return Bound(known.b_simple, known.b_simple_low, known.b_simple_high, why)


def _trials(said: Transfer, lr: float) -> list[float]:
    """Three rates where the interval is wide: the middles of thirds of the probability."""
    if not said.high / said.low > WIDE:
        return []
    cumulative = np.cumsum(said.mass)
    places = np.searchsorted(cumulative, (1 / 6, 1 / 2, 5 / 6))
    return (lr * np.exp(said.grid[places])).tolist()


def _warnings(swept: Swept | None, known: Known, base: float, lr: float, size: float) -> list[str]:
    """Where the evidence ends."""
    said = []
    ratio = max(size / base, base / size)
    if swept is None:
        if ratio > JUDGED_RATIO:
            said.append(
                f"rules were judged on moves of up to {JUDGED_RATIO:g} times, not {ratio:.3g}"
            )
        if not known.kind:
            said.append("no rule was judged for this optimizer: the errors are those of all others")
        return said
    low, high = swept.batch_size.min(), swept.batch_size.max()
    for name, value in (("from", base), ("to", size)):
        if not low <= value <= high:
            said.append(
                f"{name} batch size {value:g} lies outside the sweep, {low:g} to {high:g}: the "
                "laws are continued beyond it"
            )
    said += _own_optimum(swept, base, lr)
    at = np.flatnonzero(swept.batch_size == size)
    if len(at) and swept.bound[at[0]]:
        side = "at least" if swept.bound[at[0]] > 0 else "at most"
        end = swept.lr[at[0]]
        said.append(f"at B = {size:g} the sweep's optimum is {side} {end:.3g}, where its rates end")
    return said


def _own_optimum(swept: Swept, base: float, lr: float) -> list[str]:
    """A warning where the rate given is not the one that the sweep found at that batch size."""
    at = np.flatnonzero((swept.batch_size == base) & (swept.bound == 0))
    if not len(at):
        return []
    own = swept.lr[at[0]]
    gap = math.log(lr / own)
    if abs(gap) <= 1.96 * swept.error[at[0]]:
        return []
    return [
        f"the sweep's own optimum at B = {base:g} is {own:.3g}, and {lr:.3g} is "
        f"{math.exp(gap):.2g} times that: only the ratio is taken from the sweep"
    ]
