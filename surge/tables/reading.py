"""A table of runs as people have it: CSV, TSV, JSON, JSONL, Parquet, compressed or not.

pandas reads; what it has no option for is decided here, by what the first lines hold.
"""

import io
import math
import re
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd

from surge.workdir.files import ResultError

SEPARATORS = ",\t;|"
THOUSANDS = r"[+-]?[1-9]\d{0,2}(,\d{3})+"
DECIMAL = r"[+-]?\d*,\d+(e[+-]?\d+)?"
NUMBER = re.compile(
    r"([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*(ki|mi|gi|k|m|g|b|%)?", re.IGNORECASE
)
POWER = re.compile(r"(\d+)\s*(?:\^|\*\*)\s*(-?\d+)")
UNITS = {
    "": 1,
    "%": 0.01,
    "k": 1e3,
    "m": 1e6,
    "g": 1e9,
    "b": 1e9,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
}
NAMED = 12  # columns in a sentence
NAME = 40  # letters of a column's name there
WIDE = 3  # columns named by numbers, from which on a table has one axis of the grid across


def read(path: Path) -> pd.DataFrame:
    """The table, with the names of its columns as text and without blanks around them.

    Raises:
      ResultError: no such file, not a table in UTF-8, no rows, or two columns of one name.
    """
    if not path.is_file():
        raise ResultError(f"{path} does not exist: give the table of runs as the first argument")
    try:
        table = _read(path)
    except ImportError:
        raise ResultError(
            f"{path}: to read Parquet, pip install pyarrow, or export it as CSV"
        ) from None
    except UnicodeDecodeError:
        raise ResultError(f"{path} is not text in UTF-8: export it again as CSV in UTF-8") from None
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise ResultError(
            f"{path} is not a table of comma or tab separated columns: {error}"
        ) from None
    table.columns = [str(column).strip() for column in table.columns]
    twice = [name for name, count in Counter(table.columns).items() if count > 1]
    if twice:
        count = list(table.columns).count(twice[0])
        raise ResultError(
            f"{path} has {count} columns {twice[0]!r}: rename all but one; it has {heads(table)}"
        )
    if table.empty:
        raise ResultError(f"{path} has no rows")
    return table


def _read(path: Path) -> pd.DataFrame:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if ".parquet" in suffixes:
        table = pd.read_parquet(path)
        return table if isinstance(table.index, pd.RangeIndex) else table.reset_index()
    if ".jsonl" in suffixes or ".ndjson" in suffixes or ".json" in suffixes:
        table = pd.read_json(path, lines=".json" not in suffixes, convert_dates=False)
        # Weights and Biases and others nest the hyperparameters: {"config": {"lr": ...}, ...}
        nested = table.map(lambda cell: isinstance(cell, dict)).any(axis=None)
        return pd.json_normalize(table.to_dict("records")) if nested else table
    return _read_text(path)


def _read_text(path: Path) -> pd.DataFrame:
    with pd.io.common.get_handle(path, "r", encoding="utf-8-sig", compression="infer") as handles:
        text = _without_comments(str(handles.handle.read()))
    header = next(filter(str.strip, text.splitlines()), "")
    # The csv module's sniffer takes any letter for a separator where a table has one column.
    separator = max(SEPARATORS, key=header.count)
    if separator not in header and len(header.split()) > 1:
        separator = r"\s+"
    table = _parsed(text, separator)
    commas = _cells_with_a_comma(table)
    if len(commas) and commas.str.fullmatch(THOUSANDS).all():
        table = _parsed(text, separator, thousands=",")
    elif len(commas):
        table = _parsed(text, separator, decimal=",")
    return table


def _without_comments(text: str) -> str:
    """The text from its header on; a header that is itself a comment, as NumPy writes it, stays."""
    lines = text.splitlines(keepends=True)
    first = next(
        (index for index, line in enumerate(lines) if not line.startswith("#")), len(lines)
    )
    if not first or first == len(lines):
        return text
    cells = re.split(rf"[{SEPARATORS}\s]+", lines[first].strip())
    if all(math.isfinite(number(cell)) for cell in cells):
        return "".join([lines[first - 1].lstrip("# "), *lines[first:]])
    return "".join(lines[first:])


def _parsed(
    text: str, separator: str, thousands: str | None = None, decimal: str = "."
) -> pd.DataFrame:
    """The text as pandas reads it, under the names that the header really has."""
    table = pd.read_csv(
        io.StringIO(text),
        sep=separator,
        skipinitialspace=True,
        low_memory=False,
        thousands=thousands,
        decimal=decimal,
    )
    # pandas takes cells beyond the header for names of the rows, and shifts the header.
    if not isinstance(table.index, pd.RangeIndex):
        raise ValueError("its rows have more columns than its header")
    # It also renames a second column of one name, and one without a name.
    header = pd.read_csv(
        io.StringIO(text), sep=separator, skipinitialspace=True, header=None, nrows=1, dtype=str
    ).iloc[0]
    table.columns = ["" if pd.isna(name) else str(name).strip() for name in header]
    unnamed = table.columns == ""
    return table.loc[:, ~unnamed]


def _cells_with_a_comma(table: pd.DataFrame) -> pd.Series:
    """All cells that would be numbers but for their commas."""
    texts = table.select_dtypes(include=["object", "string"]).stack().astype(str).str.strip()
    return texts[texts.str.fullmatch(f"{THOUSANDS}|{DECIMAL}", case=False)]


def heads(table: pd.DataFrame) -> str:
    """The names of the columns, for a sentence."""
    first = [str(column)[:NAME] for column in table.columns[:NAMED]]
    more = len(table.columns) - len(first)
    return ", ".join(first) + (f" and {more:,} more" if more else "")


def number(cell: object) -> float:
    """A cell as a number: 0.001, 1e-3, 32k (32,000), 32Ki (32,768), 2^15; nan where it is none."""
    text = str(cell).strip()
    if power := POWER.fullmatch(text):
        return float(power[1]) ** int(power[2])
    if plain := NUMBER.fullmatch(text):
        return float(plain[1]) * UNITS[(plain[2] or "").lower()]
    return math.nan


def numbers(column: pd.Series) -> np.ndarray:
    """A column as finite numbers [n], nan elsewhere: true and false are none."""
    if pd.api.types.is_bool_dtype(column):
        return np.full(len(column), np.nan)
    values = pd.to_numeric(column, errors="coerce").to_numpy(float, copy=True)
    unread = ~np.isfinite(values) & column.notna().to_numpy()
    values[unread] = [number(cell) for cell in column[unread]]
    return np.where(np.isfinite(values), values, np.nan)


def in_units(column: pd.Series) -> bool:
    """Whether some of its numbers are written with a k for thousands, like 32k."""
    texts = column[pd.to_numeric(column, errors="coerce").isna() & column.notna()].astype(str)
    return bool(texts.str.strip().str.fullmatch(r"[\d.]+\s*k", case=False).any())


def across(table: pd.DataFrame) -> list[str]:
    """The columns of a wide table that are named by numbers; none where it is not wide."""
    named = [name for name in table.columns if math.isfinite(number(str(name).rpartition("=")[2]))]
    return named if len(named) >= WIDE else []


def unpivoted(table: pd.DataFrame, name: str, value: str) -> pd.DataFrame:
    """A wide table with a row for each cell: the number across in `name`, the cell in `value`."""
    columns = across(table)
    kept = [column for column in table.columns if column not in columns]
    long = table.melt(kept, columns, var_name=name, value_name=value)
    long[name] = [number(str(cell).rpartition("=")[2]) for cell in long[name]]
    return long
