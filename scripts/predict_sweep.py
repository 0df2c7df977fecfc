"""Which number from single checkpoints predicts a sweep? Predictions first, then the sweep.

    python scripts/predict_sweep.py                       # all: about 25 minutes on two cores
    python scripts/predict_sweep.py --only=mnist1d        # one of them
    python scripts/predict_sweep.py --workdir=DIR         # default: runs/predictions

For each experiment the measure stage runs first, and what every rule makes of it is written to
NAME-predictions.json; where a sweep is there already and predictions are not, nothing is predicted.
Then the sweep runs, and the steps of all its runs go to NAME-runs.csv. What the rules are worth is
judged from these files alone, by scripts/judge_predictions.py.

Predictions are ε_opt(B)/ε_opt(B0), with B0 the batch size of the measured run: the number a user
needs who has tuned the learning rate at B0 and moves to B. They come from the middle one of the
checkpoints after the start ("all checkpoints": the geometric mean over them). The rules were
settled on a pilot, MNIST-1D with --config.seed=0.
"""

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from absl import app, flags

from surge.cli import parsed
from surge.evidence import after_start, of_checkpoint
from surge.theory.objective import StepsTo
from surge.theory.rules import RULES
from surge.workdir import files, sweeps

MEASURE = ("--config.measure.horizons=(1,10,100)", "--config.measure.directions=32")
EXPERIMENTS = {  # name -> flags of surge.main; far from an optimum only a dense grid says anything
    "mnist1d": (
        "--config=configs/mnist1d.py",
        "--config.seed=1",
        *MEASURE,
        "--config.grid=dense",
        "--config.seeds=2",
        "--config.measure.branch_examples=3_000_000",
    ),
    "fashion_mnist": (
        "--config=configs/fashion_mnist.py:quick",
        *MEASURE,
        "--config.batch_sizes=(1,2,4,8,64,256)",
        "--config.task_args.evaluation_examples=256",
        "--config.measure.branch_examples=240_000",
    ),
    "gpt2": (
        "--config=configs/gpt2.py:quick",
        *MEASURE,
        "--config.measure.branch_examples=60_000",
    ),
}


def predictions(measured: xr.Dataset, base: int) -> dict[str, dict[str, dict[str, float]]]:
    """{optimizer: {rule: {batch size: ε_opt(B)/ε_opt(B0)}}}; nan where a rule has no answer.

    Every rule of `surge.theory.rules`, from the middle checkpoint, and two curves of this script:
    the measured law averaged over checkpoints, and the best rate K steps later.

    Args:
      measured: as the measure stage stores it.
      base: B0, one of its batch sizes.
    """
    later, middle = after_start(measured)
    sizes = measured.batch_size.values.tolist()
    position = sizes.index(base)
    ratios = {}
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
        for horizon in measured.horizon.values.tolist():
            curves[f"branch, K = {horizon}"] = here.branch_lr.sel(horizon=horizon).values
        ratios[optimizer] = {
            rule: _by_size(sizes, curve / curve[position]) for rule, curve in curves.items()
        }
    return ratios


def _by_size(sizes: Iterable[int], ratios: np.ndarray) -> dict[str, float]:
    return {str(size): float(ratio) for size, ratio in zip(sizes, ratios, strict=True)}


def _spec(measured: xr.Dataset, optimizer: str) -> str:
    """What a label of a measurement stands for; the label itself where no config says it."""
    if "config" not in measured.attrs:
        return optimizer
    return json.loads(measured.attrs["config"])["optimizers"][optimizer]["spec"]


def runs(workdir: Path, targets: Iterable[float]) -> pd.DataFrame:
    """Every run of a sweep: its cell, and the steps it took to each target loss."""
    sweep = sweeps.open_sweep(workdir)
    tables = []
    for optimizer in sweep.optimizer.values.tolist():
        columns: dict[str, Any] = {}
        for target in targets:
            rows = sweeps.rows(sweep, optimizer, StepsTo(target))
            cell = {name: rows[name] for name in ("batch_size", "learning_rate", "seed")}
            columns |= cell | {f"steps_{target:g}": rows["steps"]}
        tables.append(pd.DataFrame({"optimizer": optimizer} | columns))
    return pd.concat(tables)


def experiment(arguments: Iterable[str], workdir: Path) -> Mapping[str, Any]:
    """Measures, writes the predictions, and only then sweeps; returns the predictions.

    Raises:
      ResultError: there is a sweep already, and no predictions.
    """

    def stages(names: str) -> None:
        program = [sys.executable, "-m", "surge.main"]
        where = [f"--workdir={workdir}", f"--stages={names}"]
        subprocess.run([*program, *arguments, *where], check=True)

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
        scale = after_start(measured)[1].noise_scale.sel(scale="b_simple", bound="value")
        stored = {"base": base, "b_simple": float(scale), "config": config}
        files.write_json(path, stored | {"ratios": predictions(measured, base)})
    stages("sweep,fit")
    return files.read_json(path)


def main(_: list[str]) -> None:
    results = Path(_RESULTS.value)
    results.mkdir(parents=True, exist_ok=True)
    for name in _ONLY.value or EXPERIMENTS:
        workdir = Path(_WORKDIR.value) / name
        stored = experiment(EXPERIMENTS[name], workdir)
        targets = stored["config"]["fit"]["target_losses"]
        files.write_json(results / f"{name}-predictions.json", stored)
        table = runs(workdir, targets).to_csv(index=False, float_format="%.7g")
        files.write_bytes(results / f"{name}-runs.csv", table.encode())
    print(f"judge them: python scripts/judge_predictions.py --results={results}")


if __name__ == "__main__":  # flags too: a test imports the rest
    _WORKDIR = flags.DEFINE_string("workdir", "runs/predictions", "Where experiments are kept.")
    _RESULTS = flags.DEFINE_string("results", "docs/results/predictions", "Where their results go.")
    _ONLY = flags.DEFINE_list("only", [], "Names of experiments; empty for all.")
    app.run(main, flags_parser=parsed)
