"""Fits every law to a sweep that you already have, in a table of runs.

python -m surge.fit_table runs.csv --batch_size=COL --learning_rate=COL --loss=COL [--group=COL ...]
--workdir=DIR

Each row is a run. Give --loss, the loss it ended at, or --steps, the steps (or, with --tokens, the
tokens) it took to a target; an empty cell, or one that is not a finite number, is a run that
diverged or did not get there. Where --loss is given runs are judged by it alone: what steps they
took to unlike losses tells no noise scale. Columns with plain names are found without a flag.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from absl import flags

from surge.cli import fail, parse, run
from surge.report import page, summary
from surge.tables.pooling import pooled, sentence
from surge.tables.reading import read
from surge.tables.tidy import Runs, entries, tidy
from surge.workdir import claim
from surge.workdir.files import ResultError, write_bytes, write_fits

TEXTS = {
    "batch_size": "Column of the batch size.",
    "learning_rate": "Column of the learning rate.",
    "loss": "Column of the loss at the end of a run: lower is better.",
    "steps": "Column of the optimizer steps to the target.",
    "tokens": "Column of the examples or tokens to the target, in batch_size's unit.",
    "seed": "Column of the seed; none: runs are not paired.",
    "step": "Column that numbers the rows of a history.",
    "workdir": "Where fit.json and report.html go.",
}
LISTS = {
    "group": "Column whose values are fitted apart, such as the optimizer.",
    "covariate": "Group whose value may move the law: fit all groups together.",
    "where": "COL=VALUE: take only the rows with that value.",
}
SWITCHES = {
    "pool": "Mix runs that a column tells apart.",
    "maximize": "A high value is good, as of an accuracy.",
    "last": "Of a history, take the last row of each run.",
    "best": "Of a history, take the best row of each run.",
}
NUMBERS = {
    "at": (None, "Of a history, take the row of each run at this step."),
    "diverged_above": (None, "A loss above it is that of a failed run."),
    "sequence_length": (1.0, "Tokens of an example, where batch sizes are in tokens."),
}
PASSED = (  # to `tidy` as they are
    *("batch_size", "learning_rate", "loss", "steps", "tokens", "seed", "step", "group", "where"),
    *("pool", "maximize", "diverged_above", "sequence_length", "covariate"),
)
OWNED = ("config.json", "measure.nc", "sweep")  # what a workdir of surge.main holds


def write(runs: Runs, workdir: Path, source: str) -> None:
    """Writes fit.json, runs.csv (the table as it was read) and the report.

    Raises:
      ResultError: another process is at work there, or it holds results of surge.main.
    """
    with claim.lock_workdir(workdir):
        owned = [name for name in OWNED if (workdir / name).exists()]
        if owned:
            raise ResultError(
                f"{workdir} holds a run of surge.main ({', '.join(owned)}): give another --workdir"
            )
        fitted = entries(runs)
        about: dict[str, Any] = {"table": source, "remarks": runs.remarks}
        if runs.covariates:
            about["pooled"] = pooled(fitted, runs.covariates)
            about["together"] = sentence(about["pooled"])
        write_fits(workdir, fitted, **about)
        write_bytes(workdir / "runs.csv", _as_read(runs).to_csv(index=False).encode())
        page.write(workdir)


def _as_read(runs: Runs) -> pd.DataFrame:
    """The runs as a user reads them: steps where they were judged by the logarithm of them."""
    if runs.judged_by == "loss":
        return runs.rows.rename(columns={"value": "loss"})
    return runs.rows.assign(steps=np.exp(runs.rows["value"])).drop(columns="value")


def own_flags() -> flags.FlagValues:
    """The flags of the program."""
    values = flags.FlagValues()
    for name, meaning in TEXTS.items():
        flags.DEFINE_string(name, None, meaning, flag_values=values)
    for name, meaning in LISTS.items():
        flags.DEFINE_multi_string(name, [], meaning, flag_values=values)
    for name, meaning in SWITCHES.items():
        flags.DEFINE_bool(name, False, meaning, flag_values=values)
    for name, (default, meaning) in NUMBERS.items():
        flags.DEFINE_float(name, default, meaning, flag_values=values)
    return values


def picked(given: Mapping[str, Any]) -> str | float | None:
    """Which row of a history --last, --best or --at take.

    Raises:
      ResultError: more than one of them.
    """
    chosen = [name for name in ("last", "best") if given[name]]
    chosen += [] if given["at"] is None else [given["at"]]
    if len(chosen) > 1:
        raise ResultError("give one of --last, --best and --at")
    return chosen[0] if chosen else None


def main(argv: Sequence[str]) -> None:
    """The program, `argv` being its name and its arguments."""
    values = own_flags()
    argv = parse(values, argv, __doc__)
    if len(argv) != 2:
        fail("give one table of runs: python -m surge.fit_table runs.csv --loss=COL --workdir=DIR")
    given = values.flag_values_dict()
    if not given["workdir"]:
        fail("--workdir is missing: where shall fit.json and report.html go?")
    workdir = Path(given["workdir"])
    try:
        table = read(Path(argv[1]))
        runs = tidy(table, pick=picked(given), **{name: given[name] for name in PASSED})
        write(runs, workdir, Path(argv[1]).name)
    except (ResultError, OSError) as error:
        fail(error)
    print("\n".join([*runs.remarks, *summary.lines(workdir)]))


if __name__ == "__main__":
    run(main)
