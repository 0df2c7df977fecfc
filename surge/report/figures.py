"""Figures of stored results: each function draws one picture on the axes it is given and computes nothing."""

from typing import Any

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from surge.report.summary import goal
from surge.theory.laws import LAWS, homogeneous, saturating_surge, surge

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


def _log_axes(axes: Axes, x: str, y: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25)


def _optima(entry: dict[str, Any]) -> list[dict[str, Any]]:
    return [optimum for optimum in entry["optimal_lr"] if optimum["lr"]]


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
    """ε_opt(B) of one fit with its intervals, and every law fitted to it; the best law is drawn heavy."""
    optima = _optima(entry)
    _log_axes(axes, "batch size B", "optimal learning rate")
    _error_bars(axes, optima, "#222222", "swept optimum")
    if optima:
        sizes = [point["batch_size"] for point in optima]
        curve = np.geomspace(min(sizes) / 2, max(sizes) * 2, 200)
        for name, law in entry["laws"].items():
            if not law["params"] or None in law["params"].values():
                continue
            best = name == entry["best_law"]
            rates = np.asarray(LAWS[name].function(curve, **law["params"]))
            axes.plot(curve, rates, color=LAW_COLORS[name], lw=2.5 if best else 1, label=name.replace("_", " "))
        rates = [point["lr"] for point in optima]
        axes.set_ylim(min(rates) / 4, max(rates) * 4)
    axes.legend(fontsize=7)


def optimal_lr_by_target(axes: Axes, entries: list[dict[str, Any]]) -> None:
    """ε_opt(B) at each target loss of one optimizer: does the peak move as training goes on?"""
    _log_axes(axes, "batch size B", "optimal learning rate")
    for index, entry in enumerate(entries):
        color = f"C{index}"
        optima = _optima(entry)
        axes.plot([point["batch_size"] for point in optima], [point["lr"] for point in optima], color=color)
        _error_bars(axes, optima, color, f"to {goal(entry)}")
    axes.legend(fontsize=7)


def heat_map(axes: Axes, loss: xr.DataArray, entry: dict[str, Any]) -> Any:
    """Loss [batch_size, learning_rate] with the optimum ringed and the best law on it; blank where diverged."""
    rates, sizes = loss.learning_rate.values, loss.batch_size.values
    between = np.sqrt(rates[1:] * rates[:-1]) if len(rates) > 1 else rates / 2
    rate_edges = np.array([rates[0] ** 2 / between[0], *between, rates[-1] ** 2 / between[-1]])
    size_edges = np.arange(len(sizes) + 1) - 0.5
    values = np.ma.masked_invalid(loss.transpose("learning_rate", "batch_size").values)
    # Losses far above the rest, of runs about to diverge, would leave one color to all others.
    top = float(np.quantile(values.compressed(), 0.75)) if values.count() else None
    mesh = axes.pcolormesh(size_edges, rate_edges, values, cmap="viridis_r", vmax=top, rasterized=True)
    axes.set_yscale("log")
    axes.set_xticks(range(len(sizes)), [str(size) for size in sizes])
    axes.set_xlabel("batch size B")
    axes.set_ylabel("learning rate")
    for point in _optima(entry):
        axes.plot(list(sizes).index(point["batch_size"]), point["lr"], "o", mfc="none", mec="#d55e00", ms=11, mew=2)
    law = entry["laws"].get(entry["best_law"] or "surge")
    if law and law["params"] and None not in law["params"].values():
        curve = LAWS[entry["best_law"] or "surge"].function(np.asarray(sizes, float), **law["params"])
        axes.plot(range(len(sizes)), np.asarray(curve), color="white", lw=1.5, ls="--")
    axes.set_ylim(rate_edges[0], rate_edges[-1])
    return mesh


def data_against_time(axes: Axes, entries: list[dict[str, Any]]) -> None:
    """Steps S against examples E at the best learning rate of each B, with the fitted hyperbola."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("examples E")
    axes.set_ylabel("steps S")
    axes.grid(alpha=0.25)
    for index, entry in enumerate(entries):
        color = f"C{index}"
        points = [point for point in entry["optimal_lr"] if point["steps"] and point["examples"]]
        axes.plot([p["examples"] for p in points], [p["steps"] for p in points], "o", color=color)
        noise = entry["noise_scale"]
        if noise["b_noise"] and noise["s_min"] and noise["e_min"]:
            sizes = np.geomspace(1, 1e5, 200)
            steps = noise["s_min"] * (1 + noise["b_noise"] / sizes)
            examples = noise["e_min"] * (1 + sizes / noise["b_noise"])
            label = f"{goal(entry)}: B_noise {noise['b_noise']:.3g}"
            axes.plot(examples, steps, color=color, lw=1, label=label)
    axes.legend(fontsize=7)


def noise_along_training(axes: Axes, measured: xr.Dataset, entries: list[dict[str, Any]]) -> None:
    """Noise scales against training loss: from gradients at checkpoints, and from the sweep's S(B)."""
    axes.set_yscale("log")
    axes.set_xlabel("training loss (training runs to the right)")
    axes.set_ylabel("examples")
    axes.grid(alpha=0.25)
    for index, scale in enumerate(measured.scale.values):
        estimate = measured.noise_scale.sel(scale=scale)
        value, low, high = (estimate.sel(bound=bound).values for bound in ("value", "low", "high"))
        error = [np.nan_to_num(value - low, nan=0.0, posinf=0.0), np.nan_to_num(high - value, nan=0.0, posinf=0.0)]
        axes.errorbar(measured.loss, value, yerr=np.maximum(error, 0), fmt="o-", color=f"C{index}", label=str(scale))
    points = [(entry["target_loss"], entry["noise_scale"]["b_noise"]) for entry in entries]
    points = [point for point in points if None not in point]
    if points:
        axes.plot(*zip(*points, strict=True), "s--", color="#222222", label="B_noise from the sweep's S(B)")
    axes.invert_xaxis()
    axes.legend(fontsize=7)


def validity(axes: Axes, measured: xr.Dataset) -> None:
    """Share of parameters by the batch size πσ²/2μ² up to which the small-batch law holds for them."""
    axes.set_xscale("log")
    axes.set_xlabel("πσ²/2μ² of a parameter: the small-batch law holds far below")
    axes.set_ylabel("share of parameters")
    for index in range(measured.sizes["checkpoint"]):
        checkpoint = measured.isel(checkpoint=index)
        label = f"loss {float(checkpoint.loss):.3g}"
        axes.step(measured.validity_bin, checkpoint.validity_share, where="post", color=f"C{index}", label=label)
    axes.legend(fontsize=7)


def layer_noise(axes: Axes, measured: xr.Dataset) -> None:
    """tr Σ/|μ|² of each layer alone against training loss."""
    axes.set_yscale("log")
    axes.set_xlabel("training loss (training runs to the right)")
    axes.set_ylabel("noise scale of a layer, examples")
    colors = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, measured.sizes["layer"]))
    for color, layer in zip(colors, measured.layer.values, strict=True):
        label = str(layer) if measured.sizes["layer"] <= LEGIBLE else None
        values = measured.layer_noise.sel(layer=layer, bound="value")
        axes.plot(measured.loss, values, "o-", ms=3, color=color, label=label)
    axes.invert_xaxis()
    if measured.sizes["layer"] <= LEGIBLE:
        axes.legend(fontsize=7)


def closed_forms(axes: Axes, checkpoint: xr.Dataset) -> None:
    """Sign descent's closed forms at one checkpoint, all for independent coordinates, against the true optimum."""
    _log_axes(axes, "batch size B", "one-step optimal learning rate")
    sizes = checkpoint.batch_size.values
    curve = np.geomspace(sizes.min(), sizes.max(), 200)
    l1, trace, off, snr, b_noise, max_lr = (
        float(checkpoint[name]) for name in ("mu_l1", "trace", "off_diagonal", "snr", "b_noise", "max_lr")
    )
    axes.plot(sizes, checkpoint.independent_lr.sel(bound="value"), "o-", color="#d55e00", label="exact, every μ and σ")
    axes.plot(
        curve, homogeneous(curve, l1, trace, off, snr), color="#cc79a7", label="one signal-to-noise ratio for all"
    )
    if np.isfinite(b_noise):
        axes.plot(curve, surge(curve, max_lr, b_noise), color="#009e73", label="small batches: the surge")
    axes.axhline(l1 / (trace + off), color="#7f7f7f", lw=1, ls=":", label="large batches")
    axes.plot(sizes, checkpoint.oracle_lr.sel(bound="value"), "o-", color="#222222", label="true one-step optimum")
    axes.legend(fontsize=7)


def one_step(axes: Axes, checkpoint: xr.Dataset) -> None:
    """ε_opt(B) from one checkpoint: the paper's formula, the measured law, and the true one-step optimum."""
    _log_axes(axes, "batch size B", "one-step optimal learning rate")
    for name, (label, color) in ESTIMATES.items():
        estimate = checkpoint[f"{name}_lr"]
        value, low, high = (estimate.sel(bound=bound).values for bound in ("value", "low", "high"))
        axes.plot(checkpoint.batch_size, value, "o-", ms=4, color=color, label=label)
        axes.fill_between(checkpoint.batch_size, low, high, color=color, alpha=0.15, lw=0)
    max_lr, b_scale, r = checkpoint.measured_curve.values
    curve = np.geomspace(checkpoint.batch_size.min(), checkpoint.batch_size.max(), 200)
    label = "saturating surge through the measured"
    axes.plot(
        curve, saturating_surge(curve, max_lr, b_scale, r), "--", lw=1, color=ESTIMATES["measured"][1], label=label
    )
    axes.legend(fontsize=7)


def branches(axes: Axes, checkpoint: xr.Dataset) -> None:
    """ε_opt(B; K): the learning rate whose loss is lowest K steps after the checkpoint, for each horizon K."""
    _log_axes(axes, "batch size B", "optimal learning rate after K steps")
    for index, horizon in enumerate(checkpoint.horizon.values):
        value, low, high = (
            checkpoint.branch_lr.sel(horizon=horizon, bound=bound).values for bound in ("value", "low", "high")
        )
        axes.plot(checkpoint.batch_size, value, "o-", ms=4, color=f"C{index}", label=f"K = {horizon}")
        axes.fill_between(checkpoint.batch_size, low, high, color=f"C{index}", alpha=0.15, lw=0)
    axes.plot(
        checkpoint.batch_size, checkpoint.measured_lr.sel(bound="value"), "--", color="#222222", label="measured, a/q"
    )
    axes.legend(fontsize=7)
