"""How near is the measured law to the true one-step optimum? Every ratio, at the start and three
losses of six runs.

    python scripts/check_one_step.py                     # about 14 minutes on two cores
    python scripts/check_one_step.py --only=mnist1d-cnn

For each checkpoint, optimizer and batch size: ε_opt by the measured law over ε_opt by the one-step
oracle, with the measured law's 95% interval in the same unit, and what a checkpoint costs beside
the sweep of the same config. The page is written to --results when all experiments have run.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import xarray as xr
from absl import app, flags

from surge.cli import parsed
from surge.config import check
from surge.sweep import plan
from surge.workdir import files

BRIEF = ("--config.measure.horizons=(1,)", "--config.measure.directions=32")
MNIST1D = ("--config=configs/mnist1d.py", *BRIEF, "--config.measure.losses=(1.8,1.5,1.2)")
FASHION = (
    *("--config=configs/fashion_mnist.py:quick", *BRIEF, "--config.measure.losses=(1.2,0.9,0.7)"),
    *("--config.batch_sizes=(1,2,4,8,64,256)", "--config.task_args.evaluation_examples=256"),
)
GPT = ("--config=configs/gpt2.py:quick", *BRIEF, "--config.measure.losses=(3.2,2.9,2.6)")
# Sign descent is trained with sign descent: one step of Adam without memory, at its own learning
# rate.
SIGN = ("--config.optimizers.adam.spec=sign_sgd",)
EXPERIMENTS = {
    "mnist1d-mlp": MNIST1D,
    "mnist1d-cnn": (
        *MNIST1D,
        "--config.task_args.model=cnn",
        "--config.task_args.widths=(25,25,25)",
    ),
    "fashion_mnist-cnn": FASHION,
    "fashion_mnist-cnn-sign": (*FASHION, *SIGN, "--config.measure.learning_rate=5e-4"),
    "text-gpt": GPT,
    "text-gpt-sign": (*GPT, *SIGN, "--config.measure.learning_rate=1e-3"),
}
ENOUGH = 8  # the least batch size at which the measured law is held to
NEAR = 1.3  # a factor off that is near enough


def rows(
    measured: xr.Dataset,
) -> Iterator[tuple[int, float, str, list[tuple[int, float, float, float]]]]:
    """(step, loss, optimizer, [(B, ratio, low, high)]) of each checkpoint and optimizer."""
    specs = json.loads(measured.attrs["config"])["optimizers"]
    ratios = measured.measured_lr / measured.oracle_lr.sel(bound="value")
    for index, optimizer in np.ndindex(measured.sizes["checkpoint"], measured.sizes["optimizer"]):
        point, row = (
            measured.isel(checkpoint=index),
            ratios.isel(checkpoint=index, optimizer=optimizer),
        )
        bounds = row.transpose("batch_size", "bound").values.tolist()
        cells = [
            (int(size), *each)
            for size, each in zip(measured.batch_size.values, bounds, strict=True)
        ]
        yield (
            int(point.step),
            float(point.loss),
            specs[str(row.optimizer.values)]["spec"].split("(")[0],
            cells,
        )


def table(name: str, measured: xr.Dataset) -> list[str]:
    """Markdown of one experiment."""
    sizes = measured.batch_size.values.tolist()
    lines = [
        f"## {name}",
        "",
        "| step | loss | optimizer | " + " | ".join(f"B = {size}" for size in sizes) + " |",
    ]
    lines.append("|---" * (3 + len(sizes)) + "|")
    for step, loss, optimizer, cells in rows(measured):
        shown = (
            "–" if np.isnan(ratio) else f"{ratio:.2f} [{low:.2g}, {high:.2g}]"
            for _, ratio, low, high in cells
        )
        lines.append(f"| {step} | {loss:.3g} | {optimizer} | {' | '.join(shown)} |")
    return [*lines, ""]


def misses(name: str, measured: xr.Dataset, start: bool) -> list[tuple[str, float]]:
    """(where, factor off; nan where undefined) of every ratio at B >= ENOUGH, at the start or after
    it."""
    return [
        (f"{name}, step {step}, {optimizer}, B = {size}", float(np.exp(np.abs(np.log(ratio)))))
        for step, _, optimizer, cells in rows(measured)
        for size, ratio, _, _ in cells
        if size >= ENOUGH and (step == 0) == start
    ]


def judged(when: str, found: list[tuple[str, float]]) -> list[str]:
    """The sentence on all ratios of a kind, and every one that is not near."""
    known = np.array([off for _, off in found if np.isfinite(off)])
    lines = [
        f"**{when}**, B >= {ENOUGH}: {len(known)} of {len(found)} ratios defined, median factor off"
        f" {np.median(known):.3f}, {(known <= NEAR).sum()} within {NEAR}.",
    ]
    bad = [
        f"- {where}: {'undefined' if np.isnan(off) else f'{off:.2f}'}"
        for where, off in found
        if not off <= NEAR
    ]
    return [*lines, *(["The others:", "", *bad] if bad else []), ""]


def cost(name: str, measured: xr.Dataset) -> str:
    """A row: examples differentiated for the measured law of one checkpoint, and for the sweep of
    this config."""
    experiment = check(json.loads(measured.attrs["config"]))
    sweep = sum(piece.examples for piece in plan(experiment))
    law = float(measured.measured_examples.isel(optimizer=0).mean())
    return (
        f"| {name} | {law:.3g} | {experiment.measure.examples} | {sweep:.3g} | {law / sweep:.2%} |"
    )


def drifts(name: str, measured: xr.Dataset) -> list[str]:
    """Rows: the power of the training loss that each quantity goes as, where it is defined."""
    rows = []
    for quantity in measured.quantity.values:
        value, low, high = measured.drift.sel(quantity=quantity).values.tolist()
        if np.isfinite(value):
            n = int(measured.drift_n.sel(quantity=quantity))
            rows.append(f"| {name} | {quantity} | {value:.2f} [{low:.2f}, {high:.2f}] | {n} |")
    return rows


def page(measured: dict[str, xr.Dataset]) -> str:
    """All that was found."""
    lines = [
        "# How near is the measured law to the true one-step optimum?",
        "",
        "Written by `scripts/check_one_step.py`. ε_opt by the measured law a/q over ε_opt by the"
        " one-step oracle (the lowest point of the true loss along the same directions), with the"
        " law's 95% interval in that unit. A dash: the step has no best rate, or none within a"
        " factor 5.3 of a/q.",
        "",
    ]
    for start, when in ((False, "After the start"), (True, "At initialisation")):
        lines += judged(
            when, [each for name, data in measured.items() for each in misses(name, data, start)]
        )
    for name, data in measured.items():
        lines += table(name, data)
    lines += [
        "## The cost",
        "",
        "In examples differentiated, for one optimizer at all batch sizes: the pool of gradients,"
        " counted whole though optimizers share it, and a second derivative along each direction."
        " The sweep is the dense grid of the same config, all optimizers, if no run ends early.",
        "",
        "| experiment | measured law, one checkpoint | moments | sweep | law / sweep |",
        "|---|---|---|---|---|",
        *(cost(name, data) for name, data in measured.items()),
    ]
    lines += [
        "",
        "## Along training",
        "",
        "The power of the training loss that a quantity goes as over the checkpoints, the start"
        " included: negative where it grows as the loss falls. Quantities that are undefined at too"
        " many checkpoints are left out.",
        "",
        "| experiment | quantity | power of the loss | n |",
        "|---|---|---|---|",
        *(row for name, data in measured.items() for row in drifts(name, data)),
    ]
    return "\n".join(lines) + "\n"


def main(_: list[str]) -> None:
    measured = {}
    for name in (name for name in EXPERIMENTS if name in _ONLY.value or not _ONLY.value):
        workdir = Path(_WORKDIR.value) / name
        command = [
            sys.executable,
            "-m",
            "surge.main",
            *EXPERIMENTS[name],
            f"--workdir={workdir}",
            "--stages=measure",
        ]
        subprocess.run(command, check=True)
        measured[name] = files.read_dataset(workdir / "measure.nc")
        print(*table(name, measured[name]), sep="\n", flush=True)
    text = page(measured)
    print(text)
    if len(measured) == len(EXPERIMENTS):
        files.write_bytes(Path(_RESULTS.value), text.encode())


if __name__ == "__main__":
    _WORKDIR = flags.DEFINE_string("workdir", "runs/one_step", "where the measurements are kept")
    _RESULTS = flags.DEFINE_string("results", "docs/results/one_step.md", "where the page goes")
    _ONLY = flags.DEFINE_list("only", [], "names of experiments; empty for all")
    app.run(main, flags_parser=parsed)
