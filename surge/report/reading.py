"""An entry of fit.json as the report reads it, whichever version wrote it."""

import math
from typing import Any

from surge.theory.fit import RULED_OUT


def goal(entry: dict[str, Any]) -> str:
    """What the steps of a fit lead to."""
    target = entry["target_loss"]
    return "the target" if target is None else f"loss {target}"


def representative(entries: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """For each optimizer the fit at its middle target loss."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        groups.setdefault(entry["optimizer"], []).append(entry)
    return {optimizer: group[len(group) // 2] for optimizer, group in groups.items()}


def outside(point: dict[str, Any]) -> bool:
    """Whether the optimum of one batch size lies beyond the rates that were tried."""
    return bool(point.get("bound", point.get("at_edge")))


def standing(entry: dict[str, Any]) -> dict[str, float]:
    """Akaike weights, summing to 1, of the laws not ruled out; none where none was judged."""
    laws = entry["laws"]
    criteria = {name: law["aic"] for name, law in laws.items() if law.get("aic") is not None}
    if not criteria:
        return {}
    lowest = min(criteria.values())
    near = [name for name, criterion in criteria.items() if criterion - lowest <= RULED_OUT]
    remaining = [name for name in entry.get("remaining", near) if name in criteria]
    odds = {name: math.exp((lowest - criteria[name]) / 2) for name in remaining}
    return {name: weight / sum(odds.values()) for name, weight in odds.items()}
