"""The noise scale from norms of gradients that any trainer can log, in whatever language.

|G|² of a batch is |μ|² + tr Σ/B in the mean: at two batch sizes it tells both, whatever they are
norms of: micro-batches and their mean, ranks before and after their all-reduce.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from surge.tables import events
from surge.tables.reading import heads, numbers, read
from surge.theory.noise import Estimate, undefined
from surge.theory.smoothing import FEW, FEWEST, SHORTEST, noise_scale, smoothed
from surge.workdir.files import ResultError

PART = 8  # a log's half-life is this part of it, where none is given
SIZES = ("small", "big")
B_SIMPLE = "b_simple"


class Reading(NamedTuple):
    """What a surge.Tracker says at one moment of a training.

    Attributes:
      scales: name -> noise scale of all parameters in examples, with its 95% interval.
      layers: name -> layer -> that of the layer's parameters alone.
      readings: that were taken, and count less the older they are.
      skipped: that were not finite, and do not count.
    """

    scales: dict[str, Estimate]
    layers: dict[str, dict[str, Estimate]]
    readings: int
    skipped: int


class Logged(NamedTuple):
    """The noise scale at the end of a log, and a sentence on the log."""

    b_simple: Estimate
    said: str


def from_norms(
    small: Sequence[float] | np.ndarray,
    big: Sequence[float] | np.ndarray,
    small_size: float,
    big_size: float,
    half_life: float | None = None,
) -> Estimate:
    """tr Σ/|μ|² at the end of a log of squared norms (McCandlish et al., appendix A.1).

    Both parts are smoothed, and never their ratio: half as much for each half-life back. The
    interval has the noise of the log and a drift of the parts along a line; big batches may be made
    of the small ones.

    Args:
      small: |G|² of batches of small_size, or means of several such [n], in the order of training.
      big: |G|² of batches of big_size at the same steps [n]. Where either is not finite, the row is
        left out.
      small_size, big_size: in examples.
      half_life: in rows, at least 2; None: an eighth of them.

    Returns:
      Estimate, nan with a reason where noise or signal does not read as positive, for fewer than
      four rows, and where nothing varies.

    Raises:
      ValueError: sizes that are not 0 < small < big, unlike lengths, a norm below 0, or a half-life
        below 2.
    """
    if not 0 < small_size < big_size < np.inf:
        raise ValueError(f"0 < small < big must hold, got small={small_size:g}, big={big_size:g}")
    if half_life is not None and not SHORTEST <= half_life < np.inf:
        raise ValueError(f"half_life must be at least {SHORTEST:g} rows, got {half_life:g}")
    norms = np.stack(np.broadcast_arrays(*_columns(small, big)), 1)
    norms = norms[np.isfinite(norms).all(1)]
    if (norms < 0).any():
        raise ValueError("squared norms are not below 0: log |G|²")
    if len(norms) < FEWEST:
        return undefined(round(big_size) * len(norms), np.nan, np.nan, FEW.format(len(norms)))
    slow, fast = norms.T
    trace = (slow - fast) / (1 / small_size - 1 / big_size)
    signal = (big_size * fast - small_size * slow) / (big_size - small_size)
    rows = np.stack([trace, signal, np.arange(len(norms))], 1)
    return noise_scale(smoothed(rows, half_life or max(SHORTEST, len(norms) / PART)), big_size)


def _columns(*values: Sequence[float] | np.ndarray) -> list[np.ndarray]:
    columns = [np.asarray(value, float) for value in values]
    shapes = [column.shape for column in columns]
    if len(set(shapes)) > 1 or columns[0].ndim != 1:
        raise ValueError(f"give one number a row for both sizes, got shapes {shapes}")
    return columns


def logged(
    noise: Path | str | Estimate | Reading,
    small: float | None = None,
    big: float | None = None,
    small_column: str | None = None,
    big_column: str | None = None,
) -> Logged:
    """The noise scale of a training, from whatever it kept of it.

    Args:
      noise: a log, which is a table (CSV, JSONL, Parquet), an event file of TensorBoard or a folder
        of such; an estimate; or the reading of a tracker. What follows is for a log.
      small, big: batch sizes in examples.
      small_column, big_column: that hold |G|² there; None: the one with that word in its name.

    Raises:
      ValueError: as for `from_norms`, or a size is missing, or a reading without B_simple.
      ResultError: a log that cannot be read, or without such columns.
    """
    if isinstance(noise, Reading):
        if B_SIMPLE not in noise.scales:
            raise ValueError(f"the reading has {', '.join(noise.scales)}, and not {B_SIMPLE}")
        return Logged(noise.scales[B_SIMPLE], f"{noise.readings:,} readings of a training")
    if isinstance(noise, Estimate):
        return Logged(noise, f"gradients of {noise.n:,} examples")
    path = Path(noise)
    if small is None or big is None:
        raise ValueError(
            f"{path}: of how many examples are the two gradients? give small and big, like "
            "--small=32 --big=512"
        )
    table = events.read(path) if events.is_log(path) else read(path)
    named = zip(SIZES, (small_column, big_column), strict=True)
    columns = [_column(path, table, size, column) for size, column in named]
    values = [numbers(table[column]) for column in columns]
    used = int(np.isfinite(values).all(0).sum())
    said = f"{used:,} of {len(table):,} rows of {path.name} ({' and '.join(columns)})"
    return Logged(from_norms(values[0], values[1], small, big), said)


def _column(path: Path, table: pd.DataFrame, size: str, named: str | None) -> str:
    """The column of one batch size."""
    flag = f"--{size}_column"
    if named is not None and named not in table:
        raise ResultError(f"{path} has no column {named!r}: {flag} takes one of {heads(table)}")
    if named is not None:
        return named
    words = {column: re.split(r"[^a-z]+", column.lower()) for column in table.columns}
    found = [column for column in words if size in words[column]]
    if len(found) != 1:
        raise ResultError(
            f"{path}: which column holds |G|² of the {size} batch? {flag} takes one of "
            f"{heads(table)}"
        )
    return found[0]
