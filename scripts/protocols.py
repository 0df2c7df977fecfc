"""What the best learning rate is best for: the steps to a loss, or the fall from it, by protocol.

Runs of one task under several protocols are stored as a table each, fitted again from it, and
judged with κ of checkpoints beside: `scripts/reproduce_paper.py --store_protocol=NAME=WORKDIR`.
"""

import json
import lzma
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from surge.config import check
from surge.entries import fit_entry
from surge.theory.comparison import SEEN
from surge.theory.objective import FallAfter, LossAfter, Objective
from surge.workdir import files, sweeps

CELL = ["optimizer", "batch_size", "learning_rate", "seed"]
YES, NO, OPEN = "reproduced", "not reproduced", "cannot tell"
PEAK, PLATEAU, RISE = "a peak", "a plateau", "a rise"
VAGUE = 0.5  # standard error of log ε_opt, from which on an optimum says nothing
CHANCE = 0.01  # of a fall where there is none: of a table of so many, hardly one
UNREAD = ("basins", "noise_scale", "remaining")  # of an entry, and too long to be kept
TENTH = 10  # one seed in so many is left out to see whether a verdict stands
FORMS = {
    "first": "first crossing, as the paper has it",
    "half": "crossing and fall on two halves",
    "mean": "crossing of a running mean",
    "shared": "all from one state",
}


class Verdict(NamedTuple):
    """One of reproduced, not reproduced, cannot tell; and the numbers that say so."""

    verdict: str
    evidence: str


class Seen(NamedTuple):
    """What one curve shows.

    Attributes:
      shape: PEAK, PLATEAU, RISE or OPEN.
      top: batch size of the highest optimum.
      fall: ε_opt there over that at the largest batch size, with its 95% interval.
      p_fall: of such a fall by chance.
    """

    shape: str
    top: float
    fall: tuple[float, float, float]
    p_fall: float


def column(objective: Objective) -> str:
    """The name of a curve's column: the loss, and for a fall its steps and crossing."""
    if isinstance(objective, FallAfter | LossAfter):
        return f"{objective.target_loss:g}/{objective.steps}/{objective.crossing}"
    return f"{objective.target_loss:g}"


def store(name: str, workdir: Path, folder: Path) -> None:
    """Takes the value of every run by every objective of a sweep, and κ where it was measured."""
    if (workdir / "sweep").exists():
        sweep = sweeps.open_sweep(workdir)
        experiment = check(json.loads(sweep.attrs["config"]))
        parts = []
        for optimizer in map(str, sweep.optimizer.values):
            curves = {
                column(objective): sweeps.rows(sweep, optimizer, objective)
                for objective in experiment.objectives
            }
            cells = {key: next(iter(curves.values()))[key] for key in CELL[1:]}
            values = {curve: rows["value"] for curve, rows in curves.items()}
            parts.append(pd.DataFrame({"optimizer": optimizer} | cells | values))
        table = pd.concat(parts).sort_values(CELL)
        text = table.to_csv(index=False, float_format="%.4g")
        write(folder / f"{name}.csv.xz", text)
    if (workdir / "measure.nc").exists():
        measured = files.read_dataset(workdir / "measure.nc")
        kept = measured[["loss", "kappa", "peak_over_plateau", "expected_b_peak"]].drop_attrs()
        content = json.dumps(files.finite_or_none(kept.to_dict()), separators=(",", ":"))
        files.write_bytes(folder / "kappa.json", content.encode() + b"\n")


def judge(folder: Path) -> None:
    """Fits every stored curve anew, and once more without a tenth of its seeds."""
    entries = []
    for path in sorted(folder.glob("*.csv.xz")):
        table = pd.read_csv(path)
        for optimizer, own in table.groupby("optimizer"):
            for curve in own.columns[len(CELL) :]:
                entry = _entry(own, curve, str(optimizer), path.name.partition(".")[0])
                fewer = _entry(own[own.seed % TENTH != TENTH - 1], curve, "", "")
                entry["fragile"] = seen(fewer).shape != seen(entry).shape
                laws = {name: {"params": law["params"]} for name, law in entry["laws"].items()}
                kept = {key: entry[key] for key in entry if key not in UNREAD}
                entries.append(kept | {"laws": laws})
    write(folder / "fits.json.xz", json.dumps(entries))


def _entry(table: pd.DataFrame, curve: str, optimizer: str, protocol: str) -> dict[str, Any]:
    rows = {name: table[name].to_numpy() for name in CELL[1:]}
    rows["value"] = table[curve].to_numpy(float)
    loss, *fall = curve.split("/")
    labels: dict[str, Any] = {"protocol": protocol, "optimizer": optimizer}
    labels["target_loss"] = float(loss)
    if fall:
        labels |= {"horizon": int(fall[0]), "crossing": fall[1]}
    return fit_entry(rows, "fall" if fall else "steps", **labels)


def read(folder: Path) -> list[dict[str, Any]]:
    """The stored entries; none where there is no such folder."""
    path = folder / "fits.json.xz"
    return json.loads(lzma.decompress(path.read_bytes())) if path.exists() else []


def seen(entry: dict[str, Any]) -> Seen:
    """The shape that the data show, and how far ε_opt falls."""
    known = optima(entry)
    if len(known) < 2:
        return Seen(OPEN, math.nan, (math.nan,) * 3, math.nan)
    top = max(known, key=lambda point: point["lr"])
    last = known[-1]
    error = math.hypot(top["error"], last["error"]) if top is not last else 0.0
    ratio = top["lr"] / last["lr"]
    ends = tuple(ratio * math.exp(sign * 1.96 * error) for sign in (-1, 1))
    p_fall = entry["p_fall"]
    shape = OPEN
    if p_fall is not None and p_fall <= CHANCE:
        shape = PEAK if ends[0] > 1 else OPEN
    elif p_fall is not None and p_fall > SEEN:
        shape = _without_a_fall(entry, last["batch_size"])
    return Seen(shape, top["batch_size"], (ratio, *ends), math.nan if p_fall is None else p_fall)


def optima(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """The batch sizes whose optimum lies inside its rates, and is known at all."""
    points = [point for point in entry["optimal_lr"] if point["error"] and not point["bound"]]
    return [point for point in points if point["error"] <= VAGUE]


def _without_a_fall(entry: dict[str, Any], last: float) -> str:
    """A law that is named is so to a factor of 1.2 within the data."""
    law = entry["best_law"]
    knee = entry["laws"][law]["params"].get("b_knee") if law else None
    if entry["plateau"]["decided"] or (knee and knee <= last / 2):
        return PLATEAU
    return RISE if law else OPEN


def fold(found: Seen) -> str:
    """How far ε_opt falls, with its interval."""
    value, low, high = found.fall
    return f"{value:.2f} [{low:.2f}, {high:.2f}] times"


def claims(folder: Path) -> list[tuple[str, str, str, Verdict]]:
    """(figure, claim, run, verdict) of what the paper says of β = (0, 0) and (.9, .999)."""
    rows = []
    entries = read(folder)
    for entry in entries:
        if entry.get("crossing") not in ("shared", "first"):
            continue
        form = FORMS[entry["crossing"]]
        claim = f"ε_opt(B) has a peak, K = {entry['horizon']}, {form}"
        run = f"{folder.name}, {entry['optimizer']}"
        found = seen(entry)
        verdict = {PEAK: YES, PLATEAU: NO, RISE: NO, OPEN: OPEN}[found.shape]
        evidence = f"top at {found.top:,}, {fold(found)} the rate at the largest B"
        evidence += f", p = {found.p_fall:.2g} without a fall"
        evidence += "; fragile" if entry["fragile"] else ""
        rows.append(("1, 3", claim, run, Verdict(verdict, evidence)))
    for optimizer in dict.fromkeys(entry["optimizer"] for entry in entries):
        own = [
            entry
            for entry in entries
            if entry["optimizer"] == optimizer and entry.get("crossing") == "shared"
        ]
        if len(own) > 1:
            rows.append(_moves_with_steps(folder.name, optimizer, own))
    return rows


def _moves_with_steps(
    name: str, optimizer: str, entries: Sequence[dict[str, Any]]
) -> tuple[str, str, str, Verdict]:
    """Whether the peak moves to larger B as K grows: not the paper's claim, but what its K asks."""
    ordered = sorted(entries, key=lambda entry: entry["horizon"])
    first, last = (entry["b_peak"] for entry in (ordered[0], ordered[-1]))
    told = "; ".join(
        f"K = {entry['horizon']}: B_peak in [{entry['b_peak']['low'] or 0:g}, "
        f"{entry['b_peak']['high'] or math.inf:g}]"
        for entry in ordered
    )
    later = first["high"] is not None and (last["low"] or 0) >= first["high"]
    earlier = last["high"] is not None and (first["low"] or 0) >= last["high"]
    verdict = YES if later else NO if earlier else OPEN
    claim = "(not in the paper) the peak moves to larger B as K grows"
    return "–", claim, f"{name}, {optimizer}", Verdict(verdict, told)


def kappas(folder: Path) -> Iterable[tuple[str, float, str, tuple[float, float, float]]]:
    """(optimizer, loss of its checkpoint, reading, predicted peak/plateau with its interval)."""
    path = folder / "kappa.json"
    if not path.exists():
        return
    measured = files.read_json(path)
    losses = measured["data_vars"]["loss"]["data"]
    names = measured["coords"]["optimizer"]["data"]
    readings = measured["coords"]["reading"]["data"]
    values = measured["data_vars"]["peak_over_plateau"]["data"]
    for loss, by_optimizer in zip(losses, values, strict=True):
        for name, by_reading in zip(names, by_optimizer, strict=True):
            for reading, bounds in zip(readings, by_reading, strict=True):
                yield name, loss, reading, tuple(bounds)


def pairs(folder: Path) -> list[tuple[dict[str, Any], str, tuple[float, float, float]]]:
    """Each curve with what κ of the checkpoint at its loss predicts, in each reading."""
    found = []
    predicted = list(kappas(folder))
    for entry in read(folder):
        near = [
            (reading, bounds)
            for name, loss, reading, bounds in predicted
            if name == entry["optimizer"]
            and abs(loss - entry["target_loss"]) < 0.1
            and None not in bounds
        ]
        found += [(entry, reading, bounds) for reading, bounds in near]
    return found


def write(path: Path, text: str) -> None:
    """Packed, the same bytes for the same text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(path, lzma.compress(text.encode(), preset=9))
