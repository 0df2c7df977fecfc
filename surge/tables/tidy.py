"""From a table of runs to what a fit reads: rows of cells, and the entries of fit.json."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from surge.entries import fit_entry
from surge.tables import columns, mixing
from surge.tables.columns import Roles
from surge.tables.reading import numbers
from surge.workdir.files import ResultError

LARGEST = 1e60  # a loss beyond it is that of a run that diverged: a fit takes fourth powers
CELL = ["group", "batch_size", "learning_rate"]
AT_ENDS = 0.5  # share of the batch sizes whose worst rate lies inside the grid


class Runs(NamedTuple):
    """A table as a fit reads it.

    Attributes:
      rows: columns group, batch_size, learning_rate, seed and value (log steps, or a loss; lower is
        better; nan where a run failed), in an order that does not depend on the table's.
      judged_by: "steps" or "loss".
      paired: whether runs of one seed have something in common.
      covariates: name -> group -> value, of the columns that may move a group's law.
      remarks: what a user should know of how the table was read.
    """

    rows: pd.DataFrame
    judged_by: str
    paired: bool
    covariates: dict[str, dict[str, float]]
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
    covariate: Sequence[str] = (),
) -> Runs:
    """The runs of a table; arguments name columns as the flags do, None is guessed.

    Args:
      table: as `surge.tables.reading.read` gives it.
      batch_size, learning_rate, loss, steps, tokens, seed: columns.
      group: columns whose values are fitted apart.
      pool: whether runs that a column tells apart may be mixed.
      where: conditions COL=VALUE; rows that do not meet them are left out.
      maximize: whether a high value is good.
      diverged_above: a loss above it is that of a failed run.
      pick: "last", "best" or a step: one row of each run's history.
      step: column that numbers the rows of a history.
      sequence_length: tokens of an example, where batch_size is in tokens.
      covariate: columns among `group` that may move the law of a group, such as tokens.

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
    if diverged_above is not None and math.isnan(diverged_above):
        raise ResultError("--diverged_above must be a loss, got nan")
    if not 0 < sequence_length < math.inf:
        raise ResultError(
            f"--sequence_length must be a finite number above 0, got {sequence_length}"
        )
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
    labels = _labels(table, roles.group)
    rows.insert(0, "group", labels)
    moving = {name: _by_group(table, roles, labels, name) for name in covariate}
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
    return Runs(rows, judged_by, seed is not None, moving, said)


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
    value = np.where(np.abs(value) <= LARGEST, value, np.nan)
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
    labels = pd.Series(list(map(", ".join, zip(*parts, strict=True))), table.index)
    in_order = table[[*group]].sort_values([*group], key=_sortable).index
    return pd.Series(pd.Categorical(labels, labels[in_order].unique()))


def _by_group(table: pd.DataFrame, roles: Roles, labels: pd.Series, name: str) -> dict[str, float]:
    """The value of a covariate in each group."""
    if name not in roles.group:
        raise ResultError(f"--covariate={name} must be among the groups: add --group={name}")
    values = pd.Series(columns.above_zero(table, name), table.index)
    return values.groupby(labels.to_numpy(), observed=True).first().to_dict()


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
    fitted = []
    for name, part in runs.rows.groupby("group", observed=True):
        rows = {column: part[column].to_numpy() for column in ("batch_size", "learning_rate")}
        rows |= {"value": part["value"].to_numpy(), "seed": _seeds(part, runs.paired)}
        labels = {
            "optimizer": name,
            "target_loss": None,
            "runs": len(part),
            "failed": int(part["value"].isna().sum()),
        }
        fitted.append(fit_entry(rows, runs.judged_by, **labels))
    return fitted


def _seeds(part: pd.DataFrame, paired: bool) -> np.ndarray:
    """The seed of each run; of runs that are not paired, one of its own."""
    return part["seed"].to_numpy() if paired else np.arange(len(part))


def fits(table: pd.DataFrame, **named: Any) -> list[dict[str, Any]]:
    """The entries of fit.json for a table of runs; arguments and errors are those of `tidy`."""
    return entries(tidy(table, **named))
