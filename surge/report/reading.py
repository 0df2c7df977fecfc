"""An entry of fit.json as the report reads it, whichever version wrote it."""

import math
import re
from typing import Any

from surge.report.formats import DASH, estimate, number
from surge.theory.comparison import RULED_OUT

Entry = dict[str, Any]  # one fit of fit.json
Point = dict[str, Any]  # what it says of one batch size
LAWS = {  # law -> its name in a figure, and in a sentence; another one has its own name
    "constant": ("constant", "a constant rate"),
    "sqrt": ("√B", "√B"),
    "linear": ("linear", "a linear rise"),
    "power": ("power of B", "a power of B"),
    "capped_sqrt": ("capped √B", "√B up to a cap"),
    "capped_linear": ("capped linear", "a linear rise up to a cap"),
    "capped_power": ("capped power", "a power of B up to a cap"),
    "sgd": ("SGD law", "the SGD law"),
    "mccandlish": ("McCandlish", "McCandlish's law"),
    "surge": ("surge", "the surge"),
    "one_law": ("one law", "the one law"),
}
SYMBOLS = {
    "max_lr": "ε_max",
    "b_noise": "B_noise",
    "b_turn": "B_turn",
    "b_knee": "B_knee",
    "kappa": "κ",
    "alpha": "α",
    "peak_over_plateau": "peak / plateau",
}


def goal(entry: Entry) -> str:
    """What the steps of a fit lead to."""
    target = entry["target_loss"]
    return "the target" if target is None else f"loss {target}"


def judged(entry: Entry) -> str:
    """What the runs of a fit were judged by."""
    if entry["judged_by"] == "steps":
        return f"steps to {goal(entry)}"
    if entry.get("horizon"):
        return f"the loss {entry['horizon']:,} steps later"
    return "the loss at the end of a run"


def representative(entries: list[Entry]) -> dict[str, Entry]:
    """For each optimizer the fit at its middle target loss."""
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry["optimizer"], []).append(entry)
    return {optimizer: group[len(group) // 2] for optimizer, group in groups.items()}


def optima(entry: Entry) -> list[Point]:
    """The batch sizes whose best rate is known, if only as a bound."""
    return [point for point in entry["optimal_lr"] if point["lr"]]


def bound(point: Point) -> int:
    """1 or -1 where the best rate lies above or below all that were tried, else 0."""
    return point.get("bound") or 0


def outside(point: Point) -> bool:
    """Whether the best rate of one batch size lies beyond the rates that were tried."""
    return bound(point) != 0 or bool(point.get("at_edge"))


def known(point: Point) -> bool:
    """Whether the best rate of one batch size lies inside the grid, with an interval."""
    closed = point["low"] and point["high"]
    return bool(point["lr"] and closed) and not outside(point)


def rate(point: Point) -> str:
    """The best rate of one batch size with its interval, or what is known of it."""
    value = point["lr"]
    if not value:
        return DASH
    if bound(point) > 0:
        return f"≥ {number(value)}"
    if bound(point) < 0:
        return f"≤ {number(value)}"
    if outside(point):  # an earlier version did not say on which side
        return f"{number(value)} (edge of the grid)"
    return estimate([value, point["low"], point["high"]])


def plain(law: str | None) -> str:
    """The name of a law in a figure or a table."""
    return LAWS[law][0] if law in LAWS else str(law).replace("_", " ")


def phrase(law: str | None) -> str:
    """The name of a law within a sentence."""
    return LAWS[law][1] if law in LAWS else plain(law)


def with_phrases(text: str, entry: Entry) -> str:
    """A stored reason with the names of laws as a sentence has them."""
    names = [re.escape(name) for name in entry["laws"]]
    if not names:
        return text
    word = rf"(?:\ba )?\b({'|'.join(names)})\b"
    return re.sub(word, lambda match: phrase(match[1]), text)


def symbol(parameter: str) -> str:
    """A parameter of a law as the field writes it."""
    return SYMBOLS.get(parameter, parameter.replace("_", " "))


def standing(entry: Entry) -> dict[str, float]:
    """Akaike weights, summing to 1, of the laws not ruled out; none where none was judged."""
    laws = entry["laws"]
    criteria = {name: law["aic"] for name, law in laws.items() if law.get("aic") is not None}
    if not criteria:
        return {}
    lowest = min(criteria.values())
    near = [name for name, criterion in criteria.items() if criterion - lowest <= RULED_OUT]
    remaining = [name for name in entry.get("remaining", near) if name in criteria]
    odds = {name: math.exp((lowest - criteria[name]) / 2) for name in remaining}
    total = sum(odds.values())
    return {name: laws[name].get("weight", odds[name] / total) for name in remaining}
