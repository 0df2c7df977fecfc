"""Figures of stored results: each function draws one picture on the axes it is given and computes
nothing."""

from typing import Any

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.patheffects import withStroke

from surge.report.summary import goal
from surge.theory.derivations import homogeneous
from surge.theory.rivals import LAWS, saturating_surge, surge

LAW_COLORS = {
    "constant": "#7f7f7f",
    "sqrt": "#56b4e9",
    "linear": "#e69f00",
    "power": "#0072b2",
    "mccandlish": "#009e73",
    "surge": "#d55e00",
    "saturating_surge": "#cc79a7",
}
LEGIBLE = 12  # entries of a legend
ESTIMATES = {  # name in measure.nc -> label, color
    "independent": ("independent coordinates (the paper's formula)", "#d55e00"),
    "measured": ("measured directions, a/q", "#0072b2"),
    "oracle": ("true one-step optimum", "#222222"),
}
COEFFICIENTS = ("mu_l1", "trace", "off_diagonal", "snr", "b_noise", "max_lr")  # of the closed forms
ENDLESS = 10  # times the value: where an interval without an upper end is cut


def _log_axes(axes: Axes, x: str, y: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25)


def _against_loss(axes: Axes, y: str) -> None:
    axes.set_yscale("log")
    axes.set_xlabel("training loss (training runs to the right)")
    axes.set_ylabel(y)
    axes.grid(alpha=0.25)
    axes.invert_xaxis()


def _legend(axes: Axes) -> None:
    """Below the axes, where it hides no data; none where nothing has a label."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        columns = 2 if max(map(len, labels)) < 25 else 1
        axes.legend(
            handles,
            labels,
            fontsize=8,
            ncols=columns,
            frameon=False,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.14),
        )


def _line(axes: Axes, x: Any, y: Any, *style: Any, **options: Any) -> None:
    """A line where it is positive and finite; nothing, in the legend neither, where it is so
    nowhere."""
    y = np.asarray(y, float)
    y = np.where(np.isfinite(y) & (y > 0), y, np.nan)
    if np.isfinite(y).any():
        axes.plot(x, y, *style, **options)


def _bounds(estimate: xr.DataArray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Value, low and high to draw."""
    value, low, high = (estimate.sel(bound=bound).values for bound in ("value", "low", "high"))
    return value, low, np.where(np.isposinf(high), ENDLESS * value, high)


def _band(axes: Axes, x: Any, estimate: xr.DataArray, color: str, label: str, **style: Any) -> None:
    value, low, high = _bounds(estimate)
    _line(axes, x, value, color=color, label=label, **(style or {"marker": "o", "ms": 4}))
    axes.fill_between(x, low, high, color=color, alpha=0.15, lw=0)


def _optima(entry: dict[str, Any]) -> list[dict[str, Any]]:
    return [optimum for optimum in entry["optimal_lr"] if optimum["lr"]]


def _law(entry: dict[str, Any], name: str, sizes: np.ndarray) -> np.ndarray:
    """A fitted law, nan where the fit found none."""
    params = entry["laws"].get(name, {}).get("params")
    if not params or None in params.values():
        return np.full(len(sizes), np.nan)
    return np.asarray(LAWS[name].function(sizes, **params))


def _error_bars(axes: Axes, optima: list[dict[str, Any]], color: str, label: str | None) -> None:
    """Points with intervals; hollow where the optimum sits on the grid's edge."""
    for index, point in enumerate(optima):
        low, high = point["low"] or point["lr"], point["high"] or point["lr"]
        axes.errorbar(
            point["batch_size"],
            point["lr"],
            yerr=[[max(point["lr"] - low, 0)], [max(high - point["lr"], 0)]],
            fmt="o",
            color=color,
            markerfacecolor="white" if point["at_edge"] else color,
            capsize=3,
            zorder=3,
            label=label if index == 0 else None,
        )


def optimal_lr(axes: Axes, entry: dict[str, Any]) -> None:
    """ε_opt(B) of one fit with its intervals, and every law fitted to it; the best law is drawn
    heavy."""
    optima = _optima(entry)
    _log_axes(axes, "batch size B", "optimal learning rate")
    _error_bars(axes, optima, "#222222", "swept optimum")
    if optima:
        sizes, rates = ([point[name] for point in optima] for name in ("batch_size", "lr"))
        curve = np.geomspace(min(sizes) / 2, max(sizes) * 2, 200)
        for name, color in LAW_COLORS.items():
            best = name == entry["best_law"]
            label = name.replace("_", " ") + (" (best)" if best else "")
            _line(
                axes, curve, _law(entry, name, curve), color=color, lw=3 if best else 1, label=label
            )
        axes.set_ylim(min(rates) / 4, max(rates) * 4)
    _legend(axes)


def optimal_lr_by_target(axes: Axes, entries: list[dict[str, Any]]) -> None:
    """ε_opt(B) at each target loss of one optimizer: does the peak move as training goes on?"""
    _log_axes(axes, "batch size B", "optimal learning rate")
    for index, entry in enumerate(entries):
        color = f"C{index}"
        optima = _optima(entry)
        axes.plot(
            [point["batch_size"] for point in optima],
            [point["lr"] for point in optima],
            color=color,
        )
        _error_bars(axes, optima, color, f"to {goal(entry)}")
    _legend(axes)


def _best_predictor(entry: dict[str, Any]) -> str:
    """The law that predicts batch sizes left out of its fit best: what is drawn where the data name
    none."""
    errors = {name: law["held_out_rmse_log"] for name, law in entry["laws"].items()}
    known = {name: error for name, error in errors.items() if error is not None}
    return min(known, key=known.__getitem__, default="surge")


def heat_map(
    axes: Axes, loss: xr.DataArray, entry: dict[str, Any], checkpoint: xr.Dataset | None = None
) -> None:
    """Loss [batch_size, learning_rate] with the optimum ringed, the best law, and what a checkpoint
    predicts.

    Gray where every run diverged or none was made. `checkpoint` is one row and one optimizer of
    measure.nc.
    """
    sizes, rates = _edges(loss.batch_size.values), _edges(loss.learning_rate.values)
    values = np.ma.masked_invalid(loss.transpose("learning_rate", "batch_size").values)
    # Losses far above the rest, of runs about to diverge, would leave one color to all others.
    low, top = float(values.min()), float(np.quantile(values.compressed(), 0.75))
    norm = LogNorm(low, top) if 0 < 10 * low < top else Normalize(low, top)
    _log_axes(axes, "batch size B", "learning rate")
    axes.set_facecolor("#cccccc")
    axes.grid(False)
    mesh = axes.pcolormesh(sizes, rates, values, cmap="viridis_r", norm=norm, rasterized=True)
    extend = "max" if values.max() > top else "neither"
    axes.figure.colorbar(mesh, ax=axes, label="training loss", extend=extend)
    marks = [[point[name] for point in _optima(entry)] for name in ("batch_size", "lr")]
    reach = [*rates[[0, -1]], *(lr * factor for lr in marks[1] for factor in (1 / 1.2, 1.2))]
    for name, width in (
        ("independent", 6),
        ("measured", 3),
    ):  # where one hides the other its rim is still seen
        if checkpoint is not None:
            (label, color), known = (
                ESTIMATES[name],
                checkpoint[f"{name}_lr"].sel(bound="value").values,
            )
            halo = _halo(width + 1.5, "white")
            _line(
                axes,
                checkpoint.batch_size,
                known,
                color=color,
                lw=width,
                label=f"predicted: {label}",
                **halo,
            )
            reach += [lr for lr in known if np.isfinite(lr)]
    law, curve = entry["best_law"] or _best_predictor(entry), np.geomspace(sizes[0], sizes[-1], 200)
    style = {"color": "white", "lw": 1.5, "label": f"fitted: {law.replace('_', ' ')}"}
    _line(axes, curve, _law(entry, law, curve), "--", **style, **_halo(3, "#222222"))
    _line(
        axes,
        *marks,
        "o",
        mfc="none",
        mec="#222222",
        mew=2,
        ms=12,
        label="swept optimum",
        **_halo(4, "white"),
    )
    axes.set_xlim(sizes[0], sizes[-1])
    axes.set_ylim(min(reach), max(reach))
    _legend(axes)


def _halo(width: float, color: str) -> dict[str, Any]:
    """Sets a line off from whatever color is below it."""
    return {"path_effects": [withStroke(linewidth=width, foreground=color)]}


def _edges(centres: np.ndarray) -> np.ndarray:
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
    axes.set_xlabel("examples E")
    axes.set_ylabel("steps S")
    axes.grid(alpha=0.25)
    for index, entry in enumerate(entries):
        color, noise = f"C{index}", entry["noise_scale"]
        known = [point for point in entry["optimal_lr"] if point["steps"] and point["examples"]]
        sizes, examples, steps = (
            [point[name] for point in known] for name in ("batch_size", "examples", "steps")
        )
        label = (
            f"{goal(entry)}: B_noise {noise['b_noise']:.3g}" if noise["b_noise"] else goal(entry)
        )
        _line(axes, examples, steps, "o", color=color, label=label)
        if known and noise["b_noise"] and noise["s_min"] and noise["e_min"]:
            curve = np.geomspace(min(sizes) / 4, max(sizes) * 4, 200)
            examples = noise["e_min"] * (1 + curve / noise["b_noise"])
            axes.plot(examples, noise["s_min"] * (1 + noise["b_noise"] / curve), color=color, lw=1)
    _legend(axes)


def noise_along_training(axes: Axes, measured: xr.Dataset, entries: list[dict[str, Any]]) -> None:
    """Noise scales against training loss: from gradients at checkpoints, and from the sweep's
    S(B)."""
    _against_loss(axes, "noise scale, examples")
    for index, scale in enumerate(measured.scale.values):
        value, low, high = _bounds(measured.noise_scale.sel(scale=scale))
        if np.isfinite(value).any():
            error = np.maximum(np.nan_to_num([value - low, high - value]), 0)
            axes.errorbar(
                measured.loss,
                value,
                yerr=error,
                fmt="o-",
                ms=4,
                capsize=3,
                color=f"C{index}",
                label=str(scale),
            )
    points = [(entry["target_loss"], entry["noise_scale"]["b_noise"]) for entry in entries]
    points = [point for point in points if None not in point]
    if points:
        axes.plot(
            *zip(*points, strict=True),
            "s--",
            color="#222222",
            label="B_noise from the sweep's S(B)",
        )
    _legend(axes)


def validity(axes: Axes, measured: xr.Dataset) -> None:
    """Share of parameters by the batch size πσ²/2μ² up to which the small-batch law holds for
    them."""
    axes.set_xscale("log")
    axes.set_xlabel("πσ²/2μ² of a parameter, examples")
    axes.set_ylabel("share of parameters")
    bins = measured.validity_bin.values
    edges = np.append(bins, bins[-1] ** 2 / bins[-2])
    for index in range(measured.sizes["checkpoint"]):
        checkpoint = measured.isel(checkpoint=index)
        label = f"loss {float(checkpoint.loss):.3g}"
        axes.stairs(checkpoint.validity_share, edges, baseline=None, color=f"C{index}", label=label)
    _legend(axes)


def layer_noise(axes: Axes, measured: xr.Dataset) -> None:
    """tr Σ/|μ|² of each layer alone against training loss."""
    _against_loss(axes, "noise scale of a layer, examples")
    colors = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, measured.sizes["layer"]))
    for color, layer in zip(colors, measured.layer.values, strict=True):
        label = str(layer) if measured.sizes["layer"] <= LEGIBLE else None
        values = measured.layer_noise.sel(layer=layer, bound="value")
        _line(axes, measured.loss, values, "o-", ms=4, color=color, label=label)
    _legend(axes)


def closed_forms(
    axes: Axes,
    batch_sizes: np.ndarray,
    *,
    mu_l1: float,
    trace: float,
    off_diagonal: float,
    snr: float,
    b_noise: float,
    max_lr: float,
    exact: Any = None,
    true: Any = None,
) -> None:
    """Sign descent's closed forms, all for independent coordinates; what is undefined is left out.

    Args:
      axes: to draw on.
      batch_sizes: B [b], which the curves span.
      mu_l1, trace, off_diagonal, snr, b_noise, max_lr: Σ|μ|, Σ H_ii, s'Hs' − Σ H_ii, |μ|/σ, and the
        surge's two, which `surge.gradients.one_step.sign_summary` makes of any (μ, σ, H).
      exact: ε_opt [b] of the law with every μ and σ, if known.
      true: ε_opt [b] as it is, if known.
    """
    _log_axes(axes, "batch size B", "one-step optimal learning rate")
    curve = np.geomspace(min(batch_sizes), max(batch_sizes), 200)
    if exact is not None:
        _line(axes, batch_sizes, exact, "o-", ms=4, color="#d55e00", label="exact, every μ and σ")
    same = homogeneous(curve, mu_l1, trace, off_diagonal, snr)
    _line(axes, curve, same, color="#cc79a7", label="one signal-to-noise ratio for all")
    _line(
        axes,
        curve,
        surge(curve, max_lr, b_noise),
        color="#009e73",
        label="small batches: the surge",
    )
    if trace + off_diagonal > 0:  # not so at a saddle
        limit = np.full(len(curve), mu_l1 / (trace + off_diagonal))
        _line(axes, curve, limit, ":", color="#7f7f7f", label="large batches")
    if true is not None:
        _line(axes, batch_sizes, true, "o-", ms=4, color="#222222", label="true one-step optimum")
    _legend(axes)


def one_step(axes: Axes, checkpoint: xr.Dataset) -> None:
    """ε_opt(B) from one checkpoint: the paper's formula, the measured law, and the true one-step
    optimum."""
    _log_axes(axes, "batch size B", "one-step optimal learning rate")
    sizes = checkpoint.batch_size.values
    for name in (
        "oracle",
        "independent",
        "measured",
    ):  # the truth below, wide and pale: estimates may meet it
        label, color = ESTIMATES[name]
        style = {"lw": 7, "alpha": 0.3} if name == "oracle" else {}
        _band(axes, sizes, checkpoint[f"{name}_lr"], color, label, **style)
    curve = np.geomspace(sizes.min(), sizes.max(), 200)
    label, color = "saturating surge through the measured", ESTIMATES["measured"][1]
    _line(
        axes,
        curve,
        saturating_surge(curve, *checkpoint.measured_curve.values),
        "--",
        lw=1,
        color=color,
        label=label,
    )
    form = surge(curve, *checkpoint.measured_surge.sel(bound="value").values)
    _line(axes, curve, form, ":", lw=1.5, color=color, label="small-batch surge, N and K' measured")
    _legend(axes)


def branches(axes: Axes, checkpoint: xr.Dataset) -> None:
    """ε_opt(B; K): the learning rate whose loss is lowest K steps after the checkpoint, for each
    horizon K."""
    _log_axes(axes, "batch size B", "optimal learning rate after K steps")
    sizes = checkpoint.batch_size.values
    for index, horizon in enumerate(checkpoint.horizon.values):
        _band(axes, sizes, checkpoint.branch_lr.sel(horizon=horizon), f"C{index}", f"K = {horizon}")
    measured = checkpoint.measured_lr.sel(bound="value")
    _line(axes, sizes, measured, "--", color="#222222", label="measured, one step")
    _legend(axes)
