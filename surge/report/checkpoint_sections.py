"""The parts of a page that draw on measure.nc; what an older file lacks is left out."""

from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from surge.report import checkpoint_figures, verdicts
from surge.report.checkpoint_figures import COEFFICIENTS, ESTIMATES
from surge.report.drawing import Panel
from surge.report.findings import Findings
from surge.report.formats import DASH, count, estimate, number, percent
from surge.report.markup import Drawing, Fold, Prose, Section, Table
from surge.workdir import sweeps

UNDEFINED = (
    "A dash: the step has no best rate, since it does not descend or the loss does not curve "
    "upwards along it; the paper's formula also says nothing of an optimizer that does not take "
    "the sign of the gradient."
)
WHAT_FOR = (
    "The rate that lowers the loss most in one single step from a checkpoint. It is not the rate "
    "that a run should take, which only a sweep shows."
)
NO_K = "infinite: the curvature of steps does not grow with B"
NO_BRANCH = (
    "Runs that branch here have no best rate where the budget has no room for them, no measured "
    "rate to start from is known, or it lies on the edge of the grid."
)
PLACE = ("step", "loss")
FORMS = ("Σ|μ|", "D = Σ H_ii", "O = s'Hs' − D", "|μ|/σ", "B_noise", "ε_max", "r = D/O")


def noise(findings: Findings) -> Section | None:
    """How noisy gradients are along training; None where nothing of it was stored."""
    measured = findings.measured
    if measured is None:
        return None
    panels = _noise_panels(measured, findings.entries)
    tables = [
        _noise_scales_table(measured) if "noise_scale" in measured else None,
        _validity_table(measured) if "validity" in measured else None,
        _drift_table(measured) if "drift" in measured else None,
        Fold("Noise scales of single layers", [_layers_table(measured)])
        if "layer_noise" in measured
        else None,
        Fold("Share of parameters by πσ²/2μ²", [_shares_table(measured)])
        if "validity_share" in measured
        else None,
    ]
    caption = (
        "From gradients of single examples at checkpoints, with 95% intervals, each its own "
        "quantity; layers and checkpoints from the first to the last. The small-batch law holds "
        "for a parameter far below its πσ²/2μ². An interval without an upper end is cut at ten "
        "times its value."
    )
    figure = Drawing("noise-along-training", caption, panels) if panels else None
    blocks = [block for block in (figure, *tables) if block is not None]
    return Section("Noise along training", blocks) if blocks else None


def _noise_panels(measured: xr.Dataset, entries: list[dict[str, Any]]) -> list[Panel]:
    trained_by = measured.attrs.get("optimizer")
    same = [entry for entry in entries if entry["optimizer"] == trained_by]
    span = f"over {measured.sizes['checkpoint']} checkpoints"
    panels = {
        "noise_scale": Panel(
            "Noise scales",
            partial(checkpoint_figures.noise_along_training, measured=measured, entries=same),
            f"Noise scales against training loss {span}.",
        ),
        "layer_noise": Panel(
            "Single layers",
            partial(checkpoint_figures.layer_noise, measured=measured),
            f"Noise scale of each of {measured.sizes.get('layer', 0)} layers against loss {span}.",
        ),
        "validity_share": Panel(
            "Reach of the small-batch law",
            partial(checkpoint_figures.validity, measured=measured),
            f"Share of parameters by the reach of the small-batch law {span}.",
        ),
    }
    return [panel for name, panel in panels.items() if name in measured]


def one_step(findings: Findings) -> Section | None:
    """Estimates of one step, folded; None where nothing of them was stored."""
    measured = findings.measured
    if measured is None or "optimizer" not in measured.dims or "measured_lr" not in measured:
        return None
    blocks: list[Any] = [Prose(WHAT_FOR)]
    blocks += [Prose(sentence) for sentence in verdicts.one_step(measured)]
    if {"measured_examples", "branch_examples"} <= measured.keys():
        blocks.append(_cost_table(measured, findings.sweep))
    if "kappa" in measured:
        blocks.append(_kappa_table(measured))
    for optimizer in measured.optimizer.values.tolist():
        for index in range(measured.sizes["checkpoint"]):
            row = measured.isel(checkpoint=index).sel(optimizer=optimizer)
            title = f"{optimizer}, step {count(row.step)}, loss {number(float(row.loss))}"
            blocks.append(Fold(title, _one_step_blocks(f"{optimizer}-one-step-{index}", row)))
    return Section("One step from single checkpoints", blocks)


def _one_step_blocks(name: str, row: xr.Dataset) -> list[Any]:
    known = {
        each: row[f"{each}_lr"].sel(bound="value").values
        for each in (*ESTIMATES, "branch")
        if f"{each}_lr" in row
    }
    found = {each for each, values in known.items() if np.isfinite(values).any()}
    caption = "The learning rate that lowers the loss most in one step. Bands: 95%."
    blocks: list[Any] = [Drawing(name, caption, _one_step_panels(row, known, found))]
    blocks += [Prose(sentence) for sentence in _peaks(row)]
    blocks.append(_one_step_table(row))
    if not all(np.isfinite(known[each]).all() for each in ESTIMATES if each in known):
        blocks.append(Prose(UNDEFINED, "note"))
    if "independent" in found and {*COEFFICIENTS, "r"} <= row.keys():
        blocks.append(_coefficients_table(row))
    if "branch" in found:
        blocks.append(_branch_table(row))
    if "branch" in known and not np.isfinite(known["branch"]).all():
        blocks.append(Prose(NO_BRANCH, "note"))
    return blocks


def _one_step_panels(row: xr.Dataset, known: dict[str, np.ndarray], found: set[str]) -> list[Panel]:
    where = f"step {int(row.step)} of training, loss {float(row.loss):.3g}"
    panels = [
        Panel(
            "One step",
            partial(checkpoint_figures.one_step, checkpoint=row),
            f"Estimates of the one-step optimal learning rate against batch size at {where}.",
        )
    ]
    if "independent" in found and set(COEFFICIENTS) <= row.keys():
        draw = partial(
            checkpoint_figures.closed_forms,
            batch_sizes=row.batch_size.values,
            exact=known["independent"],
            true=known.get("oracle"),
            **{each: float(row[each]) for each in COEFFICIENTS},
        )
        told = f"Closed forms of sign descent against the true one-step optimum at {where}."
        panels.append(Panel("Closed forms of sign descent", draw, told))
    if "branch" in found:
        draw = partial(checkpoint_figures.branches, checkpoint=row)
        told = f"Best learning rate some steps after {where}, against batch size."
        panels.append(Panel("Runs that branch here", draw, told))
    return panels


def _peaks(row: xr.Dataset) -> list[str]:
    """Where the measured law peaks, and the noise scale of its small-batch form."""
    sentences = []
    if "measured_peak" in row:
        why = _why(row, "measured_peak")
        peak = estimate(row.measured_peak.values, "none seen")
        sentences.append(f"Peak of the measured law: {peak}{f' ({why})' if why else ''}.")
    if "measured_surge" in row:
        why = _why(row, "measured_surge") or NO_K
        b_noise = estimate(row.measured_surge.sel(surge_parameter="b_noise").values, why)
        sentences.append(f"B_noise = N/K' of the small-batch surge, both measured: {b_noise}.")
    return sentences


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


def _why(row: xr.Dataset, name: str) -> str:
    """The reason why one number is undefined, if one is stored."""
    return str(row[f"{name}_why"].values) if f"{name}_why" in row else ""


def _estimates(row: xr.Dataset, name: str) -> list[str]:
    """The cells of one variable with its only dimension but bound, or why they are undefined."""
    values = row[name].transpose(..., "bound").values
    reasons = row[f"{name}_why"].values if f"{name}_why" in row else [DASH] * len(values)
    return [estimate(bounds, str(why)) for bounds, why in zip(values, reasons, strict=True)]


def _place(checkpoint: xr.Dataset) -> tuple[str, str]:
    return count(checkpoint.step), number(float(checkpoint.loss))


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
        drift = estimate(chosen.drift.values, _why(chosen, "drift"))
        return name, drift, count(chosen.drift_n) if "drift_n" in chosen else ""

    rows = [row(str(name)) for name in measured.quantity.values]
    header = ("quantity", "exponent p of loss^p", "checkpoints")
    return Table("What moves with the training loss", header, rows)


def _cost_table(measured: xr.Dataset, sweep: xr.Dataset | None) -> Table:
    """Examples differentiated for one checkpoint's answer, next to what the sweep took."""

    def row(optimizer: str) -> tuple[str, ...]:
        chosen = measured.sel(optimizer=optimizer)
        costs = [float(chosen[f"{name}_examples"].mean()) for name in ("measured", "branch")]
        shown = [number(cost) for cost in costs]
        if sweep is None or optimizer not in sweep.optimizer:
            return optimizer, *shown, "not run", DASH
        whole = sweeps.examples_trained(sweep.sel(optimizer=optimizer))
        return optimizer, *shown, number(whole), percent(costs[0] / whole)

    header = ("optimizer", "measured directions", "branch runs", "sweep", "measured / sweep")
    rows = [row(str(name)) for name in measured.optimizer.values]
    return Table("Examples differentiated for one checkpoint, and for the sweep", header, rows)


def _kappa_table(measured: xr.Dataset) -> Table:
    """κ in both readings of momentum, and the peak that it lets expect over a run."""

    def row(optimizer: str, index: int) -> list[str]:
        chosen = measured.isel(checkpoint=index).sel(optimizer=optimizer)
        cells = [
            estimate(chosen.kappa.sel(reading=reading).values, _why(chosen, "kappa") or DASH)
            for reading in readings
        ]
        if "peak_over_plateau" in chosen:
            height = chosen.peak_over_plateau.sel(reading=readings[-1])
            cells.append(estimate(height.values))
        return [optimizer, number(float(chosen.loss)), *cells]

    readings = [str(reading) for reading in measured.reading.values]
    header = ["optimizer", "loss", *(f"κ, {reading}" for reading in readings)]
    if "peak_over_plateau" in measured:
        header.append(f"peak / plateau, {readings[-1]}")
    labels = measured.optimizer.values.tolist()
    checkpoints = range(measured.sizes["checkpoint"])
    rows = [row(label, index) for label in labels for index in checkpoints]
    return Table("κ: curvature that noise feels over that of the signal", header, rows)


def _coefficients_table(row: xr.Dataset) -> Table:
    values = [float(row[name]) for name in (*COEFFICIENTS, "r")]
    cells = ["∞: no surge" if np.isinf(value) else number(value) for value in values]
    return Table("Closed forms", ("", *FORMS), [("at this checkpoint", *cells)])


def _branch_table(row: xr.Dataset) -> Table:
    def cell(size: int, horizon: int) -> str:
        return estimate(row.branch_lr.sel(batch_size=size, horizon=horizon).values)

    horizons = row.horizon.values.tolist()
    rows = [
        (count(size), *(cell(size, horizon) for horizon in horizons))
        for size in row.batch_size.values.tolist()
    ]
    header = ("batch size", *(f"K = {count(horizon)}" for horizon in horizons))
    return Table("Best rate of runs that branch here, after K steps", header, rows)


def _one_step_table(row: xr.Dataset) -> Table:
    names = [name for name in ("independent", "measured", "oracle") if f"{name}_lr" in row]
    judged = [name for name in names if name != "oracle" and "oracle" in names]

    def ratio(name: str, size: int) -> str:
        value, truth = (
            float(row[f"{each}_lr"].sel(batch_size=size, bound="value"))
            for each in (name, "oracle")
        )
        return number(value / truth) if np.isfinite([value, truth]).all() else DASH

    def cells(size: int) -> list[str]:
        rates = [estimate(row[f"{name}_lr"].sel(batch_size=size).values) for name in names]
        return [count(size), *rates, *(ratio(name, size) for name in judged)]

    titles = {"independent": "independent", "measured": "measured", "oracle": "true"}
    header = ["batch size", *(titles[name] for name in names)]
    header += [f"{name} / true" for name in judged]
    rows = [cells(size) for size in row.batch_size.values.tolist()]
    return Table("One-step optimal learning rate", header, rows)
