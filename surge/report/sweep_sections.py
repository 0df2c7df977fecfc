"""The part of a page on each optimizer that was swept: the map of the loss, data against time."""

from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from surge.report import loss_map, sweep_figures, verdicts
from surge.report.answer import peak_cell
from surge.report.drawing import Panel
from surge.report.findings import Findings
from surge.report.formats import DASH, count, estimate, listed, number
from surge.report.loss_map import LossMap
from surge.report.markup import Drawing, Fold, Prose, Section, Table
from surge.report.reading import (
    Entry,
    Point,
    goal,
    judged,
    optima,
    phrase,
    plain,
    rate,
    standing,
    symbol,
)
from surge.workdir import sweeps

LAW_STATES = {True: "stands", False: "ruled out"}


def optimizer(
    findings: Findings, name: str, entry: Entry, group: list[Entry], *, lean: bool = False
) -> Section:
    """Everything that the sweep says of one optimizer.

    Args:
      findings: of the workdir.
      name: of the optimizer.
      entry: its fit that the page leads with.
      group: its fits at all targets.
      lean: one of many, without the map and the laws that are ruled out.
    """
    by_steps = entry["judged_by"] == "steps"
    blocks: list[Any] = [Prose(f"{verdicts.peak(entry)} {verdicts.winner(entry)}")]
    cells = None if lean else loss_cells(findings.sweep, name, entry["target_loss"])
    if cells is None and not lean:
        text = "No map of the loss: no sweep of it is here, or every run diverged."
        blocks.append(Prose(text, "note"))
    panels = [_basins_panel(name, entry)] if _any_known(entry) else []
    if cells is not None:
        panels.append(_map_panel(name, cells, entry))
    if by_steps and any(optima(other) for other in group):
        panels += _target_panels(name, group)
    if panels:
        blocks.append(Drawing(panels))
    laws = {law: entry["laws"][law] for law in standing(entry)} if lean else entry["laws"]
    blocks += [_optima_table(name, [entry]), _laws_table(name, entry, laws)]
    if by_steps:
        blocks += [_noise_table(name, group)]
        blocks += [Fold("The best rate at each target", [_optima_table(name, group)])]
    if cells is not None:
        blocks.append(Fold("Loss of every cell", [_loss_table(name, cells)]))
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


def _map_panel(name: str, cells: LossMap, entry: Entry) -> Panel:
    return Panel(
        "Loss over batch size and learning rate",
        partial(loss_map.loss_map, cells=cells, entry=entry),
        _map_caption(cells, entry),
        f"{name}-map",
    )


def _any_known(entry: Entry) -> bool:
    """Whether any run counts; an earlier version did not store what was seen."""
    return any(value is not None for part in entry.get("basins", ()) for value in part["value"])


def _basins_panel(name: str, entry: Entry) -> Panel:
    seen = entry["basins"]
    fitted = sum(part["curve"] is not None for part in seen)
    failed = sum(map(sum, (part["failed"] for part in seen)))
    what = judged(entry)
    told = f"; {count(failed)} runs that failed are left out" if failed else ""
    return Panel(
        f"{what[0].upper()}{what[1:]} against learning rate",
        partial(sweep_figures.basins, entry=entry),
        f"Means over seeds at each rate, and the basins fitted to {fitted} of {len(seen)} batch "
        f"sizes, from the smallest to the largest; rings: the best rates{told}.",
        f"{name}-basins",
    )


def _map_caption(cells: LossMap, entry: Entry) -> str:
    """When the losses were taken, and what became of how many cells."""
    when = "at the end of the runs"
    if entry["judged_by"] == "steps":
        when = f"where the first rate of each batch size gets to {goal(entry)}"
    known = int(np.isfinite(cells.loss).sum())
    diverged = int((cells.diverged & np.isnan(cells.loss)).sum())
    absent = cells.loss.size - known - diverged
    others = {"diverged in every run": diverged, "were not run": absent}
    told = [f"{number} {what}" for what, number in others.items() if number]
    law = loss_map.shown_law(entry)
    dashed = f"; dashed: {phrase(law)}" if law else ""
    return (
        f"Mean loss over seeds {when}, in {known} cells{'; ' if told else ''}{listed(told)}. "
        f"Losses of the upper quartile have one color. Rings: the best rates{dashed}."
    )


def _target_panels(name: str, group: list[Entry]) -> list[Panel]:
    goals = listed(goal(entry) for entry in group)
    fitted = sum(bool(entry["noise_scale"]["b_noise"]) for entry in group)
    curves = "a hyperbola each" if fitted == len(group) else f"{fitted} of {len(group)} with a fit"
    return [
        Panel(
            "Data against time",
            partial(sweep_figures.data_against_time, entries=group),
            f"Steps against examples to {goals}, at the best rate of each batch size; {curves}.",
            f"{name}-data-against-time",
        ),
        Panel(
            "The best rate at each target",
            partial(sweep_figures.optimal_lr_by_target, entries=group),
            f"Does the best rate move as training goes on? To {goals}, with 95% intervals.",
            f"{name}-targets",
        ),
    ]


def _optima_table(name: str, entries: list[Entry]) -> Table:
    by_steps = entries[0]["judged_by"] == "steps"

    def row(entry: Entry, point: Point) -> tuple[str, ...]:
        cells = (count(point["batch_size"]), rate(point))
        if by_steps:
            cells += (number(point["steps"]), number(point["examples"]))
        named = (goal(entry), *cells) if several else cells
        return *named, point.get("why", "")

    several = len(entries) > 1
    header = ["batch size", "best rate with 95% interval"]
    header += ["steps", "examples"] if by_steps else []
    return Table(
        f"{name}: the best rate of each batch size"
        + (" at each target" if several else f", by {judged(entries[0])}"),
        [*(["to"] if several else []), *header, "note"],
        [row(entry, point) for entry in entries for point in entry["optimal_lr"]],
    )


def _loss_table(name: str, cells: LossMap) -> Table:
    def cell(rate: float, size: int) -> str:
        place = {"learning_rate": rate, "batch_size": size}
        loss = float(cells.loss.sel(place))
        if np.isfinite(loss):
            return number(loss)
        return "diverged" if bool(cells.diverged.sel(place)) else ""

    sizes = cells.loss.batch_size.values.tolist()
    return Table(
        f"{name}: mean loss over seeds; an empty cell was not run",
        ("learning rate", *(f"B = {count(size)}" for size in sizes)),
        [
            (number(rate), *(cell(rate, size) for size in sizes))
            for rate in cells.loss.learning_rate.values.tolist()
        ],
    )


def _laws_table(name: str, entry: Entry, laws: dict[str, Any]) -> Table:
    weights = standing(entry)

    def row(law_name: str, law: dict[str, Any]) -> tuple[str, ...]:
        held_out = number(law.get("held_out_rmse_log"))
        if law.get("held_out_se") is not None:  # a fit.json of an earlier version has none
            held_out += f" ± {number(law['held_out_se'], 2)}"
        judgement = "not judged" if law.get("aic") is None else LAW_STATES[law_name in weights]
        weight = f"{weights[law_name]:.2f}" if law_name in weights else DASH
        return plain(law_name), judgement, weight, _parameters(law), number(law["aic"]), held_out

    scored = any("score" in law for law in laws.values())
    return Table(
        f"{name}: laws fitted to the best rates, with 95% intervals; held-out error in log rate",
        (
            "law",
            "verdict",
            "weight",
            "parameters",
            "χ² + 2k" if scored else "AICc",
            "held-out error ± its standard error",
        ),
        [row(*item) for item in laws.items()],
    )


def _parameters(law: dict[str, Any]) -> str:
    """Parameters and what follows from them, each with its interval."""
    told = {
        name: estimate([value, *law["intervals"][name]]) for name, value in law["params"].items()
    }
    told |= {name: estimate(bounds) for name, bounds in law.get("derived", {}).items()}
    for name, why in law.get("open", {}).items():
        told[name] += f" ({why})"
    return ", ".join(f"{symbol(name)} = {value}" for name, value in told.items())


def _noise_table(name: str, group: list[Entry]) -> Table:
    def row(entry: Entry) -> tuple[str, ...]:
        noise = entry["noise_scale"]
        return (
            goal(entry),
            estimate([noise["b_noise"], noise["low"], noise["high"]]),
            number(noise["s_min"]),
            number(noise["e_min"]),
            peak_cell(entry),
            noise["why"],
        )

    return Table(
        f"{name}: noise scale of S(B), and where the best rate peaks",
        ("to", "B_noise with 95% interval", "S_min, steps", "E_min, examples", "peak at B", "note"),
        [row(entry) for entry in group],
    )
