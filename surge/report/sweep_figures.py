"""What a sweep found: each function draws one panel from stored results and computes nothing."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.patches import Rectangle

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
NOT_RUN = "not run"
DIVERGED = "diverged"
BLANK: dict[str, Any] = {"linewidth": 0, "edgecolor": COLOR["rejected"]}
LOOKS = {
    NOT_RUN: BLANK | {"facecolor": COLOR["absent"]},
    DIVERGED: BLANK | {"facecolor": "none", "hatch": "/////"},
}


class LossMap(NamedTuple):
    """What became of every cell of one optimizer's grid.

    Attributes:
      loss: mean over seeds [batch_size, learning_rate], nan where there is none.
      diverged: whether every run of a cell did, of the same shape.
    """

    loss: xr.DataArray
    diverged: xr.DataArray


def optimal_lr(axes: Axes, entry: dict[str, Any]) -> None:
    """ε_opt(B) with its intervals; the laws that are not ruled out as a band about their mean, the
    others gray; each is named where it ends."""
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
    """A fitted law of the registry, nan where the fit found none or the registry no longer has
    it."""
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


def shown_law(entry: dict[str, Any]) -> str | None:
    """The law over a map: the one that is named, or where none is the one that predicts batch sizes
    left out of its fit best."""
    if entry["best_law"]:
        return entry["best_law"]
    errors = {name: law.get("held_out_rmse_log") for name, law in entry["laws"].items()}
    known = {name: error for name, error in errors.items() if error is not None}
    return min(known, key=known.__getitem__, default=None)


def loss_map(axes: Axes, cells: LossMap, entry: dict[str, Any]) -> None:
    """Loss of every cell with the optimum ringed, and the best law; gray where nothing was run,
    hatched where every run diverged."""
    loss = cells.loss.transpose("learning_rate", "batch_size")
    diverged = cells.diverged.transpose("learning_rate", "batch_size").values
    sizes = edges(loss.batch_size.values)
    rates = edges(loss.learning_rate.values)
    drawing.log_axes(axes, SIZE, "learning rate")
    axes.grid(False)
    colors = _colors(loss.values)
    for row, column in np.ndindex(loss.shape):
        value = loss[row, column]
        fate = DIVERGED if diverged[row, column] else NOT_RUN
        cell = _cell(sizes[column : column + 2], rates[row : row + 2])
        cell.set(**_look(float(value), fate, colors))
        drawing.hover(cell, _told(value, fate))
        axes.add_patch(cell)
    missing = np.isnan(loss.values)
    for fate, there in ((NOT_RUN, missing & ~diverged), (DIVERGED, diverged)):
        if there.any():
            axes.fill_between([], [], label=fate, **LOOKS[fate] | {"linewidth": 0.5})
    extend = "max" if np.nanmax(loss) > colors.norm.vmax else "neither"
    bar = axes.figure.colorbar(colors, ax=axes, label="training loss", extend=extend)
    bar.outline.set_visible(False)
    _over_the_map(axes, entry, sizes)
    axes.set_xlim(sizes[0], sizes[-1])
    axes.set_ylim(rates[0], rates[-1])
    if loss.sizes["batch_size"] <= FEW:
        axes.set_xticks(loss.batch_size.values)


def _colors(loss: np.ndarray) -> ScalarMappable:
    """Colors of losses; those far above the rest, of runs about to diverge, share the last one."""
    known = loss[np.isfinite(loss)]
    low = float(known.min())
    top = float(np.quantile(known, WORST))
    norm = LogNorm(low, top) if 0 < 10 * low < top else Normalize(low, top)
    return ScalarMappable(norm, "viridis_r")


def _look(loss: float, fate: str, colors: ScalarMappable) -> dict[str, Any]:
    if not np.isfinite(loss):
        return LOOKS[fate]
    color = colors.to_rgba(np.array(loss))
    return {"facecolor": color, "edgecolor": color, "linewidth": 0.4}


def _told(cell: xr.DataArray, fate: str) -> str:
    """What one cell says where the pointer rests on it."""
    value = float(cell)
    said = f"loss {number(value)}" if np.isfinite(value) else fate
    return f"B = {count(cell.batch_size)}, rate {number(float(cell.learning_rate))}: {said}"


def _cell(size: np.ndarray, rate: np.ndarray) -> Rectangle:
    sides = (size[1] - size[0], rate[1] - rate[0])
    return Rectangle((size[0], rate[0]), *sides, clip_on=False)


def _over_the_map(axes: Axes, entry: dict[str, Any], sizes: np.ndarray) -> None:
    law = shown_law(entry)
    curve = np.geomspace(sizes[0], sizes[-1], drawing.CURVE)
    if law:
        style = {"color": "white", "lw": 1.5, "label": f"fitted: {plain(law)}"}
        drawing.line(
            axes, curve, law_curve(entry, law, curve), "--", **style, **drawing.halo(3, "black")
        )
    points = [point for point in optima(entry) if not outside(point)]
    drawing.line(
        axes,
        [point["batch_size"] for point in points],
        [point["lr"] for point in points],
        "o",
        mfc="none",
        mec="white",
        mew=1.8,
        ms=10,
        label="best rate",
        **drawing.halo(3.5, "black"),
    )


def edges(centres: np.ndarray) -> np.ndarray:
    """Borders of cells on a log axis, halfway between their centres; one cell alone is a factor of
    two wide."""
    logs = np.log(centres)
    gaps = np.diff(logs) if len(logs) > 1 else np.array([np.log(2)])
    before = np.append(gaps[:1], gaps)[: len(logs)]
    return np.exp(np.append(logs - before / 2, logs[-1] + gaps[-1] / 2))


def basins(axes: Axes, entry: dict[str, Any]) -> None:
    """What was seen at each rate, mean over seeds, with the basin fitted to each batch size; its
    lowest point is marked."""
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
    """Without the highest values of each batch size, of runs about to diverge, which would flatten
    all others."""
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
