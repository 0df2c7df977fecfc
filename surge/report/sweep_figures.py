"""What a sweep found: each function draws one panel from stored results and computes nothing."""

from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import LogNorm, Normalize

from surge.report import drawing
from surge.report.drawing import COLOR, WIDE
from surge.report.formats import count, estimate, number
from surge.report.reading import bound, goal, optima, outside, plain, rate, standing
from surge.theory.rivals import LAWS

CURVE = 60  # points of a curve
FEW = 8  # batch sizes that each have a tick
RATE = "best learning rate"
SIZE = "batch size B"
WORST = 0.75  # quantile of the losses at which the colors of a map end


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
    curve = np.geomspace(min(sizes) / 1.4, max(sizes) * 1.4, CURVE)
    axes.set_xlim(curve[0], curve[-1])
    drawing.label_ends(axes, _laws(axes, entry, curve))


def _laws(axes: Axes, entry: dict[str, Any], curve: np.ndarray) -> list[tuple[float, str, str]]:
    """Draws every law that was judged; returns the label for the end of each."""
    weights = standing(entry)
    labels = []
    for name, law in entry["laws"].items():
        rates = law_curve(entry, name, curve)
        if law.get("aic") is None or not np.isfinite(rates).any():
            continue
        color = COLOR["law" if name in weights else "rejected"]
        drawing.line(axes, curve, rates, color=color, lw=0.9)
        labels.append((float(rates[-1]), plain(name), color))
    if weights:
        remaining = np.log([law_curve(entry, name, curve) for name in weights])
        mean = np.exp(np.asarray([*weights.values()]) @ remaining)
        low, high = np.exp([remaining.min(0), remaining.max(0)])
        axes.fill_between(curve, low, high, color=COLOR["law"], alpha=0.15, lw=0)
        label = "laws not ruled out, and their weighted mean"
        drawing.line(axes, curve, mean, color=COLOR["law"], lw=2.6, label=label)
    if len(labels) > len(weights):
        axes.plot([], [], color=COLOR["rejected"], lw=0.9, label="laws ruled out")
    return labels


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


def best_predictor(entry: dict[str, Any]) -> str | None:
    """The law that predicts batch sizes left out of its fit best: what is drawn where the data name
    none."""
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
    _absent(axes, sizes, rates, np.argwhere(np.isnan(loss.values) & ~diverged), "not run", "")
    _absent(axes, sizes, rates, np.argwhere(diverged), "diverged", "/////")
    values = np.ma.masked_invalid(loss.values)
    # Losses far above the rest, of runs about to diverge, would leave one color to all others.
    low = float(values.min())
    top = float(np.quantile(values.compressed(), WORST))
    norm = LogNorm(low, top) if 0 < 10 * low < top else Normalize(low, top)
    mesh = axes.pcolormesh(
        sizes, rates, values, cmap="viridis_r", norm=norm, edgecolor="face", lw=0.4
    )
    extend = "max" if values.max() > top else "neither"
    bar = axes.figure.colorbar(mesh, ax=axes, label="training loss", extend=extend)
    bar.outline.set_visible(False)
    _over_the_map(axes, entry, sizes)
    axes.set_xlim(sizes[0], sizes[-1])
    axes.set_ylim(rates[0], rates[-1])
    if loss.sizes["batch_size"] <= FEW:
        axes.set_xticks(loss.batch_size.values)


def _over_the_map(axes: Axes, entry: dict[str, Any], sizes: np.ndarray) -> None:
    law = entry["best_law"] or best_predictor(entry)
    curve = np.geomspace(sizes[0], sizes[-1], CURVE)
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


def _absent(
    axes: Axes,
    sizes: np.ndarray,  # [batch_size + 1] borders
    rates: np.ndarray,  # [learning_rate + 1] borders
    where: np.ndarray,  # [cell, 2] row and column
    label: str,
    hatch: str,
) -> None:
    """Cells without a loss."""
    if not len(where):
        return
    face = "none" if hatch else COLOR["absent"]
    look = {"facecolor": face, "edgecolor": COLOR["rejected"], "hatch": hatch}
    cells = [_corners(sizes[column : column + 2], rates[row : row + 2]) for row, column in where]
    axes.add_collection(PolyCollection(cells, linewidth=0, **look))
    axes.fill_between([], [], linewidth=0.5, label=label, **look)


def _corners(size: np.ndarray, rate: np.ndarray) -> list[tuple[float, float]]:
    return [(size[0], rate[0]), (size[1], rate[0]), (size[1], rate[1]), (size[0], rate[1])]


def edges(centres: np.ndarray) -> np.ndarray:
    """Borders of cells on a log axis, halfway between their centres; one cell alone is a factor of
    two wide."""
    logs = np.log(centres)
    gaps = np.diff(logs) if len(logs) > 1 else np.array([np.log(2)])
    before = np.append(gaps[:1], gaps)[: len(logs)]
    return np.exp(np.append(logs - before / 2, logs[-1] + gaps[-1] / 2))


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
            curve = np.geomspace(min(sizes) / 4, max(sizes) * 4, CURVE)
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
