"""The first part of a page: what was measured, and what came out of it."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import xarray as xr

from surge.report import provenance, sweep_figures, verdicts
from surge.report.drawing import Panel
from surge.report.findings import Findings, Move
from surge.report.formats import DASH, count, estimate, listed, number
from surge.report.markup import Drawing, Fold, Prose, Section, Table
from surge.report.reading import (
    Entry,
    bound,
    judged,
    optima,
    outside,
    phrase,
    rate,
    representative,
    standing,
)

RULES = {"sqrt": "by √B", "linear": "linear", "constant": "unchanged"}
FEW = 4  # optimizers or groups that are shown at once; the others are folded


def answer(findings: Findings) -> Section:
    """What was measured, and what came out: a sentence, tables and a panel for each optimizer."""
    chosen = [*representative(findings.entries).items()]
    blocks: list[Any] = [Prose(line, "note") for line in provenance.overview(findings)]
    blocks += [Prose(line, "warning") for line in _warnings(findings)]
    if "together" in findings.about:
        blocks.append(Prose(findings.about["together"], "answer", "all groups together"))
    for start in range(0, len(chosen), FEW):
        part = dict(chosen[start : start + FEW])
        told = _answers(part, findings.measured)
        blocks += [Fold(listed(part), told)] if start else told
    if findings.moves:
        blocks.append(_moves_table(findings.moves))
    return Section("What was found", blocks)


def _warnings(findings: Findings) -> list[str]:
    """What a reader must know before the numbers: what is missing, how a table was read."""
    said = []
    missing = findings.about.get("missing", ())
    if missing:
        which = listed(missing) if len(missing) <= FEW else f"{listed(missing[:FEW])}, and more"
        said.append(
            f"The sweep is incomplete: {len(missing)} of its pieces are missing ({which}). What "
            "follows is of the others; run the stages sweep, fit and report for the rest."
        )
    remarks = [entry["remark"] for entry in findings.entries if entry.get("remark")]
    remarks += findings.about.get("remarks", ())
    return said + [f"{remark[:1].upper()}{remark[1:]}." for remark in dict.fromkeys(remarks)]


def _answers(chosen: dict[str, Entry], measured: xr.Dataset | None) -> list[Any]:
    """Sentences, tables and panels of a few optimizers."""
    blocks: list[Any] = []
    for optimizer, entry in chosen.items():
        said = (
            verdicts.answer(entry),
            verdicts.kappa(entry),
            verdicts.expectation(measured, optimizer),
        )
        blocks.append(Prose(" ".join(filter(None, said)), "answer", optimizer))
    blocks += [rates_table(chosen), _surges_table(chosen, measured)]
    panels = [rates_panel(name, entry) for name, entry in chosen.items() if optima(entry)]
    if panels:
        blocks.append(Drawing(panels, BANDS))
    return blocks


BANDS = (
    "Blue: the laws that the data do not rule out, in a band, and their mean by Akaike weights as "
    "a heavy line; gray: those that are ruled out."
)


def rates_panel(optimizer: str, entry: Entry) -> Panel:
    """The best rate against batch size, with the laws."""
    return Panel(
        f"{optimizer}: best learning rate",
        partial(sweep_figures.optimal_lr, entry=entry),
        _rates_caption(entry),
        f"best-rate-{optimizer}",
    )


def _rates_caption(entry: Entry) -> str:
    """What is seen in this panel: how many optima, judged by what, and which laws remain."""
    points = optima(entry)
    beyond = sum(outside(point) for point in points)
    said = f"{len(points)} batch sizes by {judged(entry)}, with 95% intervals"
    if beyond:
        arrows = "arrows" if any(map(bound, points)) else "open circles"
        said += f" ({beyond} beyond the rates that were tried: {arrows})"
    return f"{said}; {remaining(entry)}."


def remaining(entry: Entry) -> str:
    """The laws that are not ruled out."""
    names = [phrase(name) for name in standing(entry)]
    if not names:
        return "no law could be judged"
    if len(names) == len(entry["laws"]):
        return "no law is ruled out"
    return f"of {len(entry['laws'])} laws {listed(names)} {'remain' if names[1:] else 'remains'}"


def rates_table(chosen: dict[str, Entry]) -> Table:
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


def _surges_table(chosen: dict[str, Entry], measured: xr.Dataset | None) -> Table:
    """κ and the peak of each optimizer, by the sweep and by a checkpoint."""

    def row(optimizer: str, entry: Entry) -> tuple[str, ...]:
        law = verdicts.kappa_law(entry)
        checkpoint = verdicts.kappa_row(measured, optimizer)
        return (
            optimizer,
            DASH if law is None else verdicts.bounded(law, "kappa").removeprefix("= "),
            DASH if law is None else estimate(law["derived"]["peak_over_plateau"]),
            "" if checkpoint is None else estimate(checkpoint.kappa.values),
            peak_cell(entry),
        )

    header = (
        "optimizer",
        "κ from the sweep",
        "peak / rate at large B",
        "κ at a checkpoint",
        "peak at B",
    )
    rows = [row(optimizer, entry) for optimizer, entry in chosen.items()]
    return Table(
        "Will the rate fall again? It does for κ below ½, the more the smaller", header, rows
    )


def peak_cell(entry: Entry) -> str:
    """Where the best rate is highest, as a cell of a table."""
    peak = entry["b_peak"]
    if peak["value"] is not None:
        return f"{number(peak['value'])} {verdicts.between(peak['low'], peak['high'])}"
    return f"none seen up to {count(peak['low'])}" if peak["low"] else "none seen"


def _moves_table(moves: Sequence[Move]) -> Table:
    rules = [*dict.fromkeys(rule for move in moves for rule in move.rules)]
    rows = [
        (
            move.optimizer,
            f"{count(move.from_batch_size)} → {count(move.to_batch_size)}",
            number(move.from_lr),
            estimate(move.lr, move.why or DASH),
            *(number(move.rules.get(rule)) for rule in rules),
        )
        for move in moves
    ]
    return Table(
        "What becomes of the rate with the batch size, by all that is known; and by rules of thumb",
        (
            "optimizer",
            "batch size",
            "from rate",
            "to rate, 95% interval",
            *(RULES.get(rule, rule) for rule in rules),
        ),
        rows,
    )
