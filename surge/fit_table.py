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
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from absl import flags

from surge import columns, mixing
from surge.cli import fail, parsed, run
from surge.columns import Roles
from surge.entries import fit_entry
from surge.report import page, summary
from surge.table import numbers, read
from surge.workdir import claim
from surge.workdir.files import ResultError, write_bytes, write_json

OWNED = ("config.json", "measure.nc", "sweep")  # what a workdir of surge.main holds
CELL = ["group", "batch_size", "learning_rate"]
AT_ENDS = 0.5  # share of the batch sizes whose best rate is the lowest or highest one


class Runs(NamedTuple):
    """A table as a fit reads it.

    Attributes:
      rows: columns group, batch_size, learning_rate, seed and value (log steps, or a loss; lower is
        better; nan where a run failed), in an order that does not depend on the table's.
      judged_by: "steps" or "loss".
      paired: whether runs of one seed have something in common.
      remarks: what a user should know of how the table was read.
    """

    rows: pd.DataFrame
    judged_by: str
    paired: bool
    remarks: list[str]


def tidy(
    table: pd.DataFrame,
    *,
    batch_size: str | None = None,
    learning_rate: str | None = None,
    loss: str | None = None,
    steps: str | None = None,
    tokens: str | None = None,
    seed: str | None = None,
    group: Sequence[str] = (),
    pool: bool = False,
    where: Sequence[str] = (),
    maximize: bool = False,
    diverged_above: float | None = None,
    pick: str | float | None = None,
    step: str | None = None,
    sequence_length: float = 1.0,
) -> Runs:
    """The runs of a table; arguments name columns as the flags do, None is guessed.

    Args:
      table: as `surge.table.read` gives it.
      batch_size, learning_rate, loss, steps, tokens, seed: columns.
      group: columns whose values are fitted apart.
      pool: whether runs that a column tells apart may be mixed.
      where: conditions COL=VALUE; rows that do not meet them are left out.
      maximize: whether a high value is good.
      diverged_above: a loss above it is that of a failed run.
      pick: "last", "best" or a step: one row of each run's history.
      step: column that numbers the rows of a history.
      sequence_length: tokens of an example, where batch_size is in tokens.

    Raises:
      ResultError: flags that contradict each other or the table, rows that are not runs, unlike
        runs that nothing tells apart, a batch size or rate that is not above 0, or no number at all
        in the column that runs are judged by.
    """
    given = {
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "loss": loss,
        "steps": steps,
        "tokens": tokens,
        "seed": seed,
    }
    table = columns.where(table, where).reset_index(drop=True)
    table, roles = columns.roles(table, given, group)
    if diverged_above is not None and (maximize or roles.judged_by != "loss"):
        raise ResultError("--diverged_above is of a loss that is minimized")
    table, said = _without_crashed(table, roles)
    said += columns.remarks(table, roles, maximize)
    # Cells are compared from here on: values that differ by rounding are one.
    axes = (roles.batch_size, roles.learning_rate)
    table = table.assign(**{name: columns.above_zero(table, name) for name in axes})
    table = mixing.one_row_a_run(table, roles, pick, step, maximize)
    table, repeated = _without_repeats(table, roles)
    value = _values(table, roles, maximize, diverged_above)
    if not pool:
        mixing.refuse_mixing(table, roles)
    size, rate = (table[name].to_numpy() for name in axes)
    rows = pd.DataFrame(
        {"batch_size": size / sequence_length, "learning_rate": rate, "value": value}
    )
    rows.insert(0, "group", _labels(table, roles.group))
    rows["seed"] = pd.factorize(table[seed])[0] if seed else 0
    rows = rows.sort_values([*CELL, "seed", "value"], kind="stable", ignore_index=True)
    judged_by = "loss" if roles.judged_by == "loss" else "steps"
    if unused := (steps or tokens) if loss else None:
        said.append(
            f"runs are judged by their loss: {unused!r} is not used, only steps to one target tell "
            "a noise scale"
        )
    said += repeated + _ends(rows, maximize)
    failed = int(rows["value"].isna().sum())
    if failed:
        said.insert(0, f"{failed} of {len(rows)} rows count as diverged or short of the target")
    return Runs(rows, judged_by, seed is not None, said)


def _without_crashed(table: pd.DataFrame, roles: Roles) -> tuple[pd.DataFrame, list[str]]:
    """The rows that have a batch size and a rate at all."""
    kept = table[[roles.batch_size, roles.learning_rate]].notna().all(axis=1)
    skipped = int((~kept).sum())
    if not kept.any():
        raise ResultError(
            f"no row has both {roles.batch_size!r} and {roles.learning_rate!r}: nothing to fit"
        )
    said = f"{skipped} of {len(table)} rows have no batch size or learning rate and are skipped"
    return table[kept], [said] if skipped else []


def _without_repeats(table: pd.DataFrame, roles: Roles) -> tuple[pd.DataFrame, list[str]]:
    """Each run once, where seeds tell runs: the same row twice is the same run."""
    if roles.seed is None:
        return table, []
    kept = table.drop_duplicates()
    count = len(table) - len(kept)
    return kept, [f"{count} rows stand twice and count once"] if count else []


def _values(
    table: pd.DataFrame,
    roles: Roles,
    maximize: bool,
    diverged_above: float | None,
) -> np.ndarray:
    """What each run is judged by [n], lower is better; nan where it failed."""
    value = numbers(table[roles.value])
    if roles.judged_by != "loss":
        value = np.where(value > 0, value, np.nan)
        per_step = table[roles.batch_size].to_numpy() if roles.judged_by == "tokens" else 1.0
        value = np.log(value / per_step)
    if diverged_above is not None:
        value = np.where(value > diverged_above, np.nan, value)
    if np.isnan(value).all():
        above = "" if roles.judged_by == "loss" else " above 0"
        raise ResultError(f"column {roles.value!r} holds no number{above}: nothing to fit")
    return -value if maximize else value


def _labels(table: pd.DataFrame, group: Sequence[str]) -> pd.Series:
    """The group of each row, like "width=256, depth=4", ordered by value and not by its letters."""
    if not group:
        return pd.Series(pd.Categorical(["all runs"] * len(table)))
    parts = [[f"{name}={columns.label(value)}" for value in table[name]] for name in group]
    labels = pd.Series([", ".join(each) for each in zip(*parts, strict=True)], table.index)
    in_order = table[[*group]].sort_values([*group], key=_sortable).index
    return pd.Series(pd.Categorical(labels, labels[in_order].unique()))


def _sortable(column: pd.Series) -> pd.Series:
    """A column by its numbers, or by its words where it has none."""
    values = pd.Series(numbers(column), column.index)
    return column.astype(str) if values.isna().any() else values


def _ends(rows: pd.DataFrame, maximize: bool) -> list[str]:
    """A remark where the best rates lie at the two ends of the grid and the worst between them."""
    means = rows.groupby(CELL, observed=True)["value"].mean().dropna()
    lowest = highest = worst = sizes = 0
    for _, curve in means.groupby(level=[0, 1], observed=True):
        if len(curve) < 3:
            continue
        sizes += 1
        lowest += curve.argmin() == 0
        highest += curve.argmin() == len(curve) - 1
        worst += 0 < curve.argmax() < len(curve) - 1
    if not sizes or min(lowest, highest, 1) == 0 or worst / sizes <= AT_ENDS or maximize:
        return []
    return [
        "the best rates lie at both ends of the grid and the worst between them: if a high value "
        "is good, add --maximize"
    ]


def entries(runs: Runs) -> list[dict[str, Any]]:
    """The entries of fit.json, one a group, with its number of `runs` and of those `failed`."""
    found = []
    for name, part in runs.rows.groupby("group", observed=True):
        rows = {column: part[column].to_numpy() for column in ("batch_size", "learning_rate")}
        rows |= {"value": part["value"].to_numpy(), "seed": _seeds(part, runs.paired)}
        labels = {
            "optimizer": name,
            "target_loss": None,
            "runs": len(part),
            "failed": int(part["value"].isna().sum()),
        }
        found.append(fit_entry(rows, runs.judged_by, **labels))
    return found


def _seeds(part: pd.DataFrame, paired: bool) -> np.ndarray:
    """The seed of each run; of runs that are not paired, one of its own."""
    return part["seed"].to_numpy() if paired else np.arange(len(part))


def fits(table: pd.DataFrame, **named: Any) -> list[dict[str, Any]]:
    """The entries of fit.json for a table of runs; arguments and errors are those of `tidy`."""
    return entries(tidy(table, **named))


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
        content = {"fits": entries(runs), "table": source, "remarks": runs.remarks}
        write_json(workdir / "fit.json", content)
        write_bytes(workdir / "runs.csv", runs.rows.to_csv(index=False).encode())
        page.write(workdir)


def define_flags() -> None:
    """The flags of the program; in a notebook that imports this module there are none."""
    flags.DEFINE_string("batch_size", None, "Column of the batch size.")
    flags.DEFINE_string("learning_rate", None, "Column of the learning rate.")
    flags.DEFINE_string("loss", None, "Column of the loss at the end of a run: lower is better.")
    flags.DEFINE_string("steps", None, "Column of the optimizer steps to the target.")
    flags.DEFINE_string("tokens", None, "Column of the examples or tokens to the target.")
    flags.DEFINE_string("seed", None, "Column of the seed; none: runs are not paired.")
    flags.DEFINE_multi_string("group", [], "Column whose values are fitted apart.")
    flags.DEFINE_bool("pool", False, "Mix runs that a column tells apart.")
    flags.DEFINE_multi_string("where", [], "COL=VALUE: take only the rows with that value.")
    flags.DEFINE_bool("maximize", False, "A high value is good, as of an accuracy.")
    flags.DEFINE_float("diverged_above", None, "A loss above it is that of a failed run.")
    flags.DEFINE_bool("last", False, "Of a history, take the last row of each run.")
    flags.DEFINE_bool("best", False, "Of a history, take the best row of each run.")
    flags.DEFINE_float("at", None, "Of a history, take the row of each run at this step.")
    flags.DEFINE_string("step", None, "Column that numbers the rows of a history.")
    flags.DEFINE_float("sequence_length", 1.0, "Tokens of an example; batch sizes are in tokens.")
    flags.DEFINE_string("workdir", None, "Where fit.json and report.html go.")


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
    if len(argv) != 2:
        fail("give one table of runs: python -m surge.fit_table runs.csv --loss=COL --workdir=DIR")
    given = flags.FLAGS.flag_values_dict()
    if given["workdir"] is None:
        fail("--workdir is missing: where shall fit.json and report.html go?")
    workdir = Path(given["workdir"])
    same = (*("batch_size", "learning_rate", "loss", "steps", "tokens", "seed", "group"), "pool")
    same = (*same, "where", "maximize", "diverged_above", "step", "sequence_length")
    try:
        table = read(Path(argv[1]))
        runs = tidy(table, pick=picked(given), **{name: given[name] for name in same})
        write(runs, workdir, Path(argv[1]).name)
    except (ResultError, OSError) as error:
        fail(error)
    print("\n".join(runs.remarks + summary.lines(workdir)))


if __name__ == "__main__":
    define_flags()
    run(lambda argv: main(parsed(argv)))
