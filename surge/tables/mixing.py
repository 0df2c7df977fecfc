"""What makes the fit of a table silently wrong: rows that are not runs, and runs that are unlike.

Rows of a history (a row for each logged step) would count as replicates, and two models in one
table as one. Both are looked for, and refused with the flag that puts it right.
"""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from surge.tables.columns import (
    CLOCKS,
    NAMES,
    RUNS,
    SEEDS,
    STATES,
    STEPS,
    Roles,
    called,
    higher_is_better,
    label,
    plain,
    values_of,
)
from surge.tables.reading import numbers
from surge.workdir.files import ResultError

CROSSED = 0.2  # share of the cells in which a value of a setting stands; a measurement is in few
REPEATED = 1.5  # cells, at least, in which it stands on average
MONOTONE = 0.8  # share of the cells in which a loss that falls with the clock is a history
FEW_NAMES = 12  # values of a column of words that is a setting; of more, a label of each run


def one_row_a_run(
    table: pd.DataFrame, roles: Roles, pick: str | float | None, step: str | None, maximize: bool
) -> pd.DataFrame:
    """One row of each run's history, or the table as it is where each row is a run.

    Args:
      table: long.
      roles: of its columns.
      pick: "last", "best", or the step; None: rows are runs, or it is refused.
      step: column of the step; None: guessed.
      maximize: whether the best value is the highest.

    Raises:
      ResultError: rows that are not runs where no flag picks one, or no column that numbers them.
    """
    run = [*roles.cell, *([roles.seed] if roles.seed else []), *_run_columns(table, roles)]
    counters = [step] if step else [name for name in called(table, STEPS) if name not in roles.used]
    if step and step not in table.columns:
        raise ResultError(f"the table has no column {step!r} for --step")
    if pick is None:
        _refuse_history(table, roles, run, counters)
        return table
    if len(counters) != 1:
        told = "it may be " + " or ".join(counters) if counters else "no column's name says it"
        raise ResultError(f"give --step, the column that numbers the rows of a run: {told}")
    order = pd.Series(numbers(table[counters[0]]), table.index)
    if table.assign(**{counters[0]: order}).duplicated([*run, counters[0]]).any():
        raise ResultError(
            f"a run has two rows at one {counters[0]}: name what tells runs apart, --seed=COL or "
            "--group=COL"
        )
    runs = table.groupby(run, dropna=False, sort=False).ngroup()
    if pick == "best":
        value = pd.Series(numbers(table[roles.value]), table.index)
        order = value if maximize else -value
    elif pick != "last":
        return _at(table, order, runs, float(pick), roles.value, counters[0])
    ordered = table.assign(**{"\0": order.fillna(-math.inf)}).sort_values("\0", kind="stable")
    return ordered.groupby(runs, sort=False).tail(1).drop(columns="\0").sort_index()


def _at(
    table: pd.DataFrame, order: pd.Series, runs: pd.Series, step: float, value: str, column: str
) -> pd.DataFrame:
    """The row of each run at a step; a run that did not get there counts as failed."""
    there = order == step
    if not there.any():
        steps = order.dropna().unique()
        near = np.sort(steps[np.argsort(np.abs(steps - step))[:3]])
        raise ResultError(
            f"--at={step:g}: no run has a row there; near it {column!r} holds "
            f"{', '.join(map(label, near))}"
        )
    missing = table[~runs.isin(runs[there])].groupby(runs, sort=False).head(1)
    return pd.concat([table[there], missing.assign(**{value: math.nan})]).sort_index()


def _run_columns(table: pd.DataFrame, roles: Roles) -> list[str]:
    """Columns that name a run."""
    return [name for name in called(table, (*RUNS, *SEEDS)) if name not in roles.used]


def _refuse_history(
    table: pd.DataFrame, roles: Roles, run: Sequence[str], counters: Sequence[str]
) -> None:
    """Raises ResultError where rows are not runs."""
    known = set(run) - set(roles.cell)
    first = table.drop_duplicates()
    repeated = first[first.duplicated(list(run))] if known else first.iloc[:0]
    if len(repeated):
        row = repeated.iloc[0]
        named = ", ".join(f"{name} {label(row[name])}" for name in run)
        remedy = (
            "--last, --best or --at=STEP takes one row of each run"
            if counters
            else "name what tells them apart: --group=COL or --seed=COL"
        )
        raise ResultError(f"rows are not runs: {named} stands in more than one row; {remedy}")
    remedy = "--last, --best or --at=STEP takes one row of each run"
    for column in counters:
        cells = table.groupby(roles.cell, dropna=False)[column].agg(["size", "nunique"])
        several = cells[cells["size"] > 1]
        shared = table[column].nunique() <= len(table) / 2
        if len(several) and shared and (several["nunique"] == several["size"]).mean() > 0.5:
            raise ResultError(
                f"rows are not runs: {column!r} takes {int(several['size'].max())} values in one "
                f"cell; {remedy}"
            )
    for column in called(table, CLOCKS):
        if column not in roles.used and _falls_with(table, roles, column):
            raise ResultError(
                f"rows are not runs: in each cell {roles.value!r} falls with {column!r}; give "
                f"--step={column}: {remedy}"
            )


def _falls_with(table: pd.DataFrame, roles: Roles, clock: str) -> bool:
    """Whether in nearly all cells of three rows or more the value falls with every tick."""
    order = np.argsort(numbers(table[clock]), kind="stable")
    in_time = table.iloc[order]
    values = pd.Series(numbers(in_time[roles.value]), in_time.index)
    cells = values.groupby([in_time[name] for name in roles.cell], dropna=False)
    falling = [
        cell.is_monotonic_decreasing and cell.is_unique for _, cell in cells if len(cell) > 2
    ]
    return len(falling) > 2 and sum(falling) > MONOTONE * len(falling)


def settings(table: pd.DataFrame, roles: Roles) -> list[str]:
    """Columns that are not used and tell runs of one batch size apart, like a model's size.

    Not those that name or time a run, that count its steps, that the learning rate determines, or
    whose values stand in few cells, as a measurement's do.
    """
    known = (*SEEDS, *RUNS, *STEPS, *CLOCKS, *STATES, *NAMES["loss"], *NAMES["tokens"])
    return [
        column
        for column in table.columns
        if column not in roles.used
        and plain(column) not in known
        and not higher_is_better(column)
        and not table[column].map(_unhashable).any()
        and _tells_apart(table, roles, column)
    ]


def _tells_apart(table: pd.DataFrame, roles: Roles, column: str) -> bool:
    """Whether a column's values are those of a setting that differs within batch sizes."""
    values = pd.Series(pd.factorize(table[column], use_na_sentinel=False)[0], table.index)
    for axis in (roles.batch_size, roles.learning_rate):
        at = [table[name] for name in (*roles.group, axis)]
        # Of a random search every run has a rate of its own, which then determines any column.
        if axis == roles.learning_rate and _own_rates(table, roles):
            continue
        if values.groupby(at, dropna=False).nunique().max() == 1:
            return False

    cells = table.groupby(roles.cell, dropna=False).ngroup()
    stands = cells.groupby(values).nunique().mean()
    crossed = stands >= max(CROSSED * cells.nunique(), REPEATED)
    words = not pd.api.types.is_numeric_dtype(table[column])
    return crossed or (words and values.nunique() <= FEW_NAMES)


def _own_rates(table: pd.DataFrame, roles: Roles) -> bool:
    """Whether rates were drawn and not taken from a grid: most stand at one batch size alone."""
    sizes = table.groupby(roles.learning_rate)[roles.batch_size].nunique()
    cells = table.groupby(roles.batch_size)[roles.learning_rate].nunique()
    return len(cells) > 1 and cells.max() > 1 and sizes.mean() < REPEATED


def _unhashable(cell: object) -> bool:
    return isinstance(cell, list | dict | np.ndarray)


def refuse_mixing(table: pd.DataFrame, roles: Roles) -> None:
    """Raises ResultError where a column that is not used tells runs apart."""
    hidden = settings(table, roles)
    if hidden:
        column = hidden[0]
        first = label(table[column].iloc[0])
        more = f" (and so do {', '.join(hidden[1:])})" if hidden[1:] else ""
        count = table[column].nunique(dropna=False)
        raise ResultError(
            f"column {column!r} is not used and takes {count} values ({values_of(table[column])}) "
            f"among runs of one batch size{more}: --group={column} fits each apart, "
            f"--where={column}={first} takes one, --pool mixes them"
        )
