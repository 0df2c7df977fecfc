"""Writes surge/theory/judged.py: the errors that every rule made on the judged sweeps.

    python scripts/calibrate_rules.py            # from docs/results/predictions
    python scripts/calibrate_rules.py --check    # only says whether the file is as this writes it

Either prints how well each judged move is told with its task left out: how many are inside the 95%
interval, and the median factor off beside that of √B and of a rule without error.

A rule's error is log of its ε(B)/ε(B0) over the swept one, for each e-fold of batch size: it grows
with the distance. What is stored is its mean square in each task and kind of optimizer. Most ratios
are those that were written before the sweeps; "surge, then flat", "halfway" and "one law over a
run" were thought of later and are evaluated here from the same checkpoints.
"""

import json
import math
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from judge_predictions import known, perfect

from surge.cli import HELP
from surge.theory.rules import RULES, Known
from surge.theory.transfer import average, from_rules, psi_grid

ROOT = Path(__file__).parent.parent
STORED = ROOT / "docs" / "results" / "predictions"
TABLE = ROOT / "surge" / "theory" / "judged.py"
BEYOND = 2.0  # times the optimum, from where runs fail
CLEAR = 0.3  # |log error| below which the extra steps are those of chance


class Move(NamedTuple):
    """One judged move: from B0 to B, with what a checkpoint said and what the sweep gave."""

    task: str
    optimizer: str
    base: float
    batch_size: float
    swept: float
    known: Known


def moves() -> list[Move]:
    """Every move of the stored judgement, with what its checkpoint told."""
    judged = json.loads((STORED / "judgement.json").read_text())
    rows = [row for row in judged if row["rule"] == "constant"]
    stored = {
        task: json.loads((STORED / f"{task}-predictions.json").read_text())
        for task in {row["experiment"] for row in rows}
    }
    return [
        Move(
            row["experiment"],
            row["optimizer"],
            stored[row["experiment"]]["base"],
            row["batch_size"],
            row["swept"],
            known(stored[row["experiment"]], row["optimizer"]),
        )
        for row in rows
    ]


def errors() -> dict[str, dict[str, dict[str, float]]]:
    """{rule: {kind: {task: mean squared log error for each squared e-fold of batch size}}}."""
    squares = defaultdict(list)
    for move in moves():
        distance = math.log(move.batch_size / move.base)
        for name, rule in RULES.items():
            said = rule(move.batch_size, move.base, move.known)
            squares[name, move.known.kind, move.task].append(
                ((said - math.log(move.swept)) / distance) ** 2
            )
    table: dict[str, dict[str, dict[str, float]]] = {}
    for (name, kind, task), values in squares.items():
        if np.isfinite(values).any():
            tasks = table.setdefault(name, {}).setdefault(kind, {})
            tasks[task] = float(f"{np.nanmean(values):.3g}")
    return table


def costs() -> dict[str, tuple[float, float, float]]:
    """c of log(1 + extra steps) = c · (log error)²: median, 95% range, for rates too low and high.

    Rates off the grid of a sweep, and those at which runs failed, have none.
    """
    judged = json.loads((STORED / "judgement.json").read_text())
    found = {}
    for side, sign in (("low", -1), ("high", 1)):
        bends = [
            math.log1p(row["regret"]) / row["log_error"] ** 2
            for row in judged
            if row["outcome"] == "arrives" and sign * (row["log_error"] or 0) > CLEAR
        ]
        found[side] = tuple(
            float(f"{bend:.3g}") for bend in np.quantile(bends, (0.5, 0.025, 0.975))
        )
    return found


def failures() -> tuple[int, int, float]:
    """Of the judged runs at rates too high by more than BEYOND: those that failed, all; BEYOND."""
    judged = json.loads((STORED / "judgement.json").read_text())
    high = [
        row["outcome"]
        for row in judged
        if (row["log_error"] or 0) > math.log(BEYOND) and row["outcome"] != "off the grid"
    ]
    return high.count("fails"), len(high), BEYOND


def text() -> str:
    """The file, as it should be."""
    failed, of, beyond = failures()
    return f'''"""How far off each rule was where it was judged; by scripts/calibrate_rules.py.

JUDGED: rule -> kind of optimizer -> task -> mean squared error of log ε for each squared e-fold of
batch size. COST: c of log(1 + extra steps) = c · (log error)², median and 95% range, for rates that
are too low and too high. FAILED: of the runs at rates too high by more than a factor BEYOND, how
many failed, of how many.
"""

JUDGED: dict[str, dict[str, dict[str, float]]] = {literal(errors())}
COST: dict[str, tuple[float, ...]] = {literal(costs())}
FAILED = ({failed}, {of})
BEYOND = {beyond}
'''


def literal(value: Any, indent: str = "") -> str:
    """Python text of nested dicts, an item a line."""
    if not isinstance(value, dict):
        return repr(value)
    deeper = indent + "    "
    items = [f'{deeper}"{name}": {literal(item, deeper)},' for name, item in value.items()]
    return "\n".join(["{", *items, indent + "}"])


def coverage(measured: bool) -> str:
    """How the judged moves are told with their task left out, with a checkpoint or without."""
    inside = []
    off = []
    for move in moves():
        facts = move.known if measured else Known(move.known.kind)
        beliefs = from_rules(move.batch_size, move.base, facts, left_out=move.task)
        said = average(psi_grid(move.batch_size, move.base), beliefs)
        inside.append(said.low <= move.swept <= said.high)
        off.append(abs(math.log(said.ratio / move.swept)))
    judged = json.loads((STORED / "judgement.json").read_text())
    rows = [row for row in judged if row["rule"] == "sqrt"]
    sqrt = [abs(row["log_error"]) for row in rows]
    floor, _ = perfect(rows)
    return (
        f"{'with' if measured else 'without'} a checkpoint: {sum(inside)} of {len(inside)} judged "
        f"moves inside, median factor off {math.exp(np.median(off)):.2f}; "
        f"√B {math.exp(np.median(sqrt)):.2f}, a rule without error {floor:.2f}"
    )


def main() -> None:
    print(coverage(measured=True), coverage(measured=False), sep="\n")
    if set(HELP) & set(sys.argv):
        print(__doc__)
        return
    if "--check" in sys.argv:
        sys.exit(TABLE.read_text() != text())
    TABLE.write_text(text())


if __name__ == "__main__":
    main()
