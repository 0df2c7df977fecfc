"""The page of runs by every protocol: what is true, a table of curves, figures."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from protocols import FORMS, PEAK, PLATEAU, RISE, fold, pairs, read, seen

from surge.report import drawing, svg
from surge.report.drawing import COLOR, Panel
from surge.workdir import files

FORETOLD = 1.2  # a factor in the median that is as good as the sweep's own errors


def findings(folder: Path) -> list[str]:
    """What is true of the surge, in a line each, with the numbers of the stored fits."""
    entries = read(folder)
    shared = [entry for entry in entries if entry.get("crossing") == "shared"]
    steps = [entry for entry in entries if "horizon" not in entry]
    if not shared or not steps:
        return ["No protocol was run."]
    peaked = [f"{_named(entry)}, {fold(seen(entry))}" for entry in shared if _peaks(entry)]
    other = [f"{_named(entry)} {_shape(entry)}" for entry in shared if not _peaks(entry)]
    fallen = sum(map(_peaks, steps))
    flat = sum(seen(entry).shape in (PLATEAU, RISE) for entry in steps)
    return [
        "1. **Where**: MNIST-1D, all rates branching from ONE state, judged K steps later. There "
        f"the best rate has a peak: {'; '.join(peaked)} the rate at the largest B. Not seen: "
        f"{'; '.join(other) or 'nowhere'}.",
        "2. **Under which protocol**: judged by the steps from scratch to a loss, "
        f"{fallen} of {len(steps)} curves have a peak, and {flat} rise and level off.",
        f"3. **As the paper has it**: {_literal(entries)}",
        f"4. **κ of one checkpoint** does {'' if _holds(folder) else 'not '}foretell it: "
        f"{_kappa_told(folder)}.",
        "5. **In practice**: over a run raise Adam's rate with B until it levels off, and keep it; "
        "no curve of steps asks for less at a larger batch. A peak is a matter of K: never take "
        "one from a few steps to a whole run.",
    ]


def _peaks(entry: dict[str, Any]) -> bool:
    return seen(entry).shape == PEAK


def _named(entry: dict[str, Any]) -> str:
    return f"{entry['optimizer']}, K = {entry['horizon']}"


def _shape(entry: dict[str, Any]) -> str:
    found = seen(entry)
    return f"({found.shape}, p = {found.p_fall:.2g})"


def _literal(entries: Sequence[dict[str, Any]]) -> str:
    """What the first crossing would conclude, beside the running mean and the shared state."""
    parts = []
    for entry in entries:
        if entry.get("crossing") != "first":
            continue
        key = entry["optimizer"], entry["horizon"]
        beside = [
            f"{FORMS[other['crossing']]} {seen(other).shape}"
            for other in entries
            if (other["optimizer"], other.get("horizon")) == key and other is not entry
        ]
        parts.append(f"{_named(entry)}: {seen(entry).shape} ({', '.join(beside)})")
    return "; ".join(parts) + "." if parts else "not run."


def _holds(folder: Path) -> bool:
    """Whether one reading foretells every curve to a factor of 1.2 in the median."""
    return any(middle <= FORETOLD for _, middle, _, _ in _distances(folder))


def _distances(folder: Path) -> list[tuple[str, float, float, int]]:
    """(reading, median and worst factor between predicted and seen, how many)."""
    by_reading: dict[str, list[float]] = {}
    for entry, reading, (value, *_) in pairs(folder):
        ratio = seen(entry).fall[0]
        if math.isfinite(ratio):
            by_reading.setdefault(reading, []).append(abs(math.log(value / ratio)))
    return [
        (reading, math.exp(np.median(off)), math.exp(max(off)), len(off))
        for reading, off in by_reading.items()
    ]


def _kappa_told(folder: Path) -> str:
    parts = [
        f"the {reading} reading of peak/plateau is off by a factor {middle:.2f} in the median "
        f"(worst {worst:.2f}, n = {n})"
        for reading, middle, worst, n in _distances(folder)
    ]
    return "; ".join(parts) or "not measured"


def lines(folder: Path) -> list[str]:
    """The table of all curves, as Markdown."""
    entries = read(folder)
    if not entries:
        return []
    head = ["optimizer", "judged by", "from loss", "K", "ε_opt(B)", "shape", "p of a fall"]
    out = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for entry in entries:
        found = seen(entry)
        shape = f"*{found.shape}*" + (", fragile" if entry["fragile"] else "")
        if found.shape == PEAK:
            shape += f" at {found.top:,}: {fold(found)} above the last"
        form = FORMS.get(entry.get("crossing", ""), "steps")
        cells = (
            entry["optimizer"],
            form,
            f"{entry['target_loss']:g}",
            str(entry.get("horizon", "")),
            _rates(entry),
            shape,
            f"{found.p_fall:.2g}",
        )
        out.append("| " + " | ".join(cells) + " |")
    return out


def _rates(entry: dict[str, Any]) -> str:
    """ε_opt at each batch size, with its standard error in percent."""
    parts = []
    for point in entry["optimal_lr"]:
        if point["lr"] and point["error"] and not point["bound"]:
            error = 100 * point["error"]
            parts.append(f"{point['batch_size']:,}: {point['lr']:.2g} ±{error:.0f}%")
    return "; ".join(parts)


def predicted_against_seen(axes: Axes, found: Sequence[tuple[Any, str, Any]]) -> None:
    """Peak over plateau: by κ of one checkpoint, and in the sweep; equal on the line."""
    drawing.log_axes(
        axes, "peak/plateau by κ of one checkpoint", "ε_opt at its top / at the last B"
    )
    colors = {"one step": COLOR["oracle"], "long run": COLOR["measured"]}
    marks = {"steps": "o", "shared": "s", "crossed": "^"}
    told = set()
    for entry, reading, (value, low, high) in found:
        ratio, bottom, top = seen(entry).fall
        if not math.isfinite(ratio):
            continue
        label = f"{reading}, {entry['protocol']}"
        axes.errorbar(
            value,
            ratio,
            xerr=[[max(value - low, 0)], [max(high - value, 0)]],
            yerr=[[max(ratio - bottom, 0)], [max(top - ratio, 0)]],
            fmt=marks.get(entry["protocol"], "o"),
            color=colors[reading],
            ms=4,
            lw=0.7,
            label=None if label in told else label,
        )
        told.add(label)
    ends = np.array([0.95, 4.0])
    axes.plot(ends, ends, color=COLOR["ink"], lw=0.9)


def optima(axes: Axes, entries: Sequence[dict[str, Any]]) -> None:
    """ε_opt(B) of several curves of one optimizer, with 95% intervals."""
    drawing.log_axes(axes, "batch size B", "best learning rate")
    for index, entry in enumerate(entries):
        points = [point for point in entry["optimal_lr"] if point["error"] and not point["bound"]]
        rates = np.array([point["lr"] for point in points])
        ends = np.array([[point["low"], point["high"]] for point in points]).T
        form = entry.get("crossing", "steps")
        goal = f"K = {entry['horizon']}" if "horizon" in entry else "steps"
        axes.errorbar(
            [point["batch_size"] for point in points],
            rates,
            yerr=np.abs(ends - rates),
            fmt="o-",
            ms=4,
            lw=1,
            capsize=3,
            color=drawing.ordered(index, len(entries)),
            label=f"{form}, {goal}, loss {entry['target_loss']:g}",
        )


def draw(folder: Path) -> None:
    """Pictures of what is stored: a curve each protocol, and κ against what was seen."""
    panels = {}
    entries = read(folder)
    for optimizer in dict.fromkeys(entry["optimizer"] for entry in entries):
        for protocol in dict.fromkeys(entry["protocol"] for entry in entries):
            own = [
                entry
                for entry in entries
                if (entry["optimizer"], entry["protocol"]) == (optimizer, protocol)
            ]
            if own:
                told = f"{folder.name}, {optimizer}, {protocol}: best learning rate"
                panels[f"{protocol}-{optimizer}"] = Panel(told, partial(optima, entries=own))
    found = pairs(folder)
    if found:
        told = "Peak over plateau: predicted by κ against seen"
        panels["kappa"] = Panel(told, partial(predicted_against_seen, found=found))
    for file, panel in panels.items():
        picture = svg.standalone(svg.element(panel, file))
        files.write_bytes(folder / f"{file}.svg", picture.encode())
