"""Two results on one page: where their best rates differ beyond chance, and in what they were
made unlike."""

import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from scipy import stats

from surge.report import provenance, sweep_figures, verdicts
from surge.report.course import HALF_INTERVAL, Optimum, inside
from surge.report.drawing import Panel
from surge.report.findings import Findings
from surge.report.formats import DASH, count, estimate, listed, number
from surge.report.markup import Drawing, Prose, Section, Table
from surge.report.reading import Entry, goal, judged, rate, representative

SIGNIFICANT = 0.05  # of all batch sizes of one optimizer together


class Ratio(NamedTuple):
    """The second best rate over the first at one batch size, and whether chance explains it."""

    batch_size: float
    value: float
    low: float
    high: float
    differs: bool


def sections(results: Mapping[str, Findings]) -> list[Section]:
    """The page of two results.

    Args:
      results: name -> what the workdir of that name holds, two of them.
    """
    first, second = results
    chosen = {name: representative(found.entries) for name, found in results.items()}
    common = [name for name in chosen[first] if name in chosen[second]]
    blocks: list[Any] = []
    for name, found in results.items():
        for line in provenance.overview(found)[:1]:
            blocks.append(Prose(line, "note", name))
    for optimizer in common:
        pair = {name: chosen[name][optimizer] for name in results}
        blocks.append(Prose(_verdict(pair), "answer", optimizer))
    if not common:
        blocks.append(Prose("They have no optimizer or group in common.", "warning"))
    panels = [_panel(name, {key: chosen[key][name] for key in results}) for name in common]
    if panels:
        blocks.append(Drawing(panels))
    parts = [Section(f"{first} and {second}", [*blocks, _fields(results)])]
    for optimizer in common:
        pair = {name: chosen[name][optimizer] for name in results}
        parts.append(Section(optimizer, _details(optimizer, pair)))
    return parts


def ratios(first: Entry, second: Entry) -> list[Ratio]:
    """Of the batch sizes at which both have an optimum with an interval.

    The errors of two workdirs are independent; a difference counts where it is beyond what the most
    unlucky of so many equal pairs shows in 5% of cases (Bonferroni).
    """
    others = {optimum.batch_size: optimum for optimum in inside(second)}
    pairs = [
        (optimum, others[optimum.batch_size])
        for optimum in inside(first)
        if optimum.batch_size in others
    ]
    reach = stats.norm.isf(SIGNIFICANT / 2 / len(pairs)) if pairs else math.inf
    return [_ratio(one, other, float(reach)) for one, other in pairs]


def _ratio(one: Optimum, other: Optimum, reach: float) -> Ratio:
    apart = other.log_lr - one.log_lr
    error = math.hypot(one.error, other.error)
    half = HALF_INTERVAL * error
    value, low, high = (math.exp(apart + shift) for shift in (0.0, -half, half))
    return Ratio(one.batch_size, value, low, high, abs(apart) > reach * error)


def _verdict(pair: Mapping[str, Entry]) -> str:
    """Where the best rates of one optimizer differ."""
    first, second = pair
    if judged(pair[first]) != judged(pair[second]):
        goals = f"{judged(pair[first])} and {judged(pair[second])}"
        return f"the two are judged by unlike things, {goals}: their rates need not agree."
    found = ratios(*pair.values())
    if not found:
        return "no batch size has an optimum with an interval in both."
    differing = [ratio for ratio in found if ratio.differs]
    if not differing:
        low, high = (number(end([ratio.value for ratio in found]), 2) for end in (min, max))
        sizes = f"the {len(found)} common batch sizes" if found[1:] else "the common batch size"
        return (
            f"nothing beyond chance sets them apart at {sizes}: the rates of {second} are "
            f"{low} to {high} times those of {first}."
        )
    told = listed(
        f"{estimate([ratio.value, ratio.low, ratio.high])} times at B = {count(ratio.batch_size)}"
        for ratio in differing
    )
    return (
        f"at {len(differing)} of {len(found)} common batch sizes the rates of {second} differ from "
        f"those of {first} beyond chance: {told}."
    )


def _panel(optimizer: str, pair: Mapping[str, Entry]) -> Panel:
    goals = listed(f"{name} by {judged(entry)}" for name, entry in pair.items())
    return Panel(
        f"{optimizer}: best learning rate",
        partial(sweep_figures.compared, entries=pair),
        f"Best rates with 95% intervals: {goals}.",
        f"compared-{optimizer}",
    )


def _details(optimizer: str, pair: Mapping[str, Entry]) -> list[Any]:
    """Sentences of both, and their rates side by side."""
    blocks: list[Any] = []
    for name, entry in pair.items():
        said = (verdicts.answer(entry), verdicts.kappa(entry), verdicts.winner(entry))
        blocks.append(Prose(" ".join(filter(None, said)), lead=f"{name}, to {goal(entry)}"))
    points = {
        name: {point["batch_size"]: rate(point) for point in entry["optimal_lr"]}
        for name, entry in pair.items()
    }
    told = {ratio.batch_size: ratio for ratio in ratios(*pair.values())}
    sizes = sorted(set().union(*points.values()))
    rows = [
        (
            count(size),
            *(of.get(size, DASH) for of in points.values()),
            estimate(told[size][1:4]) if size in told else DASH,
            "beyond chance" if size in told and told[size].differs else "",
        )
        for size in sizes
    ]
    header = ("batch size", *pair, "ratio with 95% interval", "note")
    return [*blocks, Table(f"{optimizer}: best rates side by side", header, rows)]


def _fields(results: Mapping[str, Findings]) -> Table | Prose:
    """The fields of the configs that are unlike."""
    configs = [
        _flat(json.loads(found.attributes.get("config", "{}"))) for found in results.values()
    ]
    if not all(configs):
        return Prose("At least one of them has no config: it is of a table.", "note")
    names = [
        name
        for name in sorted(configs[0].keys() | configs[1].keys())
        if configs[0].get(name) != configs[1].get(name)
    ]
    if not names:
        return Prose("Their configs are the same.", "note")
    rows = [(name, *(str(config.get(name, DASH)) for config in configs)) for name in names]
    return Table("What their configs have unlike", ("field", *results), rows)


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested config by the names that flags have."""
    flat = {}
    for name, value in config.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = _joined(value)
    return flat


def _joined(value: Any) -> Any:
    listed_values = isinstance(value, Sequence) and not isinstance(value, str)
    return ", ".join(map(str, value)) if listed_values else value
