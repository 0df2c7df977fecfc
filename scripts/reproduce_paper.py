"""The paper's claims (arXiv 2405.14578), each judged by intervals computed from the results in
docs/results.

    python scripts/reproduce_paper.py                                   # prints the table and
    writes README.md
    python scripts/reproduce_paper.py --store=moe=runs/moe-quick        # first takes a workdir's
    results
    python scripts/reproduce_paper.py --judge_anew                      # first fits runs again

A claim is *reproduced* where the whole 95% interval lies where the claim has it, *not reproduced*
where none of it does, and otherwise we *cannot tell*.
"""

import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import protocol_page
import protocols
import xarray as xr
from absl import app, flags
from protocols import NO, OPEN, YES, Verdict
from scipy import stats

from surge.cli import parsed
from surge.entries import fit_entry
from surge.report import checkpoint_figures, svg, sweep_figures
from surge.report.drawing import Panel
from surge.theory.comparison import RULED_OUT
from surge.theory.objective import StepsTo
from surge.workdir import files, sweeps

_RESULTS = flags.DEFINE_string("results", "docs/results", "where the stored results are")
_STORE = flags.DEFINE_list(
    "store", [], "NAME=WORKDIR of finished sweeps to take results from first"
)
_PROTOCOL = flags.DEFINE_list(
    "store_protocol", [], "NAME=WORKDIR of MNIST-1D: steps, shared or crossed, to take runs from"
)
_ANEW = flags.DEFINE_bool(
    "judge_anew", False, "fit every stored run again, from its steps.csv.xz, without training"
)
FLAT = 0.25  # a power of B between ± this is flat: half of what √B has
STEPS = "steps.csv.xz"
PROTOCOLS = "mnist1d"  # the folder of runs by every protocol
PEAKED = ("surge", "saturating_surge", "one_law")


def judged(low: float, high: float, least: float, most: float) -> str:
    """Where an interval lies against the range that a claim allows."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return OPEN
    if least <= low and high <= most:
        return YES
    return NO if high < least or low > most else OPEN


def exponent(entry: dict[str, Any], low: int, high: int) -> tuple[float, float, float, int]:
    """d log ε_opt / d log B over optima inside the grid at low <= B <= high: value, 95% interval,
    how many."""
    points = [
        p
        for p in entry["optimal_lr"]
        if low <= p["batch_size"] <= high and p["lr"] and not p["at_edge"]
    ]
    points = [p for p in points if p["low"] and p["high"]]
    if len(points) < 3:
        return math.nan, math.nan, math.nan, len(points)
    x, y = (np.log([p[name] for p in points]) for name in ("batch_size", "lr"))
    weight = 1 / np.maximum(np.log([p["high"] / p["low"] for p in points]) / (2 * 1.96), 0.02) ** 2
    centred = x - np.average(x, weights=weight)
    slope = (weight * centred) @ y / (weight @ centred**2)
    misfit = weight @ (y - np.average(y, weights=weight) - slope * centred) ** 2 / (len(points) - 2)
    reach = stats.t.ppf(0.975, len(points) - 2) * math.sqrt(
        max(misfit, 1.0) / (weight @ centred**2)
    )
    return slope, slope - reach, slope + reach, len(points)


def moves(
    low: int, high: int, least: float, most: float
) -> Callable[[list[dict[str, Any]]], Verdict]:
    """The claim that ε_opt goes as a power of B within [least, most] for low <= B <= high."""

    def judge(entries: list[dict[str, Any]]) -> Verdict:
        value, bottom, top, n = exponent(entries[-1], low, high)
        evidence = (
            f"ε ∝ B^{value:.2f} [{bottom:.2f}, {top:.2f}], n = {n}"
            if n > 2
            else f"{n} optima inside the grid"
        )
        return Verdict(judged(bottom, top, least, most), evidence)

    return judge


def surges(entries: list[dict[str, Any]]) -> Verdict:
    """The claim that ε_opt rises, peaks and falls: the data see both, and no law without a peak
    comes within RULED_OUT of one with it in score. Refuted where that holds the other way round."""
    criteria = {
        name: law["aic"] for name, law in entries[-1]["laws"].items() if law["aic"] is not None
    }
    with_peak = [criterion for name, criterion in criteria.items() if name in PEAKED]
    without = [criterion for name, criterion in criteria.items() if name not in PEAKED]
    if not with_peak or not without:
        return Verdict(
            OPEN, f"{len(entries[-1]['optimal_lr'])} batch sizes are too few for the laws"
        )
    lead = min(without) - min(with_peak)
    peak = entries[-1]["b_peak"]
    seen = None not in (peak["value"], peak["high"])
    verdict = YES if lead > RULED_OUT and seen else NO if lead < -RULED_OUT else OPEN
    shown = f"B_peak {_number(peak['value'])}" if seen else peak["why"].partition(";")[0]
    if peak.get("p_fall") is not None:
        shown += f", p = {peak['p_fall']:.2g} without one"
    return Verdict(verdict, f"{shown}; score of laws without a peak minus with one: {lead:.1f}")


def half_power_suits(entries: list[dict[str, Any]]) -> Verdict:
    """The claim that McCandlish's law with α = 0.5 is also suitable: α's interval holds 0.5 and is
    narrower than 1."""
    law = entries[-1]["laws"].get("mccandlish")
    if not law or not law["params"]:
        return Verdict(OPEN, "too few batch sizes for the law")
    low, high = law["intervals"]["alpha"]
    outside = (low is not None and low > 0.5) or (high is not None and high < 0.5)
    known = None not in (low, high) and high - low < 1
    ends = f"{_number(low)}, {'∞' if high is None else _number(high)}"
    shown = f"α = {law['params']['alpha']:.2f} [{ends}]"
    return Verdict(NO if outside else YES if known else OPEN, shown)


def moves_right(entries: list[dict[str, Any]]) -> Verdict:
    """The claim that B_noise grows as the target loss falls: disjoint intervals at the first and
    last target."""
    first, last = (entry["noise_scale"] for entry in (entries[0], entries[-1]))
    shown = "; ".join(
        f"loss {entry['target_loss']}: {_bounds(scale['b_noise'], scale['low'], scale['high'])}"
        for entry, scale in ((entries[0], first), (entries[-1], last))
    )
    if None in (first["low"], first["high"], last["low"], last["high"]):
        return Verdict(OPEN, shown)
    return Verdict(
        YES if last["low"] > first["high"] else NO if last["high"] < first["low"] else OPEN, shown
    )


def peak_moves_right(entries: list[dict[str, Any]]) -> Verdict:
    """The claim that the peak of ε_opt(B) moves to larger B as the target loss falls: disjoint
    intervals."""
    peaks = [(entry["target_loss"], entry["b_peak"]) for entry in (entries[0], entries[-1])]
    (_, first), (_, last) = peaks
    shown = "; ".join(f"loss {loss}: {_peak(peak)}" for loss, peak in peaks)
    later = None not in (first["high"], last["low"]) and last["low"] > first["high"]
    earlier = None not in (last["high"], first["low"]) and last["high"] < first["low"]
    return Verdict(YES if later else NO if earlier else OPEN, shown)


def validity_near(value: float, factor: float) -> Callable[[xr.Dataset], Verdict]:
    """The claim that the median over parameters of πσ²/2μ² is `value`, within a factor, at the last
    checkpoint."""

    def judge(measured: xr.Dataset) -> Verdict:
        last = measured.isel(checkpoint=-1)
        middle, low, high = (float(each) for each in last.validity.sel(quantile=0.5))
        quarters = (float(last.validity.sel(quantile=each, bound="value")) for each in (0.25, 0.75))
        half = " to ".join(map(_number, quarters))
        median = _bounds(middle, low, high)
        loss = float(last.loss)
        evidence = f"loss {loss:.2g}: median {median}, half of all parameters {half}"
        return Verdict(judged(low, high, value / factor, value * factor), evidence)

    return judge


CHECKPOINTS = (
    "checkpoints"  # in the place of an optimizer: the claim is of what a gradient says there
)
CLAIMS: Sequence[tuple[str, str, str, str, Callable[[Any], Verdict]]] = (
    (
        "1, left",
        "ε_opt falls as B grows, B = 1…12",
        "fashion_mnist",
        "adam",
        moves(1, 12, -math.inf, 0),
    ),
    ("1, left", "the same with β = (0, 0)", "fashion_mnist", "sign", moves(1, 12, -math.inf, 0)),
    (
        "1, right",
        f"ε_opt is flat (within B^±{FLAT}), B = 64…764",
        "fashion_mnist",
        "adam",
        moves(64, 764, -FLAT, FLAT),
    ),
    ("1, right", "the same with β = (0, 0)", "fashion_mnist", "sign", moves(64, 764, -FLAT, FLAT)),
    ("1", "ε_opt(B) has a peak", "fashion_mnist", "adam", surges),
    ("1", "the same with β = (0, 0)", "fashion_mnist", "sign", surges),
    (
        "1",
        "πσ²/2μ² is about 800 (the median within a factor 2)",
        "fashion_mnist",
        CHECKPOINTS,
        validity_near(800, 2),
    ),
    ("2", "B_noise grows as the target loss falls", "fashion_mnist", "adam", moves_right),
    ("2", "the same with β = (0, 0)", "fashion_mnist", "sign", moves_right),
    (
        "2",
        "the peak moves to larger B as the target loss falls",
        "fashion_mnist",
        "adam",
        peak_moves_right,
    ),
    ("2", "the same with β = (0, 0)", "fashion_mnist", "sign", peak_moves_right),
    ("3", "β = (0, 0) follows the surge form", "text", "sign", surges),
    ("3", "β = (.9, .999) follows the surge form", "text", "adam", surges),
    ("3", "McCandlish with α = 0.5 is also suitable, β = (0, 0)", "text", "sign", half_power_suits),
    (
        "3",
        "McCandlish with α = 0.5 is also suitable, β = (.9, .999)",
        "text",
        "adam",
        half_power_suits,
    ),
    (
        "2, on text",
        "B_noise grows as the target loss falls, β = (0, 0)",
        "text",
        "sign",
        moves_right,
    ),
    ("2, on text", "the peak moves to larger B, β = (0, 0)", "text", "sign", peak_moves_right),
    ("2, on text", "the peak moves to larger B, β = (.9, .999)", "text", "adam", peak_moves_right),
    ("4", "the experts follow the surge form", "moe", "adam", surges),
)


def judge(root: Path) -> list[tuple[str, str, str, Verdict]]:
    """(figure, claim, experiment and optimizer, verdict) of every claim, from NAME/fit.json under
    root."""
    rows = []
    for figure, claim, name, optimizer, test in CLAIMS:
        path, verdict = root / name / "fit.json", Verdict(OPEN, "not run here")
        if optimizer == CHECKPOINTS:
            path = path.with_name("validity.json")
            verdict = test(_validity(path)) if path.exists() else verdict
        elif path.exists():
            entries = [
                each for each in files.read_json(path)["fits"] if each["optimizer"] == optimizer
            ]
            entries.sort(key=lambda entry: -entry["target_loss"])
            verdict = test(entries) if entries else verdict
        rows.append((figure, claim, f"{name}, {optimizer}", verdict))
    return rows + protocols.claims(root / PROTOCOLS)


def _count(rows: Sequence[tuple[str, str, str, Verdict]]) -> str:
    """How many verdicts there are of each kind."""
    verdicts = [verdict.verdict for *_, verdict in rows]
    parts = [f"{verdicts.count(kind)} {kind}" for kind in (YES, NO, OPEN)]
    return f"Of {len(rows)} claims: {', '.join(parts)}."


def table(root: Path) -> str:
    """The page: what each verdict rests on, and the figures."""
    rows = judge(root)
    lines = ["# The paper's claims, judged here", "", *protocol_page.findings(root / PROTOCOLS), ""]
    lines += [_count(rows), "", *_introduction(), ""]
    lines += ["| figure | claim | run | verdict | evidence |", "| --- | --- | --- | --- | --- |"]
    for figure, claim, run, (verdict, evidence) in rows:
        lines.append(f"| {figure} | {claim} | {run} | *{verdict}* | {evidence} |")
    if (root / PROTOCOLS).exists():
        lines += [
            "",
            "## MNIST-1D, by every protocol",
            "",
            *protocol_page.lines(root / PROTOCOLS),
            "",
        ]
        lines += [
            f"![{each.stem}]({each.relative_to(root)})"
            for each in sorted((root / PROTOCOLS).glob("*.svg"))
        ]
    for path in sorted(root.glob("*/fit.json")):
        lines += ["", f"## {path.parent.name}", ""]
        lines += [
            f"![{each.stem}]({each.relative_to(root)})"
            for each in sorted(path.parent.glob("*.svg"))
        ]
    return "\n".join(lines) + "\n"


def _introduction() -> list[str]:
    return [
        "Written by `scripts/reproduce_paper.py` from the `fit.json` and `validity.json` of each"
        " run, which figures",
        "are drawn from too; `steps.csv.xz` holds the steps of every run. Intervals are 95%,"
        " verdicts at the lowest loss",
        "unless they compare two. Scales are the `:quick` ones of the configs, on two CPU cores:"
        " far below the",
        "paper's in width, seeds and length, so a verdict is of this scale.",
    ]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _bounds(value: float | None, low: float | None, high: float | None) -> str:
    return f"{_number(value)} [{_number(low)}, {_number(high)}]"


def _peak(peak: dict[str, Any]) -> str:
    if peak["value"] is not None:
        return _bounds(peak["value"], peak["low"], peak["high"])
    return peak["why"].partition(";")[0] + (
        f", above {_number(peak['low'])}" if peak["low"] else ""
    )


def _validity(path: Path) -> xr.Dataset:
    """What `store` took of measure.nc; an end of an interval that JSON has no number for is
    infinite."""
    measured = xr.Dataset.from_dict(files.read_json(path))
    return measured.assign(validity=measured.validity.astype(float).fillna(math.inf))


def store(name: str, workdir: Path, root: Path) -> None:
    """Takes fit.json, steps to every target, and the validity bound from a workdir."""
    fits = files.read_json(workdir / "fit.json")["fits"]
    _write_fits(root / name, fits)
    if (workdir / "measure.nc").exists():
        measured = files.read_dataset(workdir / "measure.nc")[
            ["loss", "step", "validity", "validity_share"]
        ]
        files.write_json(root / name / "validity.json", measured.drop_attrs().to_dict())
    sweep = sweeps.open_sweep(workdir)
    parts = []
    for entry in fits:
        rows = sweeps.rows(sweep, entry["optimizer"], StepsTo(entry["target_loss"]))
        columns = {name: rows[name] for name in ("batch_size", "learning_rate", "seed")}
        labels = {"optimizer": entry["optimizer"], "target_loss": entry["target_loss"]}
        steps = [f"{value:.5g}" for value in rows["steps"]]
        parts.append(pd.DataFrame(labels | columns | {"steps": steps}))
    table = pd.concat(parts).to_csv(index=False, float_format="%.6g")
    protocols.write(root / name / STEPS, table)


def judge_anew(folder: Path) -> None:
    """Writes fit.json from steps.csv.xz: the fits of today of runs that were trained before."""
    table = pd.read_csv(folder / STEPS)
    fits = []
    for (optimizer, target), own in table.groupby(["optimizer", "target_loss"], sort=False):
        names = ("batch_size", "learning_rate", "seed")
        rows = {name: own[name].to_numpy(float) for name in names}
        rows["value"] = np.log(own.steps.to_numpy(float))
        labels = {"optimizer": optimizer, "target_loss": target}
        fits.append(fit_entry(rows, "steps", **labels))
    _write_fits(folder, fits)


def _write_fits(folder: Path, fits: Sequence[dict[str, Any]]) -> None:
    """On one line: indents would be a third of the file."""
    content = json.dumps({"fits": files.finite_or_none(fits)}, separators=(",", ":"))
    files.write_bytes(folder / "fit.json", content.encode() + b"\n")


def draw(folder: Path) -> None:
    """Pictures of one stored run, each optimizer's at its lowest target."""
    name = folder.name
    panels = {}
    if (folder / "validity.json").exists():
        measured = _validity(folder / "validity.json")
        told = f"{name}: up to which batch size the small-batch law holds"
        panels["validity"] = Panel(told, partial(checkpoint_figures.validity, measured=measured))
    fits = files.read_json(folder / "fit.json")["fits"]
    for optimizer in dict.fromkeys(entry["optimizer"] for entry in fits):
        entries = [entry for entry in fits if entry["optimizer"] == optimizer]
        lowest = min(entries, key=lambda entry: entry["target_loss"])
        optima = partial(sweep_figures.optimal_lr, entry=lowest)
        panels[optimizer] = Panel(f"{name}, {optimizer}: best learning rate", optima)
    for file, panel in panels.items():
        picture = svg.standalone(svg.element(panel, file))
        files.write_bytes(folder / f"{file}.svg", picture.encode())


def draw_face(root: Path) -> None:
    """The picture of the project's README: Adam on MNIST-1D, as predict_sweep.py stores it."""
    path = root / "predictions" / "mnist1d-fit.json"
    if not path.exists():
        return
    [entry] = [fit for fit in files.read_json(path)["fits"] if fit["optimizer"] == "adam"]
    told = "Adam on MNIST-1D: best learning rate against batch size"
    panel = Panel(told, partial(sweep_figures.optimal_lr, entry=entry))
    picture = svg.standalone(svg.element(panel, "mnist1d-adam"))
    files.write_bytes(root.parent / "mnist1d-adam.svg", picture.encode())


def main(argv: list[str]) -> None:
    del argv
    root = Path(_RESULTS.value)
    for each in _STORE.value:
        name, _, workdir = each.partition("=")
        store(name, Path(workdir), root)
    for path in sorted(root.glob("*/fit.json")):
        if _ANEW.value:
            judge_anew(path.parent)
        draw(path.parent)
    for each in _PROTOCOL.value:
        name, _, workdir = each.partition("=")
        protocols.store(name, Path(workdir), root / PROTOCOLS)
    if _PROTOCOL.value or _ANEW.value:
        protocols.judge(root / PROTOCOLS)
    protocol_page.draw(root / PROTOCOLS)
    draw_face(root)
    page = table(root)
    files.write_bytes(root / "README.md", page.encode())
    print(page)


if __name__ == "__main__":
    app.run(main, flags_parser=parsed)
