"""Which number from single checkpoints predicts a sweep? Predictions first, then the sweep, then
the judgement.

    python scripts/predict_sweep.py                       # all experiments: about 25 minutes on two
    cores
    python scripts/predict_sweep.py --only=mnist1d        # one of them
    python scripts/predict_sweep.py --workdir=DIR         # default: runs/predictions

For each experiment the measure stage runs first, and what every rule makes of it is written to
predictions.json; where a sweep is there already and predictions are not, nothing is predicted. Then
the sweep runs, and each rule is judged on ε_opt(B)/ε_opt(B0), with B0 the batch size of the
measured run: the number a user needs who has tuned the learning rate at B0 and moves to B. Two
regrets say what following the rule costs: steps to the target at the tuned rate times the predicted
ratio, over the steps at the swept optimum; and the training loss at that rate when the best rate of
the grid arrives at the target, above the target. Predictions come from the middle one of the
checkpoints after the start ("all checkpoints": the geometric mean over them). The rules were
settled on a pilot, MNIST-1D with
--config.seed=0; what is judged here was not seen before. Everything that is judged, and the page
that says what was found, is written to --results.
"""

import json
import math
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from absl import app, flags

from surge.cli import parsed
from surge.evidence import after_start, of_checkpoint
from surge.theory.objective import StepsTo
from surge.theory.rules import RULES
from surge.workdir import files, sweeps

MEASURE = ("--config.measure.horizons=(1,10,100)", "--config.measure.directions=32")
EXPERIMENTS = {  # name -> flags of surge.main; far from an optimum only a dense grid says what a rule comes to
    "mnist1d": (
        *("--config=configs/mnist1d.py", "--config.seed=1", *MEASURE),
        *("--config.grid=dense", "--config.seeds=2", "--config.measure.branch_examples=3_000_000"),
    ),
    "fashion_mnist": (
        *(
            "--config=configs/fashion_mnist.py:quick",
            *MEASURE,
            "--config.batch_sizes=(1,2,4,8,64,256)",
        ),
        *("--config.task_args.evaluation_examples=256", "--config.measure.branch_examples=240_000"),
    ),
    "gpt2": ("--config=configs/gpt2.py:quick", *MEASURE, "--config.measure.branch_examples=60_000"),
}
COLUMNS = (
    "experiment",
    "optimizer",
    "rule",
    "batch_size",
    "predicted",
    "swept",
    "log_error",
    "outcome",
    "regret",
    "loss",
)
ARRIVES, FAILS, BEYOND = "arrives", "fails", "off the grid"
BEST, SHAPE, HALF = "surge with B_simple", "saturating with B_simple", "sqrt"
RESAMPLES = 2_000


def predictions(measured: xr.Dataset, base: int) -> dict[str, dict[str, dict[str, float]]]:
    """{optimizer: {rule: {batch size: ε_opt(B)/ε_opt(B0)}}} from measure.nc; nan where a rule has
    no answer.

    Every rule of `surge.theory.rules`, from the middle checkpoint, and two curves of this script:
    the measured law averaged over checkpoints, and the best rate K steps later.

    Args:
      measured: as the measure stage stores it.
      base: B0, one of its batch sizes.
    """
    later, middle = after_start(measured)
    sizes = measured.batch_size.values.tolist()
    position = sizes.index(base)
    told = {}
    for optimizer in map(str, measured.optimizer.values):
        here = middle.sel(optimizer=optimizer, bound="value")
        along = later.sel(optimizer=optimizer, bound="value")
        spec = _spec(measured, optimizer)
        known = of_checkpoint(measured, optimizer, spec, spec)
        curves = {
            name: np.exp([rule(size, base, known) for size in sizes])
            for name, rule in RULES.items()
        }
        average = np.log(along.measured_lr).mean("checkpoint", skipna=False)
        curves["measured, all checkpoints"] = np.exp(average.values)
        for k in measured.horizon.values:
            curves[f"branch, K = {k}"] = here.branch_lr.sel(horizon=k).values
        told[optimizer] = {
            rule: {
                str(size): float(value)
                for size, value in zip(sizes, curve / curve[position], strict=True)
            }
            for rule, curve in curves.items()
        }
    return told


def _spec(measured: xr.Dataset, optimizer: str) -> str:
    """What a label of a measurement stands for; the label itself where no config says it."""
    if "config" not in measured.attrs:
        return optimizer
    return json.loads(measured.attrs["config"])["optimizers"][optimizer]["spec"]


def regret(
    rows: dict[str, np.ndarray], batch_size: int, rate: float, best: float
) -> tuple[str, float]:
    """What a learning rate comes to, and its steps to the target over those at the optimum, minus
    1.

    Args:
      rows: as `surge.workdir.sweeps.rows` gives them.
      batch_size: B.
      rate: learning rate.
      best: log steps at the optimum.

    Returns:
      ARRIVES and the regret; FAILS where runs do not get there, or BEYOND outside the grid, and
      nan.
    """
    chosen = rows["batch_size"] == batch_size
    rates = np.unique(rows["learning_rate"][chosen])
    if not rates[0] <= rate <= rates[-1]:
        return BEYOND, math.nan
    cells = [rows["value"][chosen & (rows["learning_rate"] == each)].mean() for each in rates]
    above = int(np.searchsorted(rates, rate))
    near = [cells[above]] if rates[above] == rate else cells[above - 1 : above + 1]
    if not np.isfinite(near).all():
        return FAILS, math.nan
    return ARRIVES, math.exp(
        float(np.interp(np.log(rate), np.log(rates), np.nan_to_num(cells))) - best
    ) - 1


def loss_regret(losses: xr.DataArray, batch_size: int, rate: float, target: float) -> float:
    """Training loss at a learning rate when the best rate of the grid arrives, above the target;
    nan off the grid."""
    row = losses.sel(batch_size=batch_size).dropna("learning_rate")
    rates = row.learning_rate.values
    if not len(rates) or not rates[0] <= rate <= rates[-1]:
        return math.nan
    return float(np.interp(np.log(rate), np.log(rates), row.values)) - target


def judge(name: str, workdir: Path) -> list[dict[str, Any]]:
    """One row for each optimizer, rule and batch size whose swept optimum lies inside the grid."""
    stored = files.read_json(workdir / "predictions.json")
    sweep, fits = sweeps.open_sweep(workdir), files.read_json(workdir / "fit.json")["fits"]
    table = []
    for optimizer, rules in stored["ratios"].items():
        entry = middle_target(fits, optimizer)
        rows = sweeps.rows(sweep, optimizer, StepsTo(entry["target_loss"]))
        losses = sweeps.loss_when_first_arrives(sweep, optimizer, entry["target_loss"])
        optima = {
            point["batch_size"]: point
            for point in entry["optimal_lr"]
            if point["lr"] and not point["at_edge"]
        }
        base = optima.pop(stored["base"], None)
        for rule, ratios in rules.items():
            for size, point in optima.items() if base else ():
                predicted, swept = ratios[str(size)] or math.nan, point["lr"] / base["lr"]
                rate = base["lr"] * predicted
                outcome, cost = regret(rows, size, rate, math.log(point["steps"]))
                above = loss_regret(losses, size, rate, entry["target_loss"])
                values = (
                    name,
                    optimizer,
                    rule,
                    size,
                    predicted,
                    swept,
                    math.log(predicted / swept),
                    outcome,
                    cost,
                    above,
                )
                table.append(dict(zip(COLUMNS, values, strict=True)))
    return table


def middle_target(fits: list[dict[str, Any]], optimizer: str) -> dict[str, Any]:
    """The fit of an optimizer at the middle one of its target losses."""
    entries = [entry for entry in fits if entry["optimizer"] == optimizer]
    return entries[len(entries) // 2]


def _known(table: Iterable[dict[str, Any]], rule: str) -> list[dict[str, Any]]:
    return [
        row
        for row in table
        if row["rule"] == rule and row["log_error"] is not None and math.isfinite(row["log_error"])
    ]


def summary(table: Iterable[dict[str, Any]]) -> list[str]:
    """Markdown: for each rule its answers, factors off, the share within √2, and what following it
    costs."""
    table = list(table)
    lines = [
        "| rule | answers | median factor off | worst | within √2 | median extra steps | median loss above target"
        " | runs that fail | off the grid |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for rule in dict.fromkeys(row["rule"] for row in table):
        rows, asked = _known(table, rule), sum(row["rule"] == rule for row in table)
        if not rows:
            lines.append(f"| {rule} | 0 of {asked} | – | – | – | – | – | – | – |")
            continue
        off = np.exp(np.abs([row["log_error"] for row in rows]))
        steps, above = regrets(rows)
        middle = f"{np.median(steps):.0%}" if steps and np.isfinite(np.median(steps)) else "∞"
        loss = f"{np.median(above):.2f}" if above else "–"
        counts = " | ".join(
            str(sum(row["outcome"] == each for row in rows)) for each in (FAILS, BEYOND)
        )
        lines.append(
            f"| {rule} | {len(rows)} of {asked} | {np.median(off):.2f} | {off.max():.2f}"
            f" | {(off <= 2**0.5).mean():.0%} | {middle} | {loss} | {counts} |"
        )
    return lines


def regrets(rows: Iterable[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """Extra steps of the rows whose rate is on the grid, infinite where runs fail; loss above
    target where known."""
    rows = list(rows)
    steps = [
        math.inf if row["outcome"] == FAILS else row["regret"]
        for row in rows
        if row["outcome"] != BEYOND
    ]
    return steps, [
        row["loss"] for row in rows if row["loss"] is not None and math.isfinite(row["loss"])
    ]


def by_pair(table: Iterable[dict[str, Any]], rule: str) -> dict[tuple[str, str], np.ndarray]:
    """(experiment, optimizer) -> |log error| of a rule in each of its moves."""
    found: dict[tuple[str, str], list[float]] = {}
    for row in _known(table, rule):
        found.setdefault((row["experiment"], row["optimizer"]), []).append(abs(row["log_error"]))
    return {pair: np.array(each) for pair, each in found.items()}


def resampled(table: list[dict[str, Any]], rules: Iterable[str]) -> dict[str, np.ndarray]:
    """Median |log error| of each rule in bootstraps over whole (experiment, optimizer) pairs, the
    same for all."""
    errors = {rule: list(by_pair(table, rule).values()) for rule in rules}
    pairs = len(errors[BEST])
    picks = np.random.default_rng(0).integers(0, pairs, (RESAMPLES, pairs))
    return {
        rule: np.array([np.median(np.concatenate([each[pair] for pair in pick])) for pick in picks])
        for rule, each in errors.items()
    }


def found(table: list[dict[str, Any]]) -> list[str]:
    """The sentences that the table amounts to."""
    rivals = (SHAPE, HALF, "measured, K = 1")
    draws, errors = resampled(table, (BEST, *rivals)), by_pair(table, BEST)
    off = np.exp(np.concatenate(list(errors.values())))
    low, high = np.exp(np.quantile(draws[BEST], (0.025, 0.975)))
    within = (off <= 2**0.5).sum()
    lines = [
        "The paper's small-batch shape 1/(√(B_simple/B) + √(B/B_simple)), with nothing but B_simple = tr Σ/|μ|² of"
        f" one checkpoint, is off by a factor {np.median(off):.2f} [{low:.2f}, {high:.2f}] in the median of"
        f" {len(off)} moves on {len(errors)} (task, optimizer) pairs; {within} of {len(off)} lie within √2, the worst"
        f" is {off.max():.2f}."
        " Intervals are 95%, by bootstrap over the pairs."
    ]
    worst = {" ".join(pair): math.exp(each.max()) for pair, each in errors.items()}
    met = [pair for pair, off in worst.items() if off <= 2**0.5]
    missed = [f"{pair} ({off:.2f})" for pair, off in worst.items() if off > 2**0.5]
    lines.append(
        f"- Every move lies within √2 on: {', '.join(met) or 'no pair'}. Not on: {', '.join(missed) or 'none'}."
    )
    steps, above = regrets(_known(table, BEST))
    lines.append(
        f"- Following it from a tuned B0 costs {np.median(steps):.0%} more steps than the swept optimum in the median,"
        f" and {np.median(above):+.2f} in loss when that arrives (worst {max(above):+.2f}); {steps.count(math.inf)} of"
        f" {len(steps)} runs fail."
    )
    for rule in rivals:
        low, high = np.exp(np.quantile(draws[rule] - draws[BEST], (0.025, 0.975)))
        factor = np.exp(np.median(np.concatenate(list(by_pair(table, rule).values()))))
        said = "worse" if low > 1 else "better" if high < 1 else "not told apart from it"
        lines.append(
            f"- *{rule}*: {factor:.2f}, {said} (ratio of medians [{low:.2f}, {high:.2f}])."
        )
    return lines


def peaks(name: str, workdir: Path) -> list[str]:
    """Markdown rows: what the middle checkpoint says of the peak, and what the sweep says."""
    measured, fits = (
        files.read_dataset(workdir / "measure.nc"),
        files.read_json(workdir / "fit.json")["fits"],
    )
    middle = after_start(measured)[1]
    rows = []
    for optimizer in measured.optimizer.values:
        here, swept = middle.sel(optimizer=optimizer), middle_target(fits, str(optimizer))["b_peak"]
        value, low, high = (float(each) for each in here.measured_peak)
        why = str(here.measured_peak_why.values)
        said = (
            f"{swept['value']:.3g} [{swept['low']:.3g}, {swept['high']:.3g}]"
            if swept["value"]
            else swept["why"]
        )
        others = f"{float(middle.b_noise):.3g} | {float(middle.noise_scale.sel(scale='b_simple', bound='value')):.3g}"
        rows.append(
            f"| {name} | {optimizer} | {value:.3g} [{low:.3g}, {high:.3g}] {why} | {others} | {said} |"
        )
    return rows


def costs(name: str, workdir: Path) -> list[str]:
    """Markdown rows: examples differentiated for one checkpoint, as shares of the sweep's."""
    stored, sweep = files.read_json(workdir / "predictions.json"), sweeps.open_sweep(workdir)
    rows = []
    for optimizer in stored["ratios"]:
        whole = sweeps.examples_trained(sweep.sel(optimizer=optimizer))
        shares = " | ".join(
            f"{stored[cost][optimizer] / whole:.1%}"
            for cost in ("moment_examples", "measured_examples", "branch_examples")
        )
        rows.append(f"| {name} | {optimizer} | {whole:.3g} | {shares} |")
    return rows


def experiment(arguments: Iterable[str], workdir: Path) -> None:
    """Measures, writes the predictions, and only then sweeps and fits.

    Raises:
      ResultError: there is a sweep already, and no predictions.
    """

    def stages(names: str) -> None:
        command = [
            sys.executable,
            "-m",
            "surge.main",
            *arguments,
            f"--workdir={workdir}",
            f"--stages={names}",
        ]
        subprocess.run(command, check=True)

    path = workdir / "predictions.json"
    if not path.exists():
        if (workdir / "sweep").exists():
            raise files.ResultError(
                f"{workdir} holds a sweep but no predictions: give another --workdir"
            )
        stages("measure")
        measured = files.read_dataset(workdir / "measure.nc")
        config = json.loads(measured.attrs["config"])
        base = config["measure"]["batch_size"]
        spent = {
            cost: {
                str(each): float(measured[cost].sel(optimizer=each).mean())
                for each in measured.optimizer.values
            }
            for cost in ("measured_examples", "branch_examples")
        }
        spent["moment_examples"] = dict.fromkeys(
            spent["measured_examples"], config["measure"]["examples"]
        )
        files.write_json(
            path, {"base": base, "config": config, "ratios": predictions(measured, base)} | spent
        )
    stages("sweep,fit")


def page(root: Path, chosen: Iterable[str], table: list[dict[str, Any]]) -> list[str]:
    """Markdown of all that was found."""
    lines = [
        "# Which number from one checkpoint predicts a sweep?",
        "",
        "Written by `scripts/predict_sweep.py`. Every prediction was written before the sweep it is judged on"
        " (`*-predictions.json`), with rules settled on a pilot with another seed; `judgement.json` holds every row."
        " Each row asks: with the learning rate tuned at B0, how far off is the rule's ε_opt(B)/ε_opt(B0)?",
        "",
        *found(table),
        "",
        "## all",
        "",
        *summary(table),
    ]
    for pair in dict.fromkeys((row["experiment"], row["optimizer"]) for row in table):
        lines += ["", f"## {', '.join(pair)}", ""]
        lines += summary(row for row in table if (row["experiment"], row["optimizer"]) == pair)
    lines += [
        "",
        "## The peak",
        "",
        "| experiment | optimizer | B_peak, measured law | B_noise, independent law",
    ]
    lines[-1] += " | B_simple | B_peak, sweep |"
    lines += [
        "|---|---|---|---|---|---|",
        *(row for name in chosen for row in peaks(name, root / name)),
    ]
    lines += [
        "",
        "## The cost",
        "",
        "| experiment | optimizer | sweep, examples | moments (B_simple) | measured law",
    ]
    lines[-1] += " | branch runs |"
    return [
        *lines,
        "|---|---|---|---|---|---|",
        *(row for name in chosen for row in costs(name, root / name)),
    ]


def main(_: list[str]) -> None:
    root, kept = Path(_WORKDIR.value), Path(_RESULTS.value)
    chosen = [name for name in EXPERIMENTS if name in _ONLY.value or not _ONLY.value]
    for name in chosen:
        experiment(EXPERIMENTS[name], root / name)
    table = [row for name in chosen for row in judge(name, root / name)]
    kept.mkdir(parents=True, exist_ok=True)
    for name in chosen:
        for stored in ("predictions", "fit"):
            files.write_json(
                kept / f"{name}-{stored}.json", files.read_json(root / name / f"{stored}.json")
            )
    files.write_json(kept / "judgement.json", table)
    text = "\n".join(page(root, chosen, table)) + "\n"
    files.write_bytes(kept / "README.md", text.encode())
    print(text)


if (
    __name__ == "__main__"
):  # flags too: a test imports the rest beside programs with flags of the same names
    _WORKDIR = flags.DEFINE_string("workdir", "runs/predictions", "where experiments are kept")
    _RESULTS = flags.DEFINE_string(
        "results", "docs/results/predictions", "where the judgement and its page go"
    )
    _ONLY = flags.DEFINE_list("only", [], "names of experiments; empty for all")
    app.run(main, flags_parser=parsed)
