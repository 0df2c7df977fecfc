"""The first part of a page: what was measured, what came out of it; and the last: how."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from surge.report import sweep_figures, verdicts
from surge.report.drawing import Panel
from surge.report.findings import Findings, Move
from surge.report.formats import DASH, count, estimate, listed, number
from surge.report.markup import Drawing, Fold, Prose, Section, Source, Table
from surge.report.reading import judged, optima, plain, rate, representative, standing
from surge.workdir import sweeps

RULES = {"sqrt": "by √B", "linear": "linear", "constant": "unchanged"}
FEW = 4  # optimizers or groups that the answer shows at once; the others are folded


def answer(findings: Findings) -> Section:
    """What was measured, and what came out: a sentence, a table and a panel for each optimizer."""
    chosen = [*representative(findings.entries).items()]
    blocks: list[Any] = [Prose(line, "note") for line in _overview(findings)]
    for start in range(0, len(chosen), FEW):
        part = _answers(dict(chosen[start : start + FEW]), findings.measured)
        title = f"{listed(name for name, _ in chosen[start : start + FEW])}"
        blocks += [Fold(title, part)] if start else part
    if findings.moves:
        blocks.append(_moves_table(findings.moves))
    return Section("What was found", blocks)


def _answers(chosen: dict[str, dict[str, Any]], measured: xr.Dataset | None) -> list[Any]:
    blocks: list[Any] = []
    for optimizer, entry in chosen.items():
        said = (verdicts.answer(entry), verdicts.expectation(measured, optimizer))
        blocks.append(Prose(f"{optimizer}: {' '.join(filter(None, said))}", "answer"))
    blocks.append(rates_table(chosen))
    panels = [
        Panel(
            f"{optimizer}, {judged(entry)}",
            partial(sweep_figures.optimal_lr, entry=entry),
            f"Best learning rate of {optimizer} against batch size: {verdicts.answer(entry)}",
        )
        for optimizer, entry in chosen.items()
        if optima(entry)
    ]
    if panels:
        name = "best-rate-" + "-".join(chosen)
        blocks.append(Drawing(name, _caption(chosen), panels))
    return blocks


def _caption(chosen: dict[str, dict[str, Any]]) -> str:
    """What the laws of this figure are."""
    told = []
    for optimizer, entry in chosen.items():
        told.append(f"{optimizer}: {_remaining(entry)}")
    return (
        "The best rate of each batch size with its 95% interval, and the laws fitted to them. "
        "The band spans the laws that the data do not rule out, the heavy line is their mean by "
        f"Akaike weights. {'; '.join(told)}."
    )


def _moves_table(moves: Sequence[Move]) -> Table:
    rules = [*dict.fromkeys(rule for move in moves for rule in move.rules)]
    rows = [
        (
            move.optimizer,
            f"{count(move.from_batch_size)} → {count(move.to_batch_size)}",
            number(move.from_lr),
            estimate(move.lr, move.why or DASH),
            *(number(move.rules.get(rule)) for rule in rules),
        )
        for move in moves
    ]
    return Table(
        "What becomes of the rate with the batch size, by all that is known; and by rules of thumb",
        (
            "optimizer",
            "batch size",
            "from rate",
            "to rate, 95% interval",
            *(RULES.get(rule, rule) for rule in rules),
        ),
        rows,
    )


def _remaining(entry: dict[str, Any]) -> str:
    names = [plain(name) for name in standing(entry)]
    if not names:
        return "no law could be judged"
    if len(names) == len(entry["laws"]):
        return "no law is ruled out"
    return f"{listed(names)} {'remain' if len(names) > 1 else 'remains'}"


def rates_table(chosen: dict[str, dict[str, Any]]) -> Table:
    """ε_opt by batch size and optimizer."""
    rates = {
        (optimizer, point["batch_size"]): rate(point)
        for optimizer, entry in chosen.items()
        for point in entry["optimal_lr"]
    }
    sizes = sorted({size for _, size in rates})
    goals = {judged(entry) for entry in chosen.values()}
    shared = f", judged by {goals.pop()}" if len(goals) == 1 else ""
    return Table(
        f"Best learning rate with 95% interval{shared}",
        ("batch size", *chosen),
        [(count(size), *(rates.get((name, size), "") for name in chosen)) for size in sizes],
    )


def _overview(findings: Findings) -> list[str]:
    """What was measured, in one line."""
    attributes = findings.attributes
    config = json.loads(attributes.get("config", "{}"))
    parts = list(filter(None, (_task(config, attributes), _extent(findings, config))))
    if findings.sweep is not None and "examples" in findings.sweep:
        runs = int(np.isfinite(findings.sweep.diverged).sum())
        examples = number(sweeps.examples_trained(findings.sweep))
        device = attributes.get("devices")
        parts.append(f"{runs:,} runs, {examples} examples" + (f" on {device}" if device else ""))
    elif findings.entries and "runs" in findings.entries[0]:
        runs = sum(entry["runs"] for entry in findings.entries)
        failed = sum(entry["failed"] for entry in findings.entries)
        parts.append(f"{runs:,} runs from a table, {failed:,} of them diverged or fell short")
    return ["; ".join(parts) + "."] if parts else []


def _task(config: dict[str, Any], attributes: Mapping[str, Any]) -> str:
    if "task" not in config:
        return ""
    name = config["task"].rpartition(":")[2]
    arguments = [
        f"{key.replace('_', ' ')} {_argument(value)}"
        for key, value in config.get("task_args", {}).items()
    ]
    told = f"{name} ({', '.join(arguments)})" if arguments else name
    parameters = attributes.get("parameters")
    return f"{told}, {int(parameters):,} parameters" if parameters else told


def _argument(value: Any) -> str:
    if isinstance(value, list):
        return listed(_argument(item) for item in value)
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return count(value) if plain else str(value)


def _extent(findings: Findings, config: dict[str, Any]) -> str:
    groups = representative(findings.entries)
    names = listed(groups) if len(groups) <= FEW else f"{len(groups)} groups"
    sizes = {point["batch_size"] for entry in findings.entries for point in entry["optimal_lr"]}
    if not sizes:
        return names
    span = f"batch sizes {count(min(sizes))} to {count(max(sizes))}"
    seeds = config.get("seeds")
    return f"{names}, {span}" + (f", {seeds} seeds" if seeds else "")


def provenance(findings: Findings) -> Section:
    """Versions, machine and config."""
    attributes = findings.attributes
    versions = json.loads(attributes.get("versions", "{}"))
    made = [", ".join(f"{name} {version}" for name, version in versions.items())]
    made += [str(attributes[name]) for name in ("devices", "commit", "date") if name in attributes]
    blocks: list[Any] = [Prose("; ".join(filter(None, made)))]
    if "mixed" in attributes:
        text = f"Not all pieces of the sweep were made alike; {attributes['mixed']}"
        blocks.append(Prose(text))
    if "config" in attributes:
        config = json.dumps(json.loads(attributes["config"]), indent=1)
        blocks.append(Fold("Config", [Source(config)]))
    return Section("How this was made", blocks)
