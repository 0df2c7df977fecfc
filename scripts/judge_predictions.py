"""Judges every rule that predicts a sweep, from what is committed: nothing is trained.

    python scripts/judge_predictions.py                  # docs/results/predictions, in place
    python scripts/judge_predictions.py --results=DIR

Reads NAME-predictions.json (written before the sweep) and NAME-runs.csv (the steps of every run of
that sweep to each target loss) of `scripts/predict_sweep.py`; writes NAME-fit.json, judgement.json
and README.md beside them. Each row of the judgement asks: with the learning rate tuned at B0, how
far off is the rule's ε_opt(B)/ε_opt(B0)? The swept optima have errors of their own, so a perfect
rule would not read 1 either: what it would read stands beside every number.
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from absl import app, flags

from surge.cli import parsed
from surge.entries import fit_entry
from surge.theory.rules import RULES, Known, kind_of
from surge.workdir import files

LATER = ("surge, then flat", "halfway", "one law over a run")  # rules that came after the sweeps
SQRT_2 = math.sqrt(2)
DRAWS = 4_000  # of the noise of a perfect rule
ADAM_GAIN = (1 - 0.9) / (1 + 0.9)  # noise gain of β1 = 0.9, with which all sweeps of Adam were run
ARRIVES = "arrives"
FAILS = "fails"
BEYOND = "off the grid"


class Swept(NamedTuple):
    """What one sweep says of one optimizer: its runs, and the entry of fit.json at its target."""

    runs: dict[str, np.ndarray]
    entry: dict[str, Any]


def read_runs(path: Path, optimizer: str, target: float) -> dict[str, np.ndarray]:
    """One optimizer's runs: batch_size, learning_rate, seed, value (log steps to a target)."""
    table = pd.read_csv(path)
    chosen = table[table.optimizer == optimizer]
    steps = chosen[f"steps_{target:g}"].to_numpy(float)
    rows = {name: chosen[name].to_numpy() for name in ("batch_size", "learning_rate", "seed")}
    return rows | {"value": np.log(steps)}


def sweeps_of(name: str, results: Path, targets: Iterable[float]) -> dict[str, Swept]:
    """optimizer -> what the sweep says at the middle one of the target losses."""
    path = results / f"{name}-runs.csv"
    losses = list(targets)
    middle = losses[len(losses) // 2]
    swept = {}
    for optimizer in pd.read_csv(path).optimizer.unique():
        runs = read_runs(path, optimizer, middle)
        entry = fit_entry(runs, "steps", optimizer=str(optimizer), target_loss=middle)
        swept[str(optimizer)] = Swept(runs, entry)
    return swept


def regret(runs: Mapping[str, np.ndarray], batch_size: float, rate: float) -> tuple[str, float]:
    """What a learning rate comes to, and its log steps to the target, between the rates beside it.

    Returns:
      ARRIVES and the mean log steps; FAILS where any of the runs beside it does not get there, or
      BEYOND outside the grid, and nan.
    """
    chosen = runs["batch_size"] == batch_size
    rates = np.unique(runs["learning_rate"][chosen])
    if not rates[0] <= rate <= rates[-1]:
        return BEYOND, math.nan
    cells = [runs["value"][chosen & (runs["learning_rate"] == one)].mean() for one in rates]
    above = int(np.searchsorted(rates, rate))
    near = [cells[above]] if rates[above] == rate else cells[above - 1 : above + 1]
    if not np.isfinite(near).all():
        return FAILS, math.nan
    return ARRIVES, float(np.interp(np.log(rate), np.log(rates), np.nan_to_num(cells)))


def known(stored: Mapping[str, Any], optimizer: str) -> Known:
    """What the checkpoint of stored predictions told of one optimizer."""
    rules = stored["ratios"][optimizer]
    sizes = [float(size) for size in rules["constant"]]
    kind = kind_of(optimizer)
    return Known(
        kind,
        b_simple=stored["b_simple"],
        sizes=sizes,
        independent=_curve(rules["independent law"]),
        measured=_curve(rules["measured, K = 1"]),
        noise_gain=ADAM_GAIN if kind == "adam" else 1.0,
    )


def _curve(ratios: Mapping[str, float | None]) -> list[float]:
    return [math.nan if ratio is None else ratio for ratio in ratios.values()]


def answers(stored: Mapping[str, Any], optimizer: str) -> dict[str, dict[float, float]]:
    """rule -> {B: ε(B)/ε(B0)}: those that were written before, and those of LATER."""
    written = {
        rule: {float(size): math.nan if ratio is None else ratio for size, ratio in curve.items()}
        for rule, curve in stored["ratios"][optimizer].items()
    }
    facts = known(stored, optimizer)
    sizes = list(written["constant"])
    later = {
        rule: {size: math.exp(RULES[rule](size, stored["base"], facts)) for size in sizes}
        for rule in LATER
    }
    return written | later


def judge(name: str, stored: Mapping[str, Any], swept: Mapping[str, Swept]) -> list[dict[str, Any]]:
    """One row for each optimizer, rule and batch size whose swept optimum lies inside the grid.

    Args:
      name: of the experiment.
      stored: its predictions.
      swept: what its sweep says of each optimizer.
    """
    table = []
    for optimizer, sweep in swept.items():
        optima = {
            float(point["batch_size"]): point
            for point in sweep.entry["optimal_lr"]
            if point["lr"] and not point["bound"] and point["error"]
        }
        base = optima.pop(float(stored["base"]), None)
        if base is None:
            continue
        for rule, curve in answers(stored, optimizer).items():
            for size, point in optima.items():
                outcome, steps = regret(sweep.runs, size, base["lr"] * curve[size])
                ratio = point["lr"] / base["lr"]
                table.append(
                    {
                        "experiment": name,
                        "optimizer": optimizer,
                        "rule": rule,
                        "base": stored["base"],
                        "batch_size": size,
                        "predicted": curve[size],
                        "swept": ratio,
                        "log_error": math.log(curve[size] / ratio),
                        "noise": math.hypot(point["error"], base["error"]),
                        "outcome": outcome,
                        "regret": math.expm1(steps - math.log(point["steps"])),
                    }
                )
    return files.finite_or_none(table)


def perfect(rows: Iterable[Mapping[str, Any]]) -> tuple[float, float]:
    """Median factor off and share within √2 that a rule without error would read on these moves."""
    noise = np.array([row["noise"] for row in rows])
    off = np.abs(np.random.default_rng(0).standard_normal((DRAWS, len(noise))) * noise)
    return float(np.exp(np.median(off))), float((off <= math.log(SQRT_2)).mean())


def answered(table: Iterable[Mapping[str, Any]], rule: str) -> list[Mapping[str, Any]]:
    """Rows of a rule that have an answer."""
    return [row for row in table if row["rule"] == rule and row["log_error"] is not None]


def factors(rows: Iterable[Mapping[str, Any]]) -> np.ndarray:
    """Factors off, at least 1."""
    return np.exp(np.abs([row["log_error"] for row in rows]))


def extra_steps(rows: Iterable[Mapping[str, Any]]) -> list[float]:
    """Extra steps of the rows whose rate is on the grid, infinite where runs fail."""
    steps = {FAILS: math.inf}
    return [steps.get(row["outcome"], row["regret"]) for row in rows if row["outcome"] != BEYOND]


def summary(table: Iterable[Mapping[str, Any]]) -> list[str]:
    """Markdown: for each rule its answers, factors off, the share within √2, and what it costs."""
    rows = list(table)
    lines = [
        "| rule | answers | median factor off | worst | within √2 | median extra steps "
        "| runs that fail | off the grid |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for rule in dict.fromkeys(row["rule"] for row in rows):
        asked = sum(row["rule"] == rule for row in rows)
        lines.append(_summary_line(rule, asked, answered(rows, rule)))
    median, share = perfect(answered(rows, "constant"))
    return [*lines, f"| *a perfect rule* | | {median:.2f} | | {share:.0%} | 0% | | |"]


def _summary_line(rule: str, asked: int, rows: list[Mapping[str, Any]]) -> str:
    title = f"{rule} ¹" if rule in LATER else rule
    if not rows:
        return f"| {title} | 0 of {asked} | – | – | – | – | – | – |"
    off = factors(rows)
    steps = extra_steps(rows)
    middle = np.median(steps) if steps else math.nan
    cost = f"{middle:.0%}" if math.isfinite(middle) else "∞" if steps else "–"
    fails = sum(row["outcome"] == FAILS for row in rows)
    beyond = sum(row["outcome"] == BEYOND for row in rows)
    return (
        f"| {title} | {len(rows)} of {asked} | {np.median(off):.2f} | {off.max():.2f} "
        f"| {(off <= SQRT_2).mean():.0%} | {cost} | {fails} | {beyond} |"
    )


GROUPS = {  # of moves -> (rows that belong to it)
    "Adam": lambda row: kind_of(row["optimizer"]) == "adam",
    "sign descent": lambda row: kind_of(row["optimizer"]) == "sign",
    "SGD": lambda row: kind_of(row["optimizer"]) == "sgd",
    "moves up": lambda row: row["batch_size"] > row["base"],
    "moves down": lambda row: row["batch_size"] < row["base"],
}


def found(table: list[dict[str, Any]]) -> list[str]:
    """The sentences that the table amounts to."""
    surge = "surge with B_simple"
    lines = [_sentence(table, surge)]
    for group, belongs in GROUPS.items():
        part = [row for row in table if belongs(row)]
        if part:
            lines.append(f"- {group}: {_compared(part, (surge, 'surge, then flat', 'sqrt'))}")
    return lines


def _sentence(table: list[dict[str, Any]], rule: str) -> str:
    rows = answered(table, rule)
    off = factors(rows)
    tasks = {row["experiment"] for row in rows}
    median, share = perfect(rows)
    return (
        f"With nothing but B_simple = tr Σ/|μ|² of one checkpoint, 1/(√(B_simple/B) + "
        f"√(B/B_simple)) is off by a factor {np.median(off):.2f} in the median of {len(off)} moves "
        f"(worst {off.max():.2f}, {(off <= SQRT_2).mean():.0%} within √2), where a perfect rule "
        f"would read {median:.2f} and {share:.0%} on these optima. {len(tasks)} tasks are "
        f"{len(tasks)} independent cases, whatever the number of moves."
    )


def _compared(rows: list[dict[str, Any]], rules: Iterable[str]) -> str:
    parts = []
    for rule in rules:
        off = factors(answered(rows, rule))
        parts.append(f"{rule} {np.median(off):.2f} (worst {off.max():.2f})")
    median, _ = perfect(answered(rows, "constant"))
    count = len(answered(rows, "constant"))
    return f"{', '.join(parts)}; a perfect rule {median:.2f}; n = {count}."


def page(table: list[dict[str, Any]], swept: Mapping[str, Mapping[str, Swept]]) -> list[str]:
    """Markdown of all that was found."""
    lines = [
        "# Which number from one checkpoint predicts a sweep?",
        "",
        "Written by `scripts/judge_predictions.py`. Every prediction was written before the sweep "
        "it is judged on (`*-predictions.json`), with rules settled on a pilot with another seed, "
        "but for rules marked ¹: those were thought of later, and are evaluated on the same "
        "checkpoints. `judgement.json` holds every row, `*-runs.csv` every run. Each row asks: "
        "with the learning rate tuned at B0, how far off is the rule's ε_opt(B)/ε_opt(B0)? The "
        "swept optima come from one basin for all batch sizes and have errors of their own: *a "
        "perfect rule* says what these alone would read.",
        "",
        *found(table),
        "",
        "## all",
        "",
        *summary(table),
    ]
    for pair in dict.fromkeys((row["experiment"], row["optimizer"]) for row in table):
        rows = [row for row in table if (row["experiment"], row["optimizer"]) == pair]
        lines += ["", f"## {', '.join(pair)}", "", *summary(rows)]
    lines += ["", "## What the sweeps say of a peak", ""]
    lines += ["| experiment | optimizer | target loss | law | peak |", "|---|---|---|---|---|"]
    for name, optimizers in swept.items():
        lines += [_peak_line(name, optimizer, sweep) for optimizer, sweep in optimizers.items()]
    return lines


def _peak_line(name: str, optimizer: str, sweep: Swept) -> str:
    entry = sweep.entry
    law = entry["best_law"] or f"none: {entry['best_law_why']}"
    peak = entry["b_peak"]
    where = "" if peak["value"] is None else f"{peak['value']:.3g}"
    low = "?" if peak["low"] is None else f"{peak['low']:.3g}"
    high = "∞" if peak["high"] is None else f"{peak['high']:.3g}"
    return (
        f"| {name} | {optimizer} | {entry['target_loss']} | {law} "
        f"| {where} [{low}, {high}] {peak['why']} |"
    )


def write(results: Path) -> list[str]:
    """Judges all that `results` holds; returns the page."""
    table = []
    swept = {}
    for path in sorted(results.glob("*-predictions.json")):
        name = path.name.removesuffix("-predictions.json")
        stored = json.loads(path.read_text())
        swept[name] = sweeps_of(name, results, stored["config"]["fit"]["target_losses"])
        table += judge(name, stored, swept[name])
        fits = [sweep.entry for sweep in swept[name].values()]
        files.write_json(results / f"{name}-fit.json", {"fits": fits})
    files.write_json(results / "judgement.json", table)
    lines = page(table, swept)
    files.write_bytes(results / "README.md", ("\n".join(lines) + "\n").encode())
    return lines


def main(_: list[str]) -> None:
    print("\n".join(write(Path(_RESULTS.value))))


if __name__ == "__main__":  # flags too: a test imports the rest
    _RESULTS = flags.DEFINE_string("results", "docs/results/predictions", "What is judged.")
    app.run(main, flags_parser=parsed)
