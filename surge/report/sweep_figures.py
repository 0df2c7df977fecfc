"""What a sweep found: each function draws one panel from stored results and computes nothing."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from surge.report import drawing
from surge.report.drawing import COLOR, WIDE, End
from surge.report.formats import count, estimate, number
from surge.report.reading import bound, goal, optima, outside, plain, rate, standing
from surge.theory.rivals import LAWS

FEW = 8  # batch sizes that each have a tick
RATE = "best learning rate"
SIZE = "batch size B"
WORST = 0.75  # quantile of the losses at which the colors of a map end
PAIR = ("ink", "other")  # colors of two results that are compared
APART = (0.96, 1.04)  # of batch sizes
RULED_OUT = "laws ruled out"


def optimal_lr(axes: Axes, entry: dict[str, Any]) -> None:
    """ε_opt(B) with intervals; laws in a band about their mean, those ruled out gray."""
    points = optima(entry)
    drawing.log_axes(axes, SIZE, RATE)
    _swept(axes, points, COLOR["ink"], "from the sweep, with 95% interval")
    if not points:
        return
    sizes = [point["batch_size"] for point in points]
    ends = [point[name] or point["lr"] for point in points for name in ("low", "lr", "high")]
    axes.set_ylim(min(ends) / 1.6, max(ends) * 1.6)
    curve = np.geomspace(min(sizes) / 1.4, max(sizes) * 1.4, drawing.CURVE)
    axes.set_xlim(curve[0], curve[-1])
    drawing.label_ends(axes, _laws(axes, entry, curve))


def _laws(axes: Axes, entry: dict[str, Any], curve: np.ndarray) -> list[End]:
    """Draws every law that was judged; returns the label for the end of each."""
    weights = standing(entry)
    labels = []
    for name, law in entry["laws"].items():
        rates = law_curve(entry, name, curve)
        if law.get("aic") is None or not np.isfinite(rates).any():
            continue
        color = COLOR["law" if name in weights else "rejected"]
        switch = plain(name) if name in weights else RULED_OUT
        drawing.line(axes, curve, rates, color=color, lw=0.9, gid=drawing.TOGGLED + switch)
        labels.append(End(float(rates[-1]), plain(name), color, switch))
    if weights:
        _band(axes, entry, curve, weights)
    if len(labels) > len(weights):
        axes.plot([], [], color=COLOR["rejected"], lw=0.9, label=RULED_OUT)
    return labels


def _band(axes: Axes, entry: dict[str, Any], curve: np.ndarray, weights: dict[str, float]) -> None:
    """What the laws that remain span, and their weighted mean."""
    remaining = np.log([law_curve(entry, name, curve) for name in weights])
    mean = np.exp(np.asarray([*weights.values()]) @ remaining)
    low, high = np.exp([remaining.min(0), remaining.max(0)])
    few = slice(None, None, 4)
    axes.fill_between(curve[few], low[few], high[few], color=COLOR["law"], alpha=0.15, lw=0)
    label = "laws not ruled out, and their weighted mean"
    drawing.line(axes, curve, mean, color=COLOR["law"], lw=2.6, label=label)


def law_curve(entry: dict[str, Any], name: str, sizes: np.ndarray) -> np.ndarray:
    """A fitted law, nan where the fit found none or the registry no longer has it."""
    params = entry["laws"].get(name, {}).get("params")
    if name not in LAWS or not params or None in params.values():
        return np.full(len(sizes), np.nan)
    return np.asarray(LAWS[name].function(sizes, **params), float)


def _swept(
    axes: Axes, points: list[dict[str, Any]], color: str, label: str | None, size: float = 6
) -> None:
    """Points with intervals; an arrow where the optimum lies beyond the rates that were tried."""
    for index, point in enumerate(points):
        lr = point["lr"]
        low = point["low"] or lr
        high = point["high"] or lr
        drawn = axes.errorbar(
            point["batch_size"],
            lr,
            yerr=None if outside(point) else [[max(lr - low, 0)], [max(high - lr, 0)]],
            fmt={1: "^", -1: "v"}.get(bound(point), "o"),
            color=color,
            markerfacecolor="none" if outside(point) else color,
            markersize=size,
            capsize=3,
            zorder=3,
            label=label if index == 0 else None,
        )
        drawing.hover(drawn.lines[0], f"B = {count(point['batch_size'])}: {rate(point)}")


def optimal_lr_by_target(axes: Axes, entries: list[dict[str, Any]]) -> None:
    """ε_opt(B) at each target loss of one optimizer: does the peak move as training goes on?"""
    drawing.log_axes(axes, SIZE, RATE)
    for index, entry in enumerate(entries):
        color = drawing.ordered(index, len(entries))
        points = optima(entry)
        drawing.line(
            axes,
            [point["batch_size"] for point in points],
            [point["lr"] for point in points],
            color=color,
            lw=1,
        )
        _swept(axes, points, color, f"to {goal(entry)}", size=5)


def compared(axes: Axes, entries: Mapping[str, dict[str, Any]]) -> None:
    """ε_opt(B) of two results in one panel, a little apart so that intervals can be seen."""
    drawing.log_axes(axes, SIZE, RATE)
    for (name, entry), look, shift in zip(entries.items(), PAIR, APART, strict=True):
        points = [point | {"batch_size": point["batch_size"] * shift} for point in optima(entry)]
        drawing.line(
            axes,
            [point["batch_size"] for point in points],
            [point["lr"] for point in points],
            color=COLOR[look],
            lw=0.8,
        )
        _swept(axes, points, COLOR[look], name, size=5)


def basins(axes: Axes, entry: dict[str, Any]) -> None:
    """Means over seeds at each rate, and the basin of each batch size, its lowest point ringed."""
    seen = entry["basins"]
    in_steps = entry["judged_by"] == "steps"
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel(f"steps to {goal(entry)}" if in_steps else "loss")
    if in_steps:
        axes.set_yscale("log")
    labelled = {*range(0, len(seen), -(-len(seen) // FEW)), len(seen) - 1}
    optima_of = {point["batch_size"]: point for point in entry["optimal_lr"]}
    everything = [_shown(part["value"], in_steps) for part in seen]
    for index, (part, values) in enumerate(zip(seen, everything, strict=True)):
        color = drawing.ordered(index, len(seen))
        label = f"B = {count(part['batch_size'])}" if index in labelled else None
        rates = part["learning_rate"]
        if np.isfinite(values).any():
            axes.plot(rates, values, "o", ms=3.5, color=color, alpha=0.8, label=label)
        if part["curve"]:
            _basin(axes, part, optima_of[part["batch_size"]], in_steps, color)
    _cut(axes, [values[np.isfinite(values)] for values in everything], in_steps)


def _basin(
    axes: Axes, part: dict[str, Any], point: dict[str, Any], in_steps: bool, color: str
) -> None:
    """One fitted curve, and its lowest point where that is inside."""
    rates = np.array(part["curve"][0])
    values = _shown(part["curve"][1], in_steps)
    axes.plot(rates, values, color=color, lw=1.2)
    if point["lr"] and not outside(point):
        lowest = np.interp(np.log(point["lr"]), np.log(rates), values)
        ring = axes.plot(point["lr"], lowest, "o", ms=9, mfc="none", mec=color, mew=1.5)
        drawing.hover(ring[0], f"B = {count(point['batch_size'])}: {rate(point)}")


def _shown(values: Any, in_steps: bool) -> np.ndarray:
    """What runs were judged by as it is read: steps, not their logarithm."""
    values = np.array(values, float)
    return np.exp(values) if in_steps else values


def _cut(axes: Axes, everything: list[np.ndarray], in_steps: bool) -> None:
    """Without the highest values of each batch size, which would flatten all others."""
    known = [values for values in everything if len(values)]
    if not known:
        return
    low = min(values.min() for values in known)
    top = max(np.quantile(values, WORST) for values in known)
    if low == top:
        return
    if in_steps:
        axes.set_ylim(low * (low / top) ** 0.1, top * (top / low) ** 0.1)
    else:
        axes.set_ylim(low - 0.1 * (top - low), top + 0.2 * (top - low))


def data_against_time(axes: Axes, entries: list[dict[str, Any]]) -> None:
    """Steps S against examples E at the best learning rate of each B, with the fitted hyperbola."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("examples E to the target")
    axes.set_ylabel("steps S to the target")
    for index, entry in enumerate(entries):
        color = drawing.ordered(index, len(entries))
        noise = entry["noise_scale"]
        known = [point for point in entry["optimal_lr"] if point["steps"] and point["examples"]]
        drawing.line(
            axes,
            [point["examples"] for point in known],
            [point["steps"] for point in known],
            "o",
            color=color,
            ms=5,
            label=_target(entry),
        )
        if known and noise["b_noise"] and noise["s_min"] and noise["e_min"]:
            sizes = [point["batch_size"] for point in known]
            curve = np.geomspace(min(sizes) / 4, max(sizes) * 4, drawing.CURVE)
            examples = noise["e_min"] * (1 + curve / noise["b_noise"])
            steps = noise["s_min"] * (1 + noise["b_noise"] / curve)
            axes.plot(examples, steps, color=color, lw=1)


def _target(entry: dict[str, Any]) -> str:
    """The target and its noise scale, as short as a legend needs it."""
    noise = entry["noise_scale"]
    if not noise["b_noise"]:
        return goal(entry)
    whole = estimate([noise["b_noise"], noise["low"], noise["high"]])
    told = f"{goal(entry)}: B_noise {whole}"
    return told if len(told) < 2 * WIDE else f"{goal(entry)}: B_noise {number(noise['b_noise'])}"
