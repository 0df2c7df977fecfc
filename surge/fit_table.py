"""Fits every law to a sweep that you already have, in a CSV or TSV file.

python -m surge.fit_table runs.csv --batch_size=COL --learning_rate=COL --loss=COL [--group=COL ...] --workdir=DIR

Each row is a run. Give --loss, the loss it ended at, or --steps, the steps (or, with --tokens, the tokens) it took
to a target; an empty cell, or one that is not a finite number, is a run that diverged or did not get there.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from absl import app, flags

from surge import results
from surge.cli import fail, parsed
from surge.report import page, summary
from surge.theory.table import fit_table

_BATCH_SIZE = flags.DEFINE_string("batch_size", "batch_size", "Column of the batch size.")
_LEARNING_RATE = flags.DEFINE_string("learning_rate", "learning_rate", "Column of the learning rate.")
_LOSS = flags.DEFINE_string("loss", None, "Column of the loss at the end of the run: lower is better.")
_STEPS = flags.DEFINE_string("steps", None, "Column of the optimizer steps to the target.")
_TOKENS = flags.DEFINE_string("tokens", None, "Column of the examples or tokens to the target, in batch_size's unit.")
_SEED = flags.DEFINE_string("seed", None, "Column of the seed; none: rows of one cell are replicates.")
_GROUP = flags.DEFINE_multi_string("group", [], "Column whose values are fitted apart, such as the optimizer.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where fit.json and report.html go.")


def read(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """The table, with all of `columns`.

    Raises:
      ResultError: no such file, not a table, no rows, or a column that it does not have.
    """
    if not path.exists():
        raise results.ResultError(f"{path} does not exist: give the table of runs as the first argument")
    try:
        table = pd.read_csv(path, sep=None, engine="python")
    except (ValueError, OSError, csv.Error) as error:
        raise results.ResultError(f"{path} is not a table of comma or tab separated columns: {error}") from None
    for column in columns:
        if column not in table.columns:
            raise results.ResultError(f"{path} has no column {column!r}: it has {', '.join(map(str, table.columns))}")
    if table.empty:
        raise results.ResultError(f"{path} has no rows")
    return table


def _numbers(table: pd.DataFrame, column: str) -> np.ndarray:
    values = pd.to_numeric(table[column], errors="coerce").to_numpy(float)
    return np.where(np.isfinite(values), values, np.nan)


def fits(
    table: pd.DataFrame,
    *,
    batch_size: str,
    learning_rate: str,
    loss: str | None,
    steps: str | None,
    tokens: str | None,
    seed: str | None,
    group: Sequence[str],
) -> list[dict]:
    """The entries of fit.json for a table of runs; arguments name columns as the flags do.

    Raises:
      ResultError: neither or both of loss and steps (or tokens), or a batch size or rate that is not above 0.
    """
    if (loss is None) == (steps is None and tokens is None):
        raise results.ResultError("give either --loss or one of --steps and --tokens: what a run is judged by")
    size, rate = _numbers(table, batch_size), _numbers(table, learning_rate)
    for column, values in ((batch_size, size), (learning_rate, rate)):
        if not (values > 0).all():
            row = int(np.flatnonzero(~(values > 0))[0])
            raise results.ResultError(f"column {column!r} must be above 0 in every row: row {row + 1} is not")
    if loss is not None:
        value, taken = _numbers(table, loss), np.full(len(table), np.nan)
    else:
        taken = _numbers(table, steps) if steps is not None else _numbers(table, str(tokens)) / size
        taken = np.where(taken > 0, taken, np.nan)
        value = np.log(taken)
    keys = table.groupby(list(group), sort=True, dropna=False).ngroup() if group else pd.Series(0, table.index)
    entries = []
    for _, index in table.groupby(keys.to_numpy()).indices.items():
        name = ", ".join(str(table[column].iloc[index[0]]) for column in group) or "all runs"
        part = table.iloc[index]
        repeat = part.groupby([batch_size, learning_rate]).cumcount().to_numpy()
        rows = {
            "batch_size": size[index],
            "learning_rate": rate[index],
            "seed": part[seed].to_numpy() if seed else repeat,
            "value": value[index],
            "steps": taken[index],
        }
        entries.append(fit_table(rows, "steps" if loss is None else "loss", optimizer=name, target_loss=None))
    return entries


def main(argv: Sequence[str]) -> None:
    if len(argv) != 2:
        fail("give one table of runs: python -m surge.fit_table runs.csv --loss=COL --workdir=DIR")
    if _WORKDIR.value is None:
        fail("--workdir is missing: where shall fit.json and report.html go?")
    columns = {
        "batch_size": _BATCH_SIZE.value,
        "learning_rate": _LEARNING_RATE.value,
        "loss": _LOSS.value,
        "steps": _STEPS.value,
        "tokens": _TOKENS.value,
        "seed": _SEED.value,
    }
    workdir = Path(_WORKDIR.value)
    try:
        table = read(Path(argv[1]), [*filter(None, columns.values()), *_GROUP.value])
        results.write_json(workdir / "fit.json", {"fits": fits(table, **columns, group=_GROUP.value)})
        page.write(workdir)
    except (results.ResultError, OSError) as error:
        fail(error)
    print("\n".join(summary.lines(workdir)))


if __name__ == "__main__":
    app.run(main, flags_parser=parsed)
