"""The page of runs by every protocol: what is true, a table of curves, figures."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import protocols
from matplotlib.axes import Axes
from protocols import FORMS, OPEN, PEAK, PLATEAU, RISE, fold, pairs, read, seen

from surge.report import drawing, svg
from surge.report.drawing import COLOR, Panel
from surge.workdir import files

SHOWN = {10, 100}  # K of the curves in the figure
VISIBLE = 1.05  # peak over plateau that a sweep could see
SURE = 0.9  # of the settled curves
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
        f"the best rate has a peak: {'; '.join(peaked)} the rate at the largest B. Not settled: "
        f"{'; '.join(other) or 'none'}.",
        "2. **Under which protocol**: judged by the steps from scratch to a loss, "
        f"{fallen} of {len(steps)} curves have a peak, and {flat} rise and level off.",
        f"3. **As the paper has it** (train to a loss, go on for K steps): {_literal(entries)}",
        f"4. **κ of one checkpoint** does {'' if _holds(folder) else 'not '}foretell how far the "
        f"rate falls: {_kappa_told(folder)}.",
        "5. **In practice**: Adam's best rate over a run rises with B and levels off; keep it "
        f"there. {_in_practice(steps)} A peak is a matter of K: never take one from a few steps "
        "to a whole run.",
    ]


def _in_practice(steps: Sequence[dict[str, Any]]) -> str:
    """How many curves of whole runs ask for less at a larger batch."""
    asking = [entry["optimizer"] for entry in steps if _peaks(entry)]
    if not asking:
        return "No curve of whole runs asks for less at a larger batch."
    return f"Less at a larger batch is asked for by {len(asking)} curves of whole runs: {asking}."


def _peaks(entry: dict[str, Any]) -> bool:
    return seen(entry).shape == PEAK


def _named(entry: dict[str, Any]) -> str:
    return f"{entry['optimizer']}, K = {entry['horizon']}"


def _shape(entry: dict[str, Any]) -> str:
    found = seen(entry)
    return f"({found.shape}, p = {found.p_fall:.2g})"


def _literal(entries: Sequence[dict[str, Any]]) -> str:
    """What the first crossing concludes, beside the other crossings and the shared state."""
    parts = []
    for entry in entries:
        if entry.get("crossing") != "first":
            continue
        key = entry["optimizer"], entry["horizon"]
        beside = [
            f"{other['crossing']} {_short(other)}"
            for other in entries
            if (other["optimizer"], other.get("horizon")) == key and other is not entry
        ]
        parts.append(f"{_named(entry)} {_short(entry)} ({', '.join(beside)})")
    return "; ".join(parts) + "." if parts else "not run."


def _short(entry: dict[str, Any]) -> str:
    """The shape, and how far a peak falls."""
    found = seen(entry)
    return f"{found.shape} {found.fall[0]:.2f}" if _peaks(entry) else found.shape


class Foretold(NamedTuple):
    """How one reading of κ did: peak or none rightly, of how many; how far off where one is."""

    reading: str
    right: int
    total: int
    median: float
    worst: float


def _foretold(folder: Path) -> list[Foretold]:
    """Over the curves whose shape is settled; a peak of less than VISIBLE is none."""
    judged: dict[str, list[tuple[bool, bool, float]]] = {}
    for entry, reading, (value, low, _) in _settled(folder):
        off = abs(math.log(value / seen(entry).fall[0]))
        judged.setdefault(reading, []).append((low > VISIBLE, _peaks(entry), off))
    found = []
    for reading, rows in judged.items():
        right = sum(said == peak for said, peak, _ in rows)
        off = [off for _, peak, off in rows if peak] or [0.0]
        found.append(
            Foretold(reading, right, len(rows), math.exp(np.median(off)), math.exp(max(off)))
        )
    return found


def _settled(folder: Path) -> list[tuple[dict[str, Any], str, tuple[float, float, float]]]:
    """Curves of a known shape with what κ says; of those from scratch the literal form alone."""
    return [
        (entry, reading, bounds)
        for entry, reading, bounds in pairs(folder)
        if seen(entry).shape != OPEN and entry.get("crossing") not in ("half", "mean")
    ]


def _holds(folder: Path) -> bool:
    """Whether a reading tells peaks from none nearly always, and how high they are."""
    return any(
        each.right >= SURE * each.total and each.median <= FORETOLD for each in _foretold(folder)
    )


def _kappa_told(folder: Path) -> str:
    parts = [
        f"read as {each.reading}, it is right on peak or none in {each.right} of {each.total} "
        f"settled curves, and off by a factor {each.median:.2f} (worst {each.worst:.2f}) in "
        "peak/plateau where a peak was seen"
        for each in _foretold(folder)
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
    for point in protocols.optima(entry):
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
        points = protocols.optima(entry)
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
            label=f"{entry['optimizer']}, {form}, {goal}",
        )


def draw(folder: Path) -> None:
    """Pictures of what is stored: ε_opt(B) by protocol, and κ against what was seen."""
    panels = {}
    entries = read(folder)
    own = [entry for entry in entries if entry.get("crossing") == "shared"]
    if own:
        chosen = [entry for entry in own if entry["horizon"] in SHOWN]
        told = f"{folder.name}: best learning rate, all from one state"
        panels["shared"] = Panel(told, partial(optima, entries=chosen))
    found = _settled(folder)
    if found:
        told = "Peak over plateau: predicted by κ against seen"
        panels["kappa"] = Panel(told, partial(predicted_against_seen, found=found))
    for file, panel in panels.items():
        picture = svg.standalone(svg.element(panel, file))
        files.write_bytes(folder / f"{file}.svg", picture.encode())
