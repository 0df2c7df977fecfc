"""What single checkpoints say: each function draws one panel from measure.nc."""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from surge.report import drawing
from surge.report.drawing import COLOR
from surge.theory.derivations import homogeneous
from surge.theory.rivals import LAWS, Law, surge

LEGIBLE = 8  # entries of a legend
ESTIMATES = {  # name in measure.nc -> what it is
    "independent": "independent coordinates (the paper's formula)",
    "measured": "measured directions, a/q",
    "oracle": "true one-step optimum",
}
COEFFICIENTS = ("mu_l1", "trace", "off_diagonal", "snr", "b_noise", "max_lr")  # of the closed forms
ENDLESS = 10  # times the value: where an interval without an upper end is cut
ONE_STEP = "one-step optimal learning rate"
SIZE = "batch size B"
CURVE_OF_OLD = ("max_lr", "b_scale", "r")  # where the names of parameters are not stored
POINTS = {"marker": "o", "ms": 4}


def noise_along_training(axes: Axes, measured: xr.Dataset, entries: list[dict[str, Any]]) -> None:
    """Noise scales against training loss: of gradients, and of the sweep's S(B)."""
    drawing.against_loss(axes, "noise scale, examples")
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
                color=COLOR[f"scale{index % 3}"],
                label=f"gradients: {symbol(scale)}",
            )
    points = [(entry["target_loss"], entry["noise_scale"]["b_noise"]) for entry in entries]
    points = [point for point in points if None not in point]
    if points:
        axes.plot(*zip(*points, strict=True), "s--", color=COLOR["ink"], label="sweep: B_noise")


def symbol(scale: str) -> str:
    """The name of a kind of noise scale as it is written."""
    return str(scale).replace("b_simple", "B_simple")


def validity(axes: Axes, measured: xr.Dataset) -> None:
    """Share of parameters by πσ²/2μ², up to which the small-batch law holds for them."""
    axes.set_xscale("log")
    axes.set_xlabel("πσ²/2μ² of a parameter, examples")
    axes.set_ylabel("share of parameters")
    bins = measured.validity_bin.values
    ends = np.append(bins, bins[-1] ** 2 / bins[-2])
    total = measured.sizes["checkpoint"]
    for index in range(total):
        checkpoint = measured.isel(checkpoint=index)
        axes.stairs(
            checkpoint.validity_share,
            ends,
            baseline=None,
            color=drawing.ordered(index, total),
            label=f"loss {float(checkpoint.loss):.3g}",
        )


def layer_noise(axes: Axes, measured: xr.Dataset) -> None:
    """tr Σ/|μ|² of each layer alone against training loss."""
    drawing.against_loss(axes, "noise scale of a layer, examples")
    total = measured.sizes["layer"]
    for index, layer in enumerate(measured.layer.values):
        label = str(layer).removeprefix("params/") if total <= LEGIBLE else None
        values = measured.layer_noise.sel(layer=layer, bound="value")
        color = drawing.ordered(index, total)
        drawing.line(axes, measured.loss, values, "o-", ms=4, color=color, label=label)


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
        surge's two, which `surge.gradients.independent.sign_summary` makes of any (μ, σ, H).
      exact: ε_opt [b] of the law with every μ and σ, if known.
      true: ε_opt [b] as it is, if known.
    """
    drawing.log_axes(axes, SIZE, ONE_STEP)
    curve = np.geomspace(min(batch_sizes), max(batch_sizes), drawing.CURVE)
    color = COLOR["independent"]
    if true is not None:
        label = ESTIMATES["oracle"]
        drawing.line(axes, batch_sizes, true, color=COLOR["oracle"], label=label, **POINTS)
    if exact is not None:
        label = "exact, every μ and σ"
        drawing.line(axes, batch_sizes, exact, color=color, label=label, **POINTS)
    same = homogeneous(curve, mu_l1, trace, off_diagonal, snr)
    drawing.line(axes, curve, same, "--", color=color, label="one signal-to-noise ratio for all")
    small = _surge(curve, max_lr, b_noise)
    drawing.line(axes, curve, small, ":", color=color, label="small batches: the surge")
    if trace + off_diagonal > 0:  # not so at a saddle
        limit = np.full(len(curve), mu_l1 / (trace + off_diagonal))
        drawing.line(axes, curve, limit, "-.", color=color, lw=1, label="large batches")


def one_step(axes: Axes, checkpoint: xr.Dataset) -> None:
    """ε_opt(B) of one step: the paper's formula, the measured law, the true optimum."""
    drawing.log_axes(axes, SIZE, ONE_STEP)
    sizes = checkpoint.batch_size.values
    # The truth lies below, wide and pale: estimates may meet it.
    for name in ("oracle", "independent", "measured"):
        if f"{name}_lr" in checkpoint:
            style = {"lw": 7, "alpha": 0.3} if name == "oracle" else POINTS
            _band(axes, sizes, checkpoint[f"{name}_lr"], COLOR[name], ESTIMATES[name], **style)
    curve = np.geomspace(sizes.min(), sizes.max(), drawing.CURVE)
    color = COLOR["measured"]
    law = _law_through(checkpoint)
    if law is not None:
        rates = law.function(curve, *checkpoint.measured_curve.values)
        label = f"{law.name.replace('_', ' ')} through the measured"
        drawing.line(axes, curve, rates, "--", lw=1, color=color, label=label)
    if "measured_surge" in checkpoint:
        rates = _surge(curve, *checkpoint.measured_surge.sel(bound="value").values)
        label = "small-batch surge, N and K' measured"
        drawing.line(axes, curve, rates, ":", lw=1.5, color=color, label=label)


def _surge(curve: np.ndarray, max_lr: float, b_noise: float) -> np.ndarray:
    """The surge, nan where there is none: its noise scale is infinite then."""
    if not np.isfinite([max_lr, b_noise]).all():
        return np.full(len(curve), np.nan)
    return np.asarray(surge(curve, max_lr, b_noise))


def _law_through(checkpoint: xr.Dataset) -> Law | None:
    """The law whose parameters are stored, known by their names; a registry may have lost it."""
    if "measured_curve" not in checkpoint:
        return None
    names = tuple(checkpoint.parameter.values) if "parameter" in checkpoint.coords else CURVE_OF_OLD
    return next((law for law in LAWS.values() if law.parameters == names), None)


def branches(axes: Axes, checkpoint: xr.Dataset) -> None:
    """ε_opt(B; K): the rate whose loss is lowest K steps later, for each horizon K."""
    drawing.log_axes(axes, SIZE, "best learning rate after K steps")
    sizes = checkpoint.batch_size.values
    total = checkpoint.sizes["horizon"]
    for index, horizon in enumerate(checkpoint.horizon.values):
        estimate = checkpoint.branch_lr.sel(horizon=horizon)
        _band(axes, sizes, estimate, drawing.ordered(index, total), f"K = {horizon}", **POINTS)
    if "measured_lr" in checkpoint:
        measured = checkpoint.measured_lr.sel(bound="value")
        label = "measured, one step"
        drawing.line(axes, sizes, measured, "--", color=COLOR["measured"], label=label)


def _bounds(estimate: xr.DataArray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Value, low and high to draw."""
    value, low, high = (estimate.sel(bound=bound).values for bound in ("value", "low", "high"))
    return value, low, np.where(np.isposinf(high), ENDLESS * value, high)


def _band(axes: Axes, x: Any, estimate: xr.DataArray, color: str, label: str, **style: Any) -> None:
    value, low, high = _bounds(estimate)
    drawing.line(axes, x, value, color=color, label=label, **style)
    axes.fill_between(x, low, high, color=color, alpha=0.15, lw=0)
