"""One step from single checkpoints, from measure.nc; what an older file lacks is left out."""

from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from surge.report import checkpoint_figures, verdicts
from surge.report.checkpoint_figures import COEFFICIENTS, ESTIMATES
from surge.report.drawing import Panel
from surge.report.findings import Findings
from surge.report.formats import DASH, count, estimate, listed, number, percent
from surge.report.markup import Drawing, Fold, Prose, Section, Table
from surge.report.noise_sections import why
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
BANDS = "Bands: 95% intervals."
NO_K = "infinite: the curvature of steps does not grow with B"
NO_BRANCH = (
    "Runs that branch here have no best rate where the budget has no room for them, no measured "
    "rate to start from is known, or it lies on the edge of the grid."
)
FORMS = ("Σ|μ|", "D = Σ H_ii", "O = s'Hs' − D", "|μ|/σ", "B_noise", "ε_max", "r = D/O")


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
            where = f"{optimizer}, step {count(row.step)}, loss {number(float(row.loss))}"
            blocks.append(Fold(where, _blocks(f"{optimizer}-{index}", where, row)))
    return Section("One step from single checkpoints", blocks)


def _blocks(name: str, where: str, row: xr.Dataset) -> list[Any]:
    """All that one checkpoint says of one optimizer."""
    rates = {
        estimate: row[f"{estimate}_lr"].sel(bound="value").values
        for estimate in (*ESTIMATES, "branch")
        if f"{estimate}_lr" in row
    }
    defined = {estimate for estimate, values in rates.items() if np.isfinite(values).any()}
    blocks: list[Any] = [Drawing(_panels(name, where, row, rates, defined), BANDS)]
    blocks += [Prose(sentence) for sentence in _peaks(row)]
    blocks.append(_rates_table(where, row))
    if not all(np.isfinite(rates[estimate]).all() for estimate in ESTIMATES if estimate in rates):
        blocks.append(Prose(UNDEFINED, "note"))
    if "independent" in defined and {*COEFFICIENTS, "r"} <= row.keys():
        blocks.append(_coefficients_table(where, row))
    if "branch" in defined:
        blocks.append(_branch_table(where, row))
    if "branch" in rates and not np.isfinite(rates["branch"]).all():
        blocks.append(Prose(NO_BRANCH, "note"))
    return blocks


def _panels(
    name: str, where: str, row: xr.Dataset, rates: dict[str, np.ndarray], defined: set[str]
) -> list[Panel]:
    panels = [
        Panel(
            "One step",
            partial(checkpoint_figures.one_step, checkpoint=row),
            f"The rate that lowers the loss most in one step: {where}.",
            f"one-step-{name}",
        )
    ]
    if "independent" in defined and set(COEFFICIENTS) <= row.keys():
        draw = partial(
            checkpoint_figures.closed_forms,
            batch_sizes=row.batch_size.values,
            exact=rates["independent"],
            true=rates.get("oracle"),
            **{coefficient: float(row[coefficient]) for coefficient in COEFFICIENTS},
        )
        told = f"The paper's formulas against the true one-step optimum: {where}."
        panels.append(Panel("Closed forms of sign descent", draw, told, f"closed-forms-{name}"))
    if "branch" in defined:
        draw = partial(checkpoint_figures.branches, checkpoint=row)
        horizons = listed(count(horizon) for horizon in row.horizon.values)
        told = f"The rate whose loss is lowest {horizons} steps later: {where}."
        panels.append(Panel("Runs that branch here", draw, told, f"branches-{name}"))
    return panels


def _peaks(row: xr.Dataset) -> list[str]:
    """Where the measured law peaks, and the noise scale of its small-batch form."""
    sentences = []
    if "measured_peak" in row:
        reason = why(row, "measured_peak")
        peak = estimate(row.measured_peak.values, "none seen")
        sentences.append(f"Peak of the measured law: {peak}{f' ({reason})' if reason else ''}.")
    if "measured_surge" in row:
        reason = why(row, "measured_surge") or NO_K
        b_noise = estimate(row.measured_surge.sel(surge_parameter="b_noise").values, reason)
        sentences.append(f"B_noise = N/K' of the small-batch surge, both measured: {b_noise}.")
    return sentences


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
            estimate(chosen.kappa.sel(reading=reading).values, why(chosen, "kappa") or DASH)
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


def _coefficients_table(where: str, row: xr.Dataset) -> Table:
    values = [float(row[name]) for name in (*COEFFICIENTS, "r")]
    cells = ["∞: no surge" if np.isinf(value) else number(value) for value in values]
    return Table(f"Closed forms: {where}", ("where", *FORMS), [("at this checkpoint", *cells)])


def _branch_table(where: str, row: xr.Dataset) -> Table:
    def cell(size: int, horizon: int) -> str:
        return estimate(row.branch_lr.sel(batch_size=size, horizon=horizon).values)

    horizons = row.horizon.values.tolist()
    rows = [
        (count(size), *(cell(size, horizon) for horizon in horizons))
        for size in row.batch_size.values.tolist()
    ]
    header = ("batch size", *(f"K = {count(horizon)}" for horizon in horizons))
    return Table(f"Best rate of runs that branch here, after K steps: {where}", header, rows)


def _rates_table(where: str, row: xr.Dataset) -> Table:
    names = [name for name in ("independent", "measured", "oracle") if f"{name}_lr" in row]
    judged = [name for name in names if name != "oracle" and "oracle" in names]

    def ratio(name: str, size: int) -> str:
        value, truth = (
            float(row[f"{estimate}_lr"].sel(batch_size=size, bound="value"))
            for estimate in (name, "oracle")
        )
        return number(value / truth) if np.isfinite([value, truth]).all() else DASH

    def cells(size: int) -> list[str]:
        rates = [estimate(row[f"{name}_lr"].sel(batch_size=size).values) for name in names]
        return [count(size), *rates, *(ratio(name, size) for name in judged)]

    titles = {"independent": "independent", "measured": "measured", "oracle": "true"}
    header = ["batch size", *(titles[name] for name in names)]
    header += [f"{name} / true" for name in judged]
    rows = [cells(size) for size in row.batch_size.values.tolist()]
    return Table(f"One-step optimal learning rate: {where}", header, rows)
