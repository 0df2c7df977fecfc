"""Which number from single checkpoints predicts a sweep? Predictions first, then the sweep, then the judgement.

    python scripts/predict_sweep.py                       # all experiments: about 15 minutes on two cores
    python scripts/predict_sweep.py --only=mnist1d        # one of them
    python scripts/predict_sweep.py --workdir=DIR         # default: runs/predictions

For each experiment the measure stage runs first, and what every rule makes of it is written to predictions.json;
where a sweep is there already and predictions are not, nothing is predicted. Then the sweep runs, and each rule is
judged on ε_opt(B)/ε_opt(B0), with B0 the batch size of the measured run: the number a user needs who has tuned the
learning rate at B0 and moves to B. Regret is what following the rule costs: steps to the target at the tuned rate
times the predicted ratio, over the steps at the swept optimum; it is infinite where runs at that rate do not get
there, and unknown beyond the grid. Predictions come from the middle one of the checkpoints after the start ("all
checkpoints": the geometric mean over them). The rules were settled on a pilot, MNIST-1D with --config.seed=0; what is
judged here was not seen before.
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

from surge import results

_WORKDIR = flags.DEFINE_string("workdir", "runs/predictions", "where experiments are kept")
_ONLY = flags.DEFINE_list("only", [], "names of experiments; empty for all")

EXPERIMENTS = {  # name -> flags of surge.main
    "mnist1d": ("--config=configs/mnist1d.py", "--config.seed=1", "--config.measure.branch_examples=3_000_000"),
    "fashion_mnist": ("--config=configs/fashion_mnist.py:quick", "--config.measure.branch_examples=400_000"),
    "gpt2": ("--config=configs/gpt2.py:quick", "--config.measure.branch_examples=400_000"),
}
COLUMNS = ("experiment", "optimizer", "rule", "batch_size", "predicted", "swept", "log_error", "regret")


def after_start(measured: xr.Dataset) -> tuple[xr.Dataset, xr.Dataset]:
    """The checkpoints after the start, and the middle one of them; the start itself where it is alone."""
    later = measured.isel(checkpoint=slice(min(1, measured.sizes["checkpoint"] - 1), None))
    return later, later.isel(checkpoint=later.sizes["checkpoint"] // 2)


def predictions(measured: xr.Dataset, base: int) -> dict[str, dict[str, dict[str, float]]]:
    """{optimizer: {rule: {batch size: ε_opt(B)/ε_opt(B0)}}} from measure.nc; nan where a rule has no answer.

    Args:
      measured: as the measure stage stores it.
      base: B0, one of its batch sizes.
    """
    later, middle = after_start(measured)
    sizes = measured.batch_size.values.astype(float)
    ratio, position = sizes / base, int(np.flatnonzero(sizes == base)[0])
    critical = float(middle.noise_scale.sel(scale="b_simple", bound="value"))
    found = {}
    for optimizer in measured.optimizer.values:
        here, along = (each.sel(optimizer=optimizer, bound="value") for each in (middle, later))
        curves = {
            "constant": np.ones_like(ratio),
            "sqrt": np.sqrt(ratio),
            "linear": ratio,
            "surge with B_crit": 1 / (np.sqrt(critical / sizes) + np.sqrt(sizes / critical)),
            "saturating with B_crit": (1 + critical / sizes) ** -(1.0 if optimizer == "sgd" else 0.5),
            "independent law": here.independent_lr.values,
            "measured, K = 1": here.measured_lr.values,
            "measured, all checkpoints": np.exp(np.log(along.measured_lr).mean("checkpoint", skipna=False).values),
        }
        curves |= {f"branch, K = {k}": here.branch_lr.sel(horizon=k).values for k in measured.horizon.values}
        found[str(optimizer)] = {
            rule: {str(int(size)): float(value) for size, value in zip(sizes, curve / curve[position], strict=True)}
            for rule, curve in curves.items()
        }
    return found


def regret(rows: dict[str, np.ndarray], batch_size: int, rate: float, best: float) -> float:
    """Steps at a learning rate over steps at the optimum, minus 1; inf where runs fail, nan beyond the grid.

    Args:
      rows: as `surge.results.rows` gives them.
      batch_size: B.
      rate: learning rate.
      best: log steps at the optimum.
    """
    chosen = rows["batch_size"] == batch_size
    rates = np.unique(rows["learning_rate"][chosen])
    if not rates[0] <= rate <= rates[-1]:
        return math.nan
    cells = [rows["value"][chosen & (rows["learning_rate"] == each)].mean() for each in rates]
    above = int(np.searchsorted(rates, rate))
    near = [cells[above]] if rates[above] == rate else cells[above - 1 : above + 1]
    if not np.isfinite(near).all():
        return math.inf
    return math.exp(float(np.interp(np.log(rate), np.log(rates), np.nan_to_num(cells))) - best) - 1


def judge(name: str, workdir: Path) -> list[dict[str, Any]]:
    """One row for each optimizer, rule and batch size whose swept optimum lies inside the grid."""
    stored = results.read_json(workdir / "predictions.json")
    sweep, fits = results.open_sweep(workdir), results.read_json(workdir / "fit.json")["fits"]
    table = []
    for optimizer, rules in stored["ratios"].items():
        entry = middle_target(fits, optimizer)
        rows = results.rows(sweep, optimizer, entry["target_loss"])
        optima = {point["batch_size"]: point for point in entry["optimal_lr"] if point["lr"] and not point["at_edge"]}
        base = optima.pop(stored["base"], None)
        for rule, ratios in rules.items():
            for size, point in optima.items() if base else ():
                predicted, swept = ratios[str(size)] or math.nan, point["lr"] / base["lr"]
                cost = regret(rows, size, base["lr"] * predicted, math.log(point["steps"]))
                values = (name, optimizer, rule, size, predicted, swept, math.log(predicted / swept), cost)
                table.append(dict(zip(COLUMNS, values, strict=True)))
    return table


def middle_target(fits: list[dict[str, Any]], optimizer: str) -> dict[str, Any]:
    """The fit of an optimizer at the middle one of its target losses."""
    entries = [entry for entry in fits if entry["optimizer"] == optimizer]
    return entries[len(entries) // 2]


def summary(table: Iterable[dict[str, Any]]) -> list[str]:
    """Markdown: for each rule its answers, factors off, the share within √2, and what following it costs."""
    table = list(table)
    lines = [
        "| rule | answers | median factor off | worst | within √2 | median regret | runs that fail | off the grid |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for rule in dict.fromkeys(row["rule"] for row in table):
        rows = [row for row in table if row["rule"] == rule and math.isfinite(row["log_error"])]
        asked = sum(row["rule"] == rule for row in table)
        if not rows:
            lines.append(f"| {rule} | 0 of {asked} | – | – | – | – | – | – |")
            continue
        errors, costs = (np.array([row[name] for row in rows]) for name in ("log_error", "regret"))
        off = np.exp(np.abs(errors))
        inside = costs[~np.isnan(costs)]
        middle = f"{np.median(inside):.0%}" if len(inside) and np.isfinite(np.median(inside)) else "∞"
        within = (off <= 2**0.5).mean()
        lines.append(
            f"| {rule} | {len(rows)} of {asked} | {np.median(off):.2f} | {off.max():.2f} | {within:.0%} | {middle}"
            f" | {np.isinf(costs).sum()} | {np.isnan(costs).sum()} |"
        )
    return lines


def peaks(name: str, workdir: Path) -> list[str]:
    """Markdown rows: B_peak measured at the middle checkpoint, and of the sweep."""
    measured, fits = results.read_dataset(workdir / "measure.nc"), results.read_json(workdir / "fit.json")["fits"]
    middle = after_start(measured)[1]
    rows = []
    for optimizer in measured.optimizer.values:
        here, swept = middle.sel(optimizer=optimizer), middle_target(fits, str(optimizer))["b_peak"]
        value, low, high = (float(each) for each in here.measured_peak)
        why = str(here.measured_peak_why.values)
        said = f"{swept['value']:.3g} [{swept['low']:.3g}, {swept['high']:.3g}]" if swept["value"] else swept["why"]
        rows.append(f"| {name} | {optimizer} | {value:.3g} [{low:.3g}, {high:.3g}] {why} | {said} |")
    return rows


def costs(name: str, workdir: Path) -> list[str]:
    """Markdown rows: examples differentiated for one checkpoint, as shares of the sweep's."""
    stored, sweep = results.read_json(workdir / "predictions.json"), results.open_sweep(workdir)
    rows = []
    for optimizer in stored["ratios"]:
        whole = results.examples_trained(sweep.sel(optimizer=optimizer))
        shares = " | ".join(
            f"{stored[cost][optimizer] / whole:.1%}" for cost in ("measured_examples", "branch_examples")
        )
        rows.append(f"| {name} | {optimizer} | {whole:.3g} | {shares} |")
    return rows


def experiment(arguments: Iterable[str], workdir: Path) -> None:
    """Measures, writes the predictions, and only then sweeps and fits.

    Raises:
      ResultError: there is a sweep already, and no predictions.
    """

    def stages(names: str) -> None:
        command = [sys.executable, "-m", "surge.main", *arguments, f"--workdir={workdir}", f"--stages={names}"]
        subprocess.run(command, check=True)

    path = workdir / "predictions.json"
    if not path.exists():
        if (workdir / "sweep").exists():
            raise results.ResultError(f"{workdir} holds a sweep but no predictions: give another --workdir")
        stages("measure")
        measured = results.read_dataset(workdir / "measure.nc")
        base = json.loads(measured.attrs["config"])["measure"]["batch_size"]
        spent = {
            cost: {str(each): float(measured[cost].sel(optimizer=each).mean()) for each in measured.optimizer.values}
            for cost in ("measured_examples", "branch_examples")
        }
        results.write_json(path, {"base": base, "ratios": predictions(measured, base)} | spent)
    stages("sweep,fit")


def main(_: list[str]) -> None:
    root = Path(_WORKDIR.value)
    chosen = [name for name in EXPERIMENTS if name in _ONLY.value or not _ONLY.value]
    for name in chosen:
        experiment(EXPERIMENTS[name], root / name)
    table = [row for name in chosen for row in judge(name, root / name)]
    for pair in dict.fromkeys((row["experiment"], row["optimizer"]) for row in table):
        print(f"\n### {', '.join(pair)}\n")
        print(*summary(row for row in table if (row["experiment"], row["optimizer"]) == pair), sep="\n")
    print("\n### all\n", *summary(table), sep="\n")
    print("\n| experiment | optimizer | B_peak, measured law | B_peak, sweep |", "|---|---|---|---|", sep="\n")
    print(*(row for name in chosen for row in peaks(name, root / name)), sep="\n")
    header = (
        "| experiment | optimizer | sweep, examples | measured law, one checkpoint | branch runs, one checkpoint |"
    )
    print("", header, "|---|---|---|---|---|", sep="\n")
    print(*(row for name in chosen for row in costs(name, root / name)), sep="\n")
    results.write_json(root / "judgement.json", table)


if __name__ == "__main__":
    app.run(main)
