"""The map of the loss over batch size and learning rate: what became of every cell."""

from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.patches import Rectangle

from surge.report import drawing
from surge.report.drawing import COLOR
from surge.report.formats import count, number
from surge.report.reading import optima, outside, plain
from surge.report.sweep_figures import FEW, SIZE, WORST, law_curve

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


def loss_map(axes: Axes, cells: LossMap, entry: dict[str, Any]) -> None:
    """Loss of every cell, gray where nothing was run, hatched where every run diverged."""
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


def shown_law(entry: dict[str, Any]) -> str | None:
    """The law that is named, else the one that predicts batch sizes left out of its fit best."""
    if entry["best_law"]:
        return entry["best_law"]
    errors = {name: law.get("held_out_rmse_log") for name, law in entry["laws"].items()}
    known = {name: error for name, error in errors.items() if error is not None}
    return min(known, key=known.__getitem__, default=None)


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
    """Borders of cells on a log axis, halfway between centres; one alone is a factor 2 wide."""
    logs = np.log(centres)
    gaps = np.diff(logs) if len(logs) > 1 else np.array([np.log(2)])
    before = np.append(gaps[:1], gaps)[: len(logs)]
    return np.exp(np.append(logs - before / 2, logs[-1] + gaps[-1] / 2))
