"""How good is a probe? Its answer beside a dense sweep's, and what either cost.

    python scripts/check_probe.py --out=docs/probe.md     # about 10 minutes on two cores

MNIST-1D, an MLP, Adam and sign descent. The sweep is the stored one of docs/results/predictions
(its own seeds): its optimum at B0 is the rate that a user has, its optimum at 16 · B0 what the
probe is to find, with no checkpoint and with rules whose errors on this task are left out. The
dense sweep is counted as if every run of it ended at the target, which makes it cheap.
"""

import json
import math
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pandas as pd
from absl import app, flags, logging
from judge_predictions import read_runs, regret

from surge.cli import parsed
from surge.tasks import Task
from surge.tasks.mlp import mnist1d
from surge.theory import probing
from surge.theory.rules import Known, kind_of
from surge.theory.transfer import average, from_rules, psi_grid
from surge.training.hardware import enable_compilation_cache
from surge.training.probe import Goal, run_probe
from surge.workdir.files import write_bytes

_OUT = flags.DEFINE_string("out", "runs/probe.md", "where the table goes")
_SEEDS = flags.DEFINE_integer("seeds", 0, "probes of each move; 0: ten of each optimizer")

STORED = Path(__file__).parent.parent / "docs" / "results" / "predictions"
OPTIMIZERS = {"adam": "adam(b1=0.9, b2=0.999)", "sign_sgd": "sign_sgd"}
MOVES = {(16, 256): 4, (64, 1024): 3, (256, 4096): 3}  # and probes of each
TARGET = 1.2
STEPS, EXAMPLES = 6_000, 800_000  # where a run of the sweep ended
BUDGET = 0.05
SHARES = (0.0, 0.01, 0.02, 0.03, 0.05)
SQRT_2 = math.sqrt(2)


class Row(NamedTuple):
    """One probe.

    Attributes:
      optimizer, base, size, seed: what was probed.
      truth: log ratio of the sweep.
      spent: share of the dense sweep after each number of runs, 0 first [n + 1].
      said: median and 95% interval of the log ratio then [n + 1, 3].
    """

    optimizer: str
    base: int
    size: int
    seed: int
    truth: float
    spent: list[float]
    said: list[tuple[float, float, float]]

    def off(self, share: float) -> float:
        """|log error| of what was said when so much of a dense sweep was spent."""
        last = sum(spent <= share for spent in self.spent) - 1
        return abs(self.said[last][0] - self.truth)


def optima() -> dict[tuple[str, int], float]:
    """(optimizer, batch size) -> the sweep's rate."""
    fits = json.loads((STORED / "mnist1d-fit.json").read_text())["fits"]
    return {
        (fit["optimizer"], point["batch_size"]): point["lr"]
        for fit in fits
        if fit["target_loss"] == TARGET
        for point in fit["optimal_lr"]
    }


def dense(optimizer: str, sizes: tuple[int, ...] = ()) -> float:
    """Examples of the stored sweep to the target, all batch sizes or some."""
    runs = pd.read_csv(STORED / "mnist1d-runs.csv")
    chosen = (runs.optimizer == optimizer) & (runs.batch_size.isin(sizes) if sizes else True)
    part = runs[chosen]
    longest = np.minimum(STEPS, EXAMPLES // part.batch_size)
    steps = np.minimum(part[f"steps_{TARGET:g}"].fillna(np.inf), longest)
    return float((steps * part.batch_size).sum())


def probed(task: Task, optimizer: str, base: int, size: int, seed: int) -> Row:
    """One probe, run by run."""
    lr = optima()[optimizer, base]
    truth = math.log(optima()[optimizer, size] / lr)
    grid = psi_grid(size, base)
    rules = from_rules(size, base, Known(kind_of(optimizer)), left_out="mnist1d")
    known = probing.hypotheses(grid, average(grid, rules).mass)
    whole = dense(optimizer)
    goal = Goal(OPTIMIZERS[optimizer], size, lr, TARGET, EXAMPLES, BUDGET * whole)
    tries = []
    spent = [0.0]
    said = [probing.interval(known, tries)]
    for run in run_probe(task, goal, known, jax.random.key(1_000 + seed)):
        tries.append(run.outcome)
        spent.append(spent[-1] + run.examples / whole)
        said.append(probing.interval(known, tries))
    return Row(optimizer, base, size, seed, truth, spent, said)


def extra(row: Row) -> float:
    """Steps at the probe's rate over those at the sweep's optimum, less 1, by the sweep's runs."""
    runs = read_runs(STORED / "mnist1d-runs.csv", row.optimizer, TARGET)
    known = optima()
    lr = known[row.optimizer, row.base] * math.exp(row.said[-1][0])
    best = regret(runs, row.size, known[row.optimizer, row.size])[1]
    said = regret(runs, row.size, lr)[1]
    return math.expm1(said - best) if math.isfinite(said) else math.inf


def overlap(row: Row) -> bool:
    """Whether the probe's interval and that of the sweep have a rate in common."""
    fits = json.loads((STORED / "mnist1d-fit.json").read_text())["fits"]
    point = next(
        point
        for fit in fits
        if (fit["optimizer"], fit["target_loss"]) == (row.optimizer, TARGET)
        for point in fit["optimal_lr"]
        if point["batch_size"] == row.size
    )
    lr = optima()[row.optimizer, row.base]
    _, low, high = (lr * math.exp(end) for end in row.said[-1])
    return low <= point["high"] and point["low"] <= high


def table(rows: list[Row]) -> str:
    """The page."""
    lines = [
        "# What a probe costs, and how right it is",
        "",
        f"By `scripts/check_probe.py`: MNIST-1D, MLP, to loss {TARGET}, batch size times 16, from "
        "the rate that the stored dense sweep has at B0. *Right* is within ±√2 of the sweep's own "
        "optimum, which has an error of its own; *extra steps* are those of the sweep's runs at "
        "the probe's rate over those at that optimum. No checkpoint; rules judged on other tasks. "
        "The dense sweep is 6 batch sizes and 2 seeds, each run ended at the target.",
        "",
        "| optimizer | B0 -> B | probes | right | sweep in the interval | intervals meet "
        "| median factor off | worst | extra steps | runs "
        "| share of the dense sweep | of its column at B |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for optimizer in OPTIMIZERS:
        own = [row for row in rows if row.optimizer == optimizer]
        lines += [_line([row for row in own if (row.base, row.size) == move]) for move in MOVES]
        lines.append(_line(own, total=True))
    lines += [
        "",
        "Median factor off the sweep, and the share of probes within √2, against what was spent:",
        "",
        "| optimizer | " + " | ".join(f"{share:.0%}" for share in SHARES) + " |",
        "|---" * (len(SHARES) + 1) + "|",
    ]
    for optimizer in OPTIMIZERS:
        own = [row for row in rows if row.optimizer == optimizer]
        cells = []
        for share in SHARES:
            off = np.exp([row.off(share) for row in own])
            cells.append(f"{np.median(off):.2f}, {np.mean(off <= SQRT_2):.0%}")
        lines.append(f"| {optimizer} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _line(rows: list[Row], total: bool = False) -> str:
    """A line of the table, of one move or of all of an optimizer."""
    if not rows:
        return ""
    off = np.exp([row.off(1.0) for row in rows])
    right = int((off <= SQRT_2).sum())
    inside = sum(row.said[-1][1] <= row.truth <= row.said[-1][2] for row in rows)
    shares = [row.spent[-1] for row in rows]
    columns = [
        row.spent[-1] * dense(row.optimizer) / dense(row.optimizer, (row.size,)) for row in rows
    ]
    runs = np.mean([len(row.spent) - 1 for row in rows])
    move = "**all**" if total else f"{rows[0].base} -> {rows[0].size}"
    meet = sum(map(overlap, rows))
    cells = (
        rows[0].optimizer,
        move,
        len(rows),
        f"{right} of {len(rows)}",
        f"{inside} of {len(rows)}",
        f"{meet} of {len(rows)}",
        f"{np.median(off):.2f}",
        f"{off.max():.2f}",
        f"{np.median([extra(row) for row in rows]):+.0%}",
        f"{runs:.1f}",
        f"{np.median(shares):.1%}, at most {max(shares):.1%}",
        f"{np.median(columns):.0%}",
    )
    return f"| {' | '.join(map(str, cells))} |"


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.INFO)
    enable_compilation_cache()
    task = mnist1d(model="mlp", widths=(100, 100), examples=20_000, evaluation_examples=1_024)
    rows = []
    for optimizer in OPTIMIZERS:
        for (base, size), probes in MOVES.items():
            for seed in range(_SEEDS.value or probes):
                rows.append(probed(task, optimizer, base, size, seed))
                logging.info("%s", rows[-1])
    write_bytes(_OUT.value, table(rows).encode())
    print(table(rows))


if __name__ == "__main__":
    app.run(main, flags_parser=parsed)
