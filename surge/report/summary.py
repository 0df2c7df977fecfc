"""The finding in words: sentences computed from fit.json, for the terminal and for the page."""

import math
from pathlib import Path
from typing import Any

from surge.workdir import files


def number(value: float | None, digits: int = 3) -> str:
    """A number for people; a dash where it is undefined."""
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}g}"


def interval(low: float | None, high: float | None) -> str:
    """An interval for people, open where one bound is missing; a dash where both are: it is
    undefined."""
    if all(bound is None or math.isnan(bound) for bound in (low, high)):
        return "–"
    return (
        f"[{'-∞' if low is None else number(low, 2)}, {'∞' if high is None else number(high, 2)}]"
    )


def goal(entry: dict[str, Any]) -> str:
    """What the steps of a fit lead to."""
    return "the target" if entry["target_loss"] is None else f"loss {entry['target_loss']}"


def verdict(entry: dict[str, Any]) -> str:
    """One sentence on one fit: does the optimal learning rate rise and fall, and which law wins?"""
    peak = entry["b_peak"]
    law = entry["best_law"]
    winner = (
        f"best law: {law.replace('_', ' ')}" if law else f"no law wins: {entry['best_law_why']}"
    )
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
    """A closing summary: a table of B and ε_opt with interval, a sentence for each optimizer, where
    the report is."""
    chosen = representative(files.read_fits(workdir))
    if not chosen:
        return []
    optima = {
        (optimizer, point["batch_size"]): _cell(point)
        for optimizer, entry in chosen.items()
        for point in entry["optimal_lr"]
    }
    sizes = sorted({size for _, size in optima})
    table = [
        ["B", *chosen],
        *([str(size), *(optima.get((each, size), "") for each in chosen)] for size in sizes),
    ]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    out = ["optimal learning rate by batch size (* on the grid's edge):"]
    for row in table:
        out.append(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )
    for optimizer, entry in chosen.items():
        target = f" to {goal(entry)}" if entry["judged_by"] == "steps" else ""
        out.append(f"{optimizer}{target}: {verdict(entry)}")
    if (workdir / "report.html").exists():
        out.append(f"report: {workdir / 'report.html'}")
    return out


def _cell(point: dict[str, Any]) -> str:
    if point["lr"] is None:
        return "–"
    edge = "*" if point["at_edge"] else ""
    return f"{number(point['lr'])}{edge} {interval(point['low'], point['high'])}"
