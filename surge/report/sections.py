"""The parts of a page that draw on fits and sweeps: the answer first, then each optimizer."""

import json
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from surge.report import sweep_figures, verdicts
from surge.report.drawing import Panel
from surge.report.formats import DASH, count, estimate, interval, listed, number
from surge.report.markup import Drawing, Fold, Prose, Section, Source, Table
from surge.report.reading import goal, judged, optima, rate, representative, standing
from surge.report.sweep_figures import LossMap
from surge.workdir import sweeps

FEW = 4  # optimizers or groups that the answer shows at once; the others are folded
LAW_STATES = {True: "stands", False: "ruled out"}


class Findings(NamedTuple):
    """What a workdir holds.

    Attributes:
      entries: of fit.json, none where there is no such file.
      sweep: all pieces in one array, if there are any.
      measured: measure.nc, if there is one.
    """

    entries: list[dict[str, Any]]
    sweep: xr.Dataset | None
    measured: xr.Dataset | None

    @property
    def attributes(self) -> Mapping[str, Any]:
        """Where the numbers come from: config, versions, devices."""
        datasets = (dataset for dataset in (self.sweep, self.measured) if dataset is not None)
        return next((dataset.attrs for dataset in datasets), {})


def answer(findings: Findings) -> Section:
    """What was measured, and what came out: a sentence, a table and a panel for each optimizer."""
    chosen = [*representative(findings.entries).items()]
    blocks: list[Any] = [Prose(line, "note") for line in _overview(findings)]
    for start in range(0, len(chosen), FEW):
        part = _answers(dict(chosen[start : start + FEW]))
        title = f"{listed(name for name, _ in chosen[start : start + FEW])}"
        blocks += [Fold(title, part)] if start else part
    return Section("What was found", blocks)


def _answers(chosen: dict[str, dict[str, Any]]) -> list[Any]:
    blocks: list[Any] = [
        Prose(f"{optimizer}: {verdicts.answer(entry)}", "answer")
        for optimizer, entry in chosen.items()
    ]
    blocks.append(rates_table(chosen))
    panels = [
        Panel(
            f"{optimizer}, {judged(entry)}",
            partial(sweep_figures.optimal_lr, entry=entry),
            f"Best learning rate of {optimizer} against batch size: {verdicts.answer(entry)}",
        )
        for optimizer, entry in chosen.items()
        if optima(entry)
    ]
    if panels:
        name = "best-rate-" + "-".join(chosen)
        blocks.append(Drawing(name, _caption(chosen), panels))
    return blocks


def _caption(chosen: dict[str, dict[str, Any]]) -> str:
    """What the laws of this figure are."""
    told = []
    for optimizer, entry in chosen.items():
        names = [name.replace("_", " ") for name in standing(entry)]
        remain = f"{listed(names)} {'remain' if len(names) > 1 else 'remains'}" if names else ""
        told.append(f"{optimizer}: {remain or 'no law could be judged'}")
    return (
        "The best rate of each batch size with its 95% interval, and the laws fitted to them. "
        "The band spans the laws that the data do not rule out, the heavy line is their mean by "
        f"Akaike weights. {'; '.join(told)}."
    )


def rates_table(chosen: dict[str, dict[str, Any]]) -> Table:
    """ε_opt by batch size and optimizer."""
    rates = {
        (optimizer, point["batch_size"]): rate(point)
        for optimizer, entry in chosen.items()
        for point in entry["optimal_lr"]
    }
    sizes = sorted({size for _, size in rates})
    goals = {judged(entry) for entry in chosen.values()}
    shared = f", judged by {goals.pop()}" if len(goals) == 1 else ""
    return Table(
        f"Best learning rate with 95% interval{shared}",
        ("batch size", *chosen),
        [(count(size), *(rates.get((name, size), "") for name in chosen)) for size in sizes],
    )


def _overview(findings: Findings) -> list[str]:
    """What was measured, in one line."""
    attributes = findings.attributes
    config = json.loads(attributes.get("config", "{}"))
    parts = list(filter(None, (_task(config, attributes), _extent(findings, config))))
    if findings.sweep is not None:
        runs = int(np.isfinite(findings.sweep.diverged).sum())
        examples = number(sweeps.examples_trained(findings.sweep))
        device = attributes.get("devices")
        parts.append(f"{runs:,} runs, {examples} examples" + (f" on {device}" if device else ""))
    elif findings.entries and "runs" in findings.entries[0]:
        runs = sum(entry["runs"] for entry in findings.entries)
        failed = sum(entry["failed"] for entry in findings.entries)
        parts.append(f"{runs:,} runs from a table, {failed:,} of them diverged or fell short")
    return ["; ".join(parts) + "."] if parts else []


def _task(config: dict[str, Any], attributes: Mapping[str, Any]) -> str:
    if "task" not in config:
        return ""
    name = config["task"].rpartition(":")[2]
    arguments = [
        f"{key.replace('_', ' ')} {_argument(value)}"
        for key, value in config.get("task_args", {}).items()
    ]
    told = f"{name} ({', '.join(arguments)})" if arguments else name
    parameters = attributes.get("parameters")
    return f"{told}, {int(parameters):,} parameters" if parameters else told


def _argument(value: Any) -> str:
    if isinstance(value, list):
        return listed(_argument(item) for item in value)
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return count(value) if plain else str(value)


def _extent(findings: Findings, config: dict[str, Any]) -> str:
    groups = representative(findings.entries)
    names = listed(groups) if len(groups) <= FEW else f"{len(groups)} groups"
    sizes = {point["batch_size"] for entry in findings.entries for point in entry["optimal_lr"]}
    if not sizes:
        return names
    span = f"batch sizes {count(min(sizes))} to {count(max(sizes))}"
    seeds = config.get("seeds")
    return f"{names}, {span}" + (f", {seeds} seeds" if seeds else "")


def optimizer(
    findings: Findings, name: str, entry: dict[str, Any], group: list[dict[str, Any]]
) -> Section:
    """Everything that the sweep says of one optimizer.

    Args:
      findings: of the workdir.
      name: of the optimizer.
      entry: its fit that the page leads with.
      group: its fits at all targets.
    """
    by_steps = entry["judged_by"] == "steps"
    cells = loss_cells(findings.sweep, name, entry["target_loss"])
    blocks: list[Any] = [Prose(f"{name}: {verdicts.peak_and_law(entry)}.")]
    if cells is None:
        text = "No map of the loss: no sweep of it is here, or every run diverged."
        blocks.append(Prose(text, "note"))
    panels = [] if cells is None else [_map_panel(name, cells, entry)]
    if by_steps and any(optima(other) for other in group):
        panels += _target_panels(name, group)
    if panels:
        blocks.append(Drawing(f"{name}-sweep", _sweep_caption(panels, by_steps), panels))
    blocks += [_optima_table([entry]), _laws_table(entry)]
    if by_steps:
        blocks += [_noise_table(group), Fold("The optimum at each target", [_optima_table(group)])]
    if cells is not None:
        blocks.append(Fold("Loss of every cell", [_loss_table(cells)]))
    return Section(name, blocks)


def loss_cells(sweep: xr.Dataset | None, optimizer: str, target: float | None) -> LossMap | None:
    """What became of every cell, None where no loss is finite."""
    if sweep is None or optimizer not in sweep.optimizer:
        return None
    loss = sweeps.loss_when_first_arrives(sweep, optimizer, target)
    if not np.isfinite(loss).any():
        return None
    fate = sweep.diverged.sel(optimizer=optimizer)
    ran = np.isfinite(fate).any("seed")
    diverged = ran & ((fate == 1) | np.isnan(fate)).all("seed")
    tried = ran.learning_rate[ran.any("batch_size")]
    return LossMap(
        loss.reindex(learning_rate=tried),
        diverged.sel(learning_rate=tried).transpose("batch_size", "learning_rate"),
    )


def _map_panel(name: str, cells: LossMap, entry: dict[str, Any]) -> Panel:
    diverged = int(cells.diverged.sum())
    total = int(np.isfinite(cells.loss).sum())
    return Panel(
        "Loss over batch size and learning rate",
        partial(sweep_figures.loss_map, cells=cells, entry=entry),
        f"Map of the training loss of {name}: {total} cells with a loss, {diverged} diverged, "
        "the best rate of each batch size ringed.",
    )


def _target_panels(name: str, group: list[dict[str, Any]]) -> list[Panel]:
    goals = listed(goal(entry) for entry in group)
    return [
        Panel(
            "Data against time",
            partial(sweep_figures.data_against_time, entries=group),
            f"Steps against examples to {goals} for {name}, at the best rate of each batch size.",
        ),
        Panel(
            "The best rate at each target",
            partial(sweep_figures.optimal_lr_by_target, entries=group),
            f"Best learning rate of {name} against batch size, to {goals}.",
        ),
    ]


def _sweep_caption(panels: list[Panel], by_steps: bool) -> str:
    when = "where the first rate of its batch size gets to the target" if by_steps else "at the end"
    told = [
        f"The map has the mean loss over seeds {when}; its colors end at the upper quartile."
        if panels[0].title.startswith("Loss")
        else "",
        "Curves of steps against examples are fitted hyperbolas, where they are defined."
        if len(panels) > 1
        else "",
    ]
    return " ".join(filter(None, told))


def _optima_table(entries: list[dict[str, Any]]) -> Table:
    by_steps = entries[0]["judged_by"] == "steps"

    def row(entry: dict[str, Any], point: dict[str, Any]) -> tuple[str, ...]:
        cells = (count(point["batch_size"]), rate(point))
        if by_steps:
            cells += (number(point["steps"]), number(point["examples"]))
        named = (goal(entry), *cells) if several else cells
        return *named, point.get("why", "")

    several = len(entries) > 1
    header = ["batch size", "best rate with 95% interval"]
    header += ["steps", "examples"] if by_steps else []
    return Table(
        "The best rate of each batch size" + ("" if several else f", by {judged(entries[0])}"),
        [*(["to"] if several else []), *header, "note"],
        [row(entry, point) for entry in entries for point in entry["optimal_lr"]],
    )


def _loss_table(cells: LossMap) -> Table:
    def cell(rate: float, size: int) -> str:
        place = {"learning_rate": rate, "batch_size": size}
        loss = float(cells.loss.sel(place))
        if np.isfinite(loss):
            return number(loss)
        return "diverged" if bool(cells.diverged.sel(place)) else ""

    sizes = cells.loss.batch_size.values.tolist()
    return Table(
        "Mean loss over seeds; an empty cell was not run",
        ("learning rate", *(f"B = {count(size)}" for size in sizes)),
        [
            (number(rate), *(cell(rate, size) for size in sizes))
            for rate in cells.loss.learning_rate.values.tolist()
        ],
    )


def _laws_table(entry: dict[str, Any]) -> Table:
    weights = standing(entry)

    def row(name: str, law: dict[str, Any]) -> tuple[str, ...]:
        params = ", ".join(
            f"{key} = {estimate([value, *law['intervals'][key]])}"
            for key, value in law["params"].items()
        )
        held_out = number(law.get("held_out_rmse_log"))
        if law.get("held_out_se") is not None:  # a fit.json of an earlier version has none
            held_out += f" ± {number(law['held_out_se'], 2)}"
        judgement = "not judged" if law.get("aic") is None else LAW_STATES[name in weights]
        weight = f"{weights[name]:.2f}" if name in weights else DASH
        return name.replace("_", " "), judgement, weight, params, number(law["aic"]), held_out

    return Table(
        "Laws fitted to the best rates; parameters with 95% intervals; held-out error in log rate",
        ("law", "verdict", "weight", "parameters", "AICc", "held-out error ± its standard error"),
        [row(name, law) for name, law in entry["laws"].items()],
    )


def _noise_table(group: list[dict[str, Any]]) -> Table:
    def row(entry: dict[str, Any]) -> tuple[str, ...]:
        noise = entry["noise_scale"]
        return (
            goal(entry),
            estimate([noise["b_noise"], noise["low"], noise["high"]]),
            number(noise["s_min"]),
            number(noise["e_min"]),
            _peak(entry["b_peak"]),
            noise["why"],
        )

    return Table(
        "Noise scale of S(B), and where the best rate peaks",
        ("to", "B_noise with 95% interval", "S_min, steps", "E_min, examples", "peak at B", "note"),
        [row(entry) for entry in group],
    )


def _peak(peak: dict[str, Any]) -> str:
    if peak["value"] is None:
        return f"none seen, {interval(peak['low'], peak['high'])}" if peak["low"] else "none seen"
    return estimate([peak["value"], peak["low"], peak["high"]])


def provenance(findings: Findings) -> Section:
    """Versions, machine and config."""
    attributes = findings.attributes
    versions = json.loads(attributes.get("versions", "{}"))
    made = [", ".join(f"{name} {version}" for name, version in versions.items())]
    made += [str(attributes[name]) for name in ("devices", "commit", "date") if name in attributes]
    blocks: list[Any] = [Prose("; ".join(filter(None, made)))]
    if "mixed" in attributes:
        text = f"Not all pieces of the sweep were made alike; {attributes['mixed']}"
        blocks.append(Prose(text))
    if "config" in attributes:
        config = json.dumps(json.loads(attributes["config"]), indent=1)
        blocks.append(Fold("Config", [Source(config)]))
    return Section("How this was made", blocks)
