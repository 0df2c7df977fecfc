"""The table of published optimizers: what the one law says of each, and the optima of a sweep.

    python -m surge.main --config=configs/zoo.py --stages=sweep
    python scripts/zoo.py --workdir=runs/zoo

p, c and k of ε_opt(B) = ε_∞ (1 + c y)^p / (1 + k κ y): the exponent of the normaliser, how noise
inflates it, and the noise that the first moment lets through in one step. With p = 0 no κ makes a
surge; with p = ½ there is one where kκ < c/2. Works on a sweep that is not finished, too.
"""

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from absl import app, flags

from surge.cli import parsed
from surge.entries import fit_entry
from surge.theory.objective import StepsTo
from surge.workdir import sweeps

ADAM = 0.1 / 1.9  # (1 − β1)/(1 + β1)
LAW = {  # label of configs/zoo.py -> p, c, k
    "sgd": (0, 0, 1),
    "extrap_sgd": (0, 0, 1),
    "adam": (0.5, 1, ADAM),
    "extrap_adam": (0.5, 1, ADAM),
    "tom": (0.5, 1, 0.0628),
    "eve": (0.5, 1 + ADAM, ADAM),
    "examplewise_adam": (0, 0, ADAM),
    "madam": (0.5, 5.77, ADAM),
    "lamadam": (0.5, 2.82, ADAM),
    "active": (0.5, 1, ADAM),
    "adalomo": (0.5, 1, 1),
    "adagrad_norm": (0.5, 1, 1),
    "lars": (0.5, 1, ADAM),
    "clars": (0, 0, ADAM),
}


def rows(sweep: xr.Dataset, target: float) -> list[str]:
    """Markdown, a row for each optimizer that has finished pieces."""
    sizes = sweep.batch_size.values.tolist()
    head = " | ".join(f"B = {size}" for size in sizes)
    lines = [f"| optimizer | p | c | k | {head} | p of a fall |"]
    lines.append("|---" * (5 + len(sizes)) + "|")
    for label in map(str, sweep.optimizer.values):
        entry = fit_entry(sweeps.rows(sweep, label, StepsTo(target)), "steps", optimizer=label)
        optima = {point["batch_size"]: point for point in entry["optimal_lr"]}
        shown = " | ".join(_optimum(optima.get(size)) for size in sizes)
        law = " | ".join(f"{value:.3g}" for value in LAW[label])
        fall = entry["p_fall"]
        lines.append(f"| {label} | {law} | {shown} | {'–' if fall is None else f'{fall:.2f}'} |")
    return lines


def _optimum(point: dict[str, Any] | None) -> str:
    if point is None or point["lr"] is None or not np.isfinite(point["lr"]):
        return "–"
    ends = [point[name] for name in ("low", "high")]
    interval = ", ".join("?" if end is None else f"{end:.2g}" for end in ends)
    return f"{point['lr']:.2g} [{interval}]"


def main(_: list[str]) -> None:
    print(*rows(sweeps.open_sweep(Path(_WORKDIR.value)), _TARGET.value), sep="\n")


if __name__ == "__main__":
    _WORKDIR = flags.DEFINE_string("workdir", "runs/zoo", "where configs/zoo.py was swept")
    _TARGET = flags.DEFINE_float("target", 1.5, "loss that the steps are counted to")
    app.run(main, flags_parser=parsed)
