"""The finding in words: sentences computed from fit.json, for the terminal and for the page."""

import math
from pathlib import Path
from typing import Any

from surge import results


def number(value: float | None, digits: int = 3) -> str:
    """A number for people; a dash where it is undefined."""
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}g}"


def interval(low: float | None, high: float | None) -> str:
    """An interval for people, open where one bound is missing; a dash where both are: it is undefined."""
    if all(bound is None or math.isnan(bound) for bound in (low, high)):
        return "–"
    return f"[{'-∞' if low is None else number(low, 2)}, {'∞' if high is None else number(high, 2)}]"


def goal(entry: dict[str, Any]) -> str:
    """What the steps of a fit lead to."""
    return "the target" if entry["target_loss"] is None else f"loss {entry['target_loss']}"


def verdict(entry: dict[str, Any]) -> str:
    """One sentence on one fit: does the optimal learning rate rise and fall, and which law wins?"""
    peak = entry["b_peak"]
    law = entry["best_law"]
    winner = f"best law: {law.replace('_', ' ')}" if law else f"no law wins: {entry['best_law_why']}"
    if peak["value"] is None:
        known = peak["low"] is not None or peak["high"] is not None
        return f"{'no peak' if known else 'peak unknown'} ({peak['why']}); {winner}"
    why = f" ({peak['why']})" if peak.get("why") else ""
    return f"B_peak {number(peak['value'])} {interval(peak['low'], peak['high'])}{why}; {winner}"


def representative(entries: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """For each optimizer the fit at its middle target loss."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        groups.setdefault(entry["optimizer"], []).append(entry)
    return {optimizer: group[len(group) // 2] for optimizer, group in groups.items()}


def lines(workdir: Path) -> list[str]:
    """A closing summary of about ten lines: B, ε_opt with interval, best law, B_peak, where the report is."""
    if not (workdir / "fit.json").exists():
        return []
    entries = results.read_json(workdir / "fit.json")["fits"]
    out = []
    for optimizer, entry in representative(entries).items():
        target = f" to {goal(entry)}" if entry["judged_by"] == "steps" else ""
        optima = [
            f"{point['batch_size']}: {number(point['lr'])} {interval(point['low'], point['high'])}"
            + ("*" if point["at_edge"] else "")
            for point in entry["optimal_lr"]
        ]
        out += [f"{optimizer}{target}, optimal learning rate by batch size (* on the grid's edge):"]
        out += ["  " + "  ".join(optima), "  " + verdict(entry)]
    if (workdir / "report.html").exists():
        out.append(f"report: {workdir / 'report.html'}")
    return out
