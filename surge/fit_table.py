"""Fits every law to a sweep that you already have, in a CSV, TSV or Parquet file.

python -m surge.fit_table runs.csv --batch_size=COL --learning_rate=COL --loss=COL [--group=COL ...]
--workdir=DIR

Each row is a run. Give --loss, the loss it ended at, or --steps, the steps (or, with --tokens, the
tokens) it took to a target; an empty cell, or one that is not a finite number, is a run that
diverged or did not get there. Where
--loss is given runs are judged by it alone: what steps they took to unlike losses tells no noise
scale.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from absl import app, flags

from surge.cli import fail, parsed
from surge.entries import fit_entry
from surge.report import page, summary
from surge.workdir import files

_BATCH_SIZE = flags.DEFINE_string("batch_size", "batch_size", "Column of the batch size.")
_LEARNING_RATE = flags.DEFINE_string(
    "learning_rate", "learning_rate", "Column of the learning rate."
)
_LOSS = flags.DEFINE_string(
    "loss", None, "Column of the loss at the end of the run: lower is better."
)
_STEPS = flags.DEFINE_string("steps", None, "Column of the optimizer steps to the target.")
_TOKENS = flags.DEFINE_string(
    "tokens", None, "Column of the examples or tokens to the target, in batch_size's unit."
)
_SEED = flags.DEFINE_string(
    "seed", None, "Column of the seed; none: rows of one cell are replicates."
)
_GROUP = flags.DEFINE_multi_string(
    "group", [], "Column whose values are fitted apart, such as the optimizer."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where fit.json and report.html go.")

SEPARATORS = ",\t;"
ROUNDING = 1e-6  # relative difference of two batch sizes or rates that were meant to be the same


def read(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """The table, with all of `columns`.

    Raises:
      ResultError: no such file, not a table in UTF-8, no rows, or a column that it does not have,
        or has twice.
    """
    if not path.exists():
        raise files.ResultError(
            f"{path} does not exist: give the table of runs as the first argument"
        )
    try:
        table = pd.read_parquet(path) if path.suffix == ".parquet" else _read_text(path)
    except ImportError:
        raise files.ResultError(
            f"{path}: to read Parquet, pip install pyarrow, or export it as CSV"
        ) from None
    except UnicodeDecodeError:
        raise files.ResultError(
            f"{path} is not text in UTF-8: export it again as CSV in UTF-8"
        ) from None
    except (ValueError, OSError) as error:
        raise files.ResultError(
            f"{path} is not a table of comma or tab separated columns: {error}"
        ) from None
    table.columns = [str(column).strip() for column in table.columns]
    for column in columns:
        if (count := list(table.columns).count(column)) != 1:
            has = f"{count} columns" if count else "no column"
            raise files.ResultError(
                f"{path} has {has} {column!r}: it has {', '.join(table.columns)}"
            )
    if table.empty:
        raise files.ResultError(f"{path} has no rows")
    return table


def _read_text(path: Path) -> pd.DataFrame:
    with path.open(encoding="utf-8-sig") as lines:
        header = next(filter(str.strip, lines), "")
    separator = max(SEPARATORS, key=header.count)
    table = pd.read_csv(
        path, sep=separator, encoding="utf-8-sig", skipinitialspace=True, low_memory=False
    )
    if not isinstance(
        table.index, pd.RangeIndex
    ):  # which pandas takes for names of the rows, and shifts the header
        raise ValueError("its rows have more columns than its header")
    return table


def _numbers(table: pd.DataFrame, column: str) -> np.ndarray:
    values = pd.to_numeric(table[column], errors="coerce").to_numpy(float)
    return np.where(np.isfinite(values), values, np.nan)


def _above_zero(table: pd.DataFrame, column: str) -> np.ndarray:
    """A column that must be positive throughout, with values that differ by rounding made equal."""
    values = _numbers(table, column)
    if not (values > 0).all():
        row = int(np.flatnonzero(~(values > 0))[0])
        cell = str(table[column].iloc[row])
        raise files.ResultError(
            f"column {column!r} must be above 0 in every row: row {row + 1} holds {cell!r}"
        )
    unique, inverse = np.unique(values, return_inverse=True)
    distinct = np.concatenate([[True], unique[1:] > unique[:-1] * (1 + ROUNDING)])
    return unique[distinct][distinct.cumsum() - 1][inverse]


def _check(columns: Mapping[str, str | None], group: Sequence[str]) -> None:
    """Raises ResultError where the flags, by name, do not say what a run is judged by, or
    contradict each other."""
    if not any(columns[name] for name in ("loss", "steps", "tokens")):
        raise files.ResultError("give --loss, --steps or --tokens: what a run is judged by")
    if columns["steps"] and columns["tokens"]:
        raise files.ResultError(
            "give --steps or --tokens, not both: a run is judged by one of them"
        )
    taken: dict[str, str] = {}
    for name, column in (*columns.items(), *(("group", each) for each in group)):
        if column in taken:
            raise files.ResultError(
                f"column {column!r} is given twice: for --{taken[column]} and for --{name}"
            )
        if column:
            taken[column] = name


def fits(
    table: pd.DataFrame,
    *,
    batch_size: str,
    learning_rate: str,
    loss: str | None = None,
    steps: str | None = None,
    tokens: str | None = None,
    seed: str | None = None,
    group: Sequence[str] = (),
) -> list[dict]:
    """The entries of fit.json for a table of runs; arguments name columns as the flags do.

    Returns:
      What `surge.entries.fit_entry` says of each group, with the numbers of its `runs` and of
      those `failed`.

    Raises:
      ResultError: flags that contradict each other or name one column twice, a batch size or rate
        that is not above 0, or no number at all in the column that runs are judged by.
    """
    columns = {"batch_size": batch_size, "learning_rate": learning_rate, "seed": seed}
    _check(columns | {"loss": loss, "steps": steps, "tokens": tokens}, group)
    size, rate = _above_zero(table, batch_size), _above_zero(table, learning_rate)
    judged = str(loss or steps or tokens)
    value = _numbers(table, judged)
    if loss is None:
        value = np.where(value > 0, value, np.nan)
        value = np.log(value / size if tokens else value)
    if np.isnan(value).all():
        raise files.ResultError(
            f"column {judged!r} holds no number{'' if loss else ' above 0'}: nothing to fit"
        )
    keys = (
        table.groupby(list(group), dropna=False).ngroup().to_numpy()
        if group
        else np.zeros(len(table), int)
    )
    cells = pd.DataFrame({"key": keys, "batch_size": size, "learning_rate": rate})
    seeds = pd.factorize(table[seed])[0] if seed else cells.groupby([*cells]).cumcount().to_numpy()
    rows = {"batch_size": size, "learning_rate": rate, "seed": seeds, "value": value}
    entries = []
    for key in sorted(set(keys.tolist())):
        chosen = keys == key
        first = table.iloc[int(chosen.argmax())]
        labels = {
            "optimizer": ", ".join(f"{column}={first[column]}" for column in group) or "all runs",
            "target_loss": None,
            "runs": int(chosen.sum()),
            "failed": int(np.isnan(value[chosen]).sum()),
        }
        part = {name: column[chosen] for name, column in rows.items()}
        entries.append(fit_entry(part, "loss" if loss else "steps", **labels))
    return entries


def _remarks(entries: Sequence[dict], columns: Mapping[str, str | None]) -> list[str]:
    """What the user should know of how the table was read."""
    failed, runs = (sum(entry[name] for entry in entries) for name in ("failed", "runs"))
    unused = (columns["steps"] or columns["tokens"]) if columns["loss"] else None
    said = [f"{failed} of {runs} rows count as diverged or short of the target"] if failed else []
    if unused:
        said.append(
            f"runs are judged by their loss: {unused!r} is not used, only steps to one target tell a noise scale"
        )
    return said


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
        entries = fits(table, **columns, group=_GROUP.value)
        files.write_json(workdir / "fit.json", {"fits": entries})
        page.write(workdir)
    except (files.ResultError, OSError) as error:
        fail(error)
    print("\n".join(_remarks(entries, columns) + summary.lines(workdir)))


if __name__ == "__main__":
    app.run(main, flags_parser=parsed)
