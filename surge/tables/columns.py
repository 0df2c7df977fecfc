"""What the columns of a table of runs mean: given by flags, or guessed where a name is plain."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from surge.tables.reading import across, heads, in_units, numbers, unpivoted
from surge.workdir.files import ResultError

NAMES = {  # what a column may be called, without prefixes, case and punctuation
    "batch_size": (
        *("batchsize", "bs", "batch", "globalbatchsize", "trainbatchsize", "totalbatchsize"),
        "effectivebatchsize",
    ),
    "learning_rate": (
        *("learningrate", "lr", "maxlr", "peaklr", "maxlearningrate", "peaklearningrate", "baselr"),
        *("initiallr", "initlr", "learningrateinit", "eta"),
    ),
    "loss": (
        *("loss", "valloss", "validationloss", "evalloss", "testloss", "finalloss", "trainloss"),
        *("trainingloss", "finalvalloss", "value", "objective"),
    ),
    "steps": ("steps", "stepstotarget", "stepstoloss"),
    "tokens": ("tokens", "examples", "tokenstotarget", "examplestotarget"),
}
PREFIXES = ("params", "config", "hparams", "args", "hp", "summary", "user_attrs")
SEEDS = ("seed", "randomseed", "trialseed", "rep", "replicate", "repeat", "fold")
RUNS = ("run", "runid", "id", "name", "runname", "trial", "trialid", "number", "index", "uid")
STEPS = ("step", "steps", "globalstep", "trainstep", "epoch", "iteration", "iterations", "iter")
CLOCKS = (
    *("time", "runtime", "relativetime", "walltime", "timestamp", "date", "datetime", "created"),
    *("datetimestart", "datetimecomplete", "duration", "seconds", "hours"),
)
STATES = ("state", "status")
ENDED = ("crashed", "failed", "fail", "killed", "pruned", "preempted")
HIGHER = ("acc", "auc", "f1", "bleu", "reward", "return", "rouge", "accuracy", "score", "map")
ROUNDING = 1e-6  # relative difference of two batch sizes or rates that were meant to be the same


class Roles(NamedTuple):
    """Which column is what; None or empty where none is."""

    batch_size: str
    learning_rate: str
    value: str
    judged_by: str  # "loss", "steps" or "tokens"
    seed: str | None
    group: tuple[str, ...]

    @property
    def used(self) -> set[str]:
        """All columns that a fit reads."""
        named = {self.batch_size, self.learning_rate, self.value, *self.group}
        return named | ({self.seed} if self.seed else set())

    @property
    def cell(self) -> list[str]:
        """The columns that make a cell of the grid."""
        return [*self.group, self.batch_size, self.learning_rate]


def plain(name: str) -> str:
    """A column's name without prefixes such as params_ or config., case and punctuation."""
    last = name.replace("/", ".").rpartition(".")[2].lower()
    for prefix in PREFIXES:
        last = last.removeprefix(f"{prefix}_")
    return "".join(letter for letter in last if letter.isalnum())


def called(table: pd.DataFrame, names: Sequence[str]) -> list[str]:
    """The columns whose plain name is one of `names`."""
    return [column for column in table.columns if plain(column) in names]


def roles(
    table: pd.DataFrame, given: Mapping[str, str | None], group: Sequence[str]
) -> tuple[pd.DataFrame, Roles]:
    """The table, long if it was wide, and what its columns mean.

    Args:
      table: as `surge.tables.reading.read` gives it.
      given: the flags batch_size, learning_rate, loss, steps, tokens and seed; None: guessed.
      group: columns whose values are fitted apart.

    Raises:
      ResultError: flags that contradict each other, name one column twice or one that is not there,
        or names that do not tell what a column means.
    """
    if given["steps"] and given["tokens"]:
        raise ResultError("give --steps or --tokens, not both: a run is judged by one of them")
    _once(given, group)
    if across(table) and given["learning_rate"] not in table.columns:
        table, given = _long(table, given)
    for column in (*given.values(), *group):
        if column is not None and column not in table.columns:
            raise ResultError(f"the table has no column {column!r}: it has {heads(table)}")
    judged = next((name for name in ("loss", "steps", "tokens") if given[name]), None)
    judged = judged or _judged(table)
    size, rate, value = (
        given[name] or _guessed(table, name) for name in ("batch_size", "learning_rate", judged)
    )
    _once({**given, "batch_size": size, "learning_rate": rate, judged: value}, group)
    return table, Roles(size, rate, value, judged, given["seed"], tuple(group))


def _once(given: Mapping[str, str | None], group: Sequence[str]) -> None:
    """Raises ResultError where two flags, or guesses in their place, name one column."""
    taken: dict[str, str] = {}
    for flag, column in (*given.items(), *(("group", column) for column in group)):
        if column in taken:
            raise ResultError(
                f"column {column!r} is given twice: for --{taken[column]} and for --{flag}"
            )
        if column:
            taken[column] = flag


def _long(
    table: pd.DataFrame, given: Mapping[str, str | None]
) -> tuple[pd.DataFrame, dict[str, str | None]]:
    """A wide table, one axis of the grid across, as a long one."""
    numbered = across(table)
    rest = [column for column in table.columns if column not in numbered]
    rates_down = len(called(table[rest], NAMES["learning_rate"])) == 1
    axis = "batch_size" if rates_down else "learning_rate"
    other = "learning_rate" if rates_down else "batch_size"
    value = given["loss"] or given["steps"] or given["tokens"] or "loss"
    long = unpivoted(table, axis, value)
    down = given[other] or (rest[0] if len(rest) == 1 else None)
    judged = {} if any(given[name] for name in ("loss", "steps", "tokens")) else {"loss": value}
    return long, dict(given) | judged | {axis: axis, other: down}


def _judged(table: pd.DataFrame) -> str:
    """What runs are judged by where no flag says it."""
    there = [name for name in ("loss", "steps", "tokens") if called(table, NAMES[name])]
    if len(there) != 1:
        raise ResultError(
            "give --loss, --steps or --tokens: what a run is judged by; the table has "
            f"{heads(table)}"
        )
    return there[0]


def _guessed(table: pd.DataFrame, name: str) -> str:
    """The one column that a plain name tells."""
    if name in table.columns:
        return name
    candidates = called(table, NAMES[name])
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        raise ResultError(f"give --{name}: it may be {' or '.join(candidates)}")
    raise ResultError(
        f"no column's name says which is the {name.replace('_', ' ')}: give --{name}; the table "
        f"has {heads(table)}"
    )


def where(table: pd.DataFrame, conditions: Iterable[str]) -> pd.DataFrame:
    """The rows that meet all of the conditions, each written COL=VALUE.

    Raises:
      ResultError: one that is not of that form, names no column, or that no row meets.
    """
    for condition in conditions:
        column, equals, wanted = condition.partition("=")
        if not equals or column not in table.columns:
            raise ResultError(
                f"--where={condition} must read COL=VALUE with one of the columns {heads(table)}"
            )
        words = table[column].map(label)
        as_number = pd.to_numeric(pd.Series([wanted]), errors="coerce").iloc[0]
        same = (words == wanted) | (numbers(table[column]) == as_number)
        if not same.any():
            raise ResultError(
                f"--where={condition} leaves no row: {column!r} holds {values_of(table[column])}"
            )
        table = table[same]
    return table


def label(value: object) -> str:
    """A value of a column as people write it: 256, also where blanks made the column 256.0."""
    if isinstance(value, float) and value.is_integer():
        return f"{value:.0f}"
    return str(value)


def values_of(column: pd.Series) -> str:
    """The values of a column, for a sentence."""
    values = [label(value) for value in column.drop_duplicates()]
    return ", ".join(values[:6]) + (", ..." if len(values) > 6 else "")


def above_zero(table: pd.DataFrame, column: str) -> np.ndarray:
    """A column that must be positive throughout, with values that differ by rounding made equal.

    Raises:
      ResultError: a cell that is not a number above 0.
    """
    values = numbers(table[column])
    if not (values > 0).all():
        row = int(np.flatnonzero(~(values > 0))[0])
        cell = str(table[column].iloc[row])
        raise ResultError(
            f"column {column!r} must be above 0 in every row: row {row + 1} holds {cell!r}"
        )
    unique, inverse = np.unique(values, return_inverse=True)
    distinct = np.concatenate([[True], unique[1:] > unique[:-1] * (1 + ROUNDING)])
    return unique[distinct][distinct.cumsum() - 1][inverse]


def higher_is_better(column: str) -> bool:
    """Whether a column's name says that higher is better."""
    words = column.lower().replace("/", "_").replace(".", "_").replace("-", "_").split("_")
    return bool({*words, plain(column)} & set(HIGHER)) or plain(column).endswith("accuracy")


def remarks(table: pd.DataFrame, roles: Roles, maximize: bool) -> list[str]:
    """What a user should know of how the columns were read."""
    said = []
    if higher_is_better(roles.value) and not maximize:
        said.append(f"lower is taken for better: if a high {roles.value!r} is good, add --maximize")
    seeds = [name for name in called(table, SEEDS) if name not in roles.used]
    if seeds:
        said.append(f"runs are not paired: --seed={seeds[0]} pairs those of one seed")
    for column in called(table, STATES):
        ended = table[column].astype(str).str.lower().isin(ENDED)
        if ended.any() and np.isfinite(numbers(table.loc[ended, roles.value])).any():
            states = values_of(table.loc[ended, column])
            kept = label(table.loc[~ended, column].iloc[0]) if (~ended).any() else "finished"
            said.append(
                f"{int(ended.sum())} rows of {column!r} {states} count with the value they have: "
                f"--where={column}={kept} leaves them out"
            )
    for column in (roles.batch_size, roles.learning_rate):
        if in_units(table[column]):
            said.append(f"k in {column!r} is read as 1,000")
    return said
