"""What was measured, in a line, and where the numbers come from: versions, machine, config."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from surge.report.findings import Findings
from surge.report.formats import count, listed, number
from surge.report.markup import Fold, Prose, Section, Source
from surge.report.reading import representative
from surge.workdir import sweeps

SMALL = 10_000_000  # parameters of a model, below which nobody trains one for use
NOTHING = ("", "unknown")  # what is not told
MANY = 4  # groups, from which on they are counted and not named


def overview(findings: Findings) -> list[str]:
    """What was measured, in one line, and at which scale."""
    attributes = findings.attributes
    config = json.loads(attributes.get("config", "{}"))
    parts = (_task(config, attributes), _extent(findings, config), _runs(findings))
    said = ". ".join(filter(None, parts))
    lines = [f"{said}."] if said else []
    parameters = int(attributes.get("parameters", 0))
    if 0 < parameters < SMALL:
        lines.append(
            f"The scale is small: a model of {parameters:,} parameters{_budget(config)}. "
            "What holds here need not hold for a larger one."
        )
    return lines


def _task(config: dict[str, Any], attributes: Mapping[str, Any]) -> str:
    if "task" not in config:
        return ""
    name = config["task"].rpartition(":")[2]
    told = [
        f"{key.replace('_', ' ')} {_argument(value)}"
        for key, value in config.get("task_args", {}).items()
        if value not in ("", None)
    ]
    parameters = attributes.get("parameters")
    if parameters:
        told.insert(0, f"{int(parameters):,} parameters")
    return f"{name} ({', '.join(told)})" if told else name


def _argument(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return listed(_argument(item) for item in value)
    return count(value) if isinstance(value, int | float) else str(value)


def _budget(config: dict[str, Any]) -> str:
    """How long its runs may get."""
    if not {"max_steps", "max_examples"} <= config.keys():
        return ""
    steps, examples = count(config["max_steps"]), count(config["max_examples"])
    return f", trained for at most {steps} steps or {examples} examples"


def _extent(findings: Findings, config: dict[str, Any]) -> str:
    groups = representative(findings.entries)
    names = listed(groups) if len(groups) <= MANY else f"{len(groups)} groups"
    sizes = {point["batch_size"] for entry in findings.entries for point in entry["optimal_lr"]}
    if not sizes:
        return names
    seeds = config.get("seeds")
    with_seeds = f" with {seeds} seeds" if seeds else ""
    return f"{names} at batch sizes {count(min(sizes))} to {count(max(sizes))}{with_seeds}"


def _runs(findings: Findings) -> str:
    """How much was run, and on what."""
    if findings.sweep is not None and "examples" in findings.sweep:
        runs = int(np.isfinite(findings.sweep.diverged).sum())
        examples = number(sweeps.examples_trained(findings.sweep))
        device = findings.attributes.get("devices")
        return f"{runs:,} runs, {examples} examples in all{f', on {device}' if device else ''}"
    if findings.entries and "runs" in findings.entries[0]:
        runs = sum(entry["runs"] for entry in findings.entries)
        failed = sum(entry["failed"] for entry in findings.entries)
        return f"{runs:,} runs from a table, {failed:,} of them diverged or fell short"
    return ""


def provenance(findings: Findings) -> Section:
    """Versions, machine, seeds, date and config."""
    attributes = findings.attributes
    versions = json.loads(attributes.get("versions", "{}"))
    config = json.loads(attributes.get("config", "{}"))
    told = {
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "commit": attributes.get("commit", ""),
        "devices": attributes.get("devices", ""),
        "seeds": _seeds(config),
        "written": findings.date,
    }
    blocks: list[Any] = [
        Prose(
            "; ".join(f"{name}: {value}" for name, value in told.items() if value not in NOTHING)
            + "."
        )
    ]
    if "mixed" in attributes:
        text = f"Not all pieces of the sweep were made alike; {attributes['mixed']}"
        blocks.append(Prose(text, "warning"))
    if config:
        blocks.append(Fold("Config", [Source(json.dumps(config, indent=1))]))
    return Section("How this was made", blocks)


def _seeds(config: dict[str, Any]) -> str:
    """Those that all randomness comes from."""
    if "seed" not in config:
        return ""
    runs = config.get("seeds")
    of_runs = f", runs 0 to {runs - 1}" if runs else ""
    return f"{config['seed']}{of_runs}"
