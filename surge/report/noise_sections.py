"""Noise along training, from measure.nc; what an older file lacks is left out."""

from functools import partial
from typing import Any

import xarray as xr

from surge.report import checkpoint_figures
from surge.report.drawing import Panel
from surge.report.findings import Findings
from surge.report.formats import DASH, count, estimate, listed, number, percent
from surge.report.markup import Drawing, Fold, Section, Table
from surge.report.reading import Entry

PLACE = ("step", "loss")
SHARED = "Intervals are 95%. Each of these noise scales is a quantity of its own."


def noise(findings: Findings) -> Section | None:
    """How noisy gradients are along training; None where nothing of it was stored."""
    measured = findings.measured
    if measured is None:
        return None
    blocks: list[Any] = []
    panels = _panels(measured, findings.entries)
    if panels:
        blocks.append(Drawing(panels, SHARED))
    if "noise_scale" in measured:
        blocks.append(_noise_scales_table(measured))
    if "validity" in measured:
        blocks.append(_validity_table(measured))
    if "drift" in measured:
        blocks.append(_drift_table(measured))
    if "layer_noise" in measured:
        blocks.append(Fold("Noise scales of single layers", [_layers_table(measured)]))
    if "validity_share" in measured:
        blocks.append(Fold("Share of parameters by πσ²/2μ²", [_shares_table(measured)]))
    return Section("Noise along training", blocks) if blocks else None


def _panels(measured: xr.Dataset, entries: list[Entry]) -> list[Panel]:
    """A panel for each quantity that was stored."""
    trained_by = measured.attrs.get("optimizer")
    same = [entry for entry in entries if entry["optimizer"] == trained_by]
    losses = listed(number(float(loss)) for loss in measured.loss.values)
    where = f"at checkpoints of loss {losses}"
    swept = f", and from the sweep of {trained_by} (squares)" if same else ""
    layers = measured.sizes.get("layer", 0)
    panels = {
        "noise_scale": Panel(
            "Noise scales",
            partial(checkpoint_figures.noise_along_training, measured=measured, entries=same),
            f"From gradients of single examples {where}{swept}. An interval without an upper end "
            "is cut at ten times its value.",
            "noise-scales",
        ),
        "layer_noise": Panel(
            "Single layers",
            partial(checkpoint_figures.layer_noise, measured=measured),
            f"tr Σ/|μ|² of each of {layers} layers {where}, from the first layer to the last.",
            "noise-of-layers",
        ),
        "validity_share": Panel(
            "Reach of the small-batch law",
            partial(checkpoint_figures.validity, measured=measured),
            f"The law holds for a parameter far below its πσ²/2μ²: their shares {where}.",
            "validity",
        ),
    }
    return [panel for name, panel in panels.items() if name in measured]


def _noise_scales_table(measured: xr.Dataset) -> Table:
    def row(index: int) -> list[str]:
        checkpoint = measured.isel(checkpoint=index)
        cells = _estimates(checkpoint, "noise_scale")
        if "zero_share" in measured:
            cells.append(percent(float(checkpoint.zero_share)))
        return [*_place(checkpoint), *cells]

    header = [*PLACE, *(checkpoint_figures.symbol(scale) for scale in measured.scale.values)]
    if "zero_share" in measured:
        header.append("gradients exactly zero")
    rows = [row(index) for index in range(measured.sizes["checkpoint"])]
    return Table("Noise scales at each checkpoint, in examples", header, rows)


def _validity_table(measured: xr.Dataset) -> Table:
    rows = []
    for index in range(measured.sizes["checkpoint"]):
        checkpoint = measured.isel(checkpoint=index)
        cells = (estimate(bounds) for bounds in checkpoint.validity.values)
        rows.append([*_place(checkpoint), *cells])
    header = [*PLACE, *(f"{quantile:.0%}" for quantile in measured["quantile"].values)]
    return Table("Quantiles over parameters of πσ²/2μ², in examples", header, rows)


def _layers_table(measured: xr.Dataset) -> Table:
    def row(layer: str) -> list[str]:
        chosen = measured.sel(layer=layer)
        return [layer, *_estimates(chosen, "layer_noise")]

    rows = [row(str(layer)) for layer in measured.layer.values]
    return Table("tr Σ/|μ|² of each layer, in examples", ["layer", *_losses(measured)], rows)


def _shares_table(measured: xr.Dataset) -> Table:
    shares = measured.validity_share.transpose("validity_bin", ...).values
    rows = [
        (number(edge), *(percent(share) for share in row))
        for edge, row in zip(measured.validity_bin.values, shares, strict=True)
    ]
    return Table("Share of parameters in each bin", ["from", *_losses(measured)], rows)


def _losses(measured: xr.Dataset) -> list[str]:
    return [f"loss {loss:.3g}" for loss in measured.loss.values]


def _drift_table(measured: xr.Dataset) -> Table:
    def row(name: str) -> tuple[str, ...]:
        chosen = measured.sel(quantity=name)
        drift = estimate(chosen.drift.values, why(chosen, "drift"))
        return name, drift, count(chosen.drift_n) if "drift_n" in chosen else ""

    rows = [row(str(name)) for name in measured.quantity.values]
    header = ("quantity", "exponent p of loss^p", "checkpoints")
    return Table("What moves with the training loss", header, rows)


def why(row: xr.Dataset, name: str) -> str:
    """The reason why one number is undefined, if one is stored."""
    return str(row[f"{name}_why"].values) if f"{name}_why" in row else ""


def _estimates(row: xr.Dataset, name: str) -> list[str]:
    """The cells of one variable with its only dimension but bound, or why they are undefined."""
    values = row[name].transpose(..., "bound").values
    reasons = row[f"{name}_why"].values if f"{name}_why" in row else [DASH] * len(values)
    return [estimate(bounds, str(why)) for bounds, why in zip(values, reasons, strict=True)]


def _place(checkpoint: xr.Dataset) -> tuple[str, str]:
    return count(checkpoint.step), number(float(checkpoint.loss))
