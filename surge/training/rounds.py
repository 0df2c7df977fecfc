"""Where more seeds are wanted: batch sizes whose optimum is not known as well as was asked for.

What is run next follows from what is stored and from nothing else, so that a sweep that was killed
goes on as it would have.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from surge.theory.basin import fit_basins
from surge.theory.objective import Objective
from surge.theory.optimum import Optimum
from surge.training.adaptive import BLOCK, patient
from surge.training.grid import Piece, PieceResult, values
from surge.training.lanes import Lanes

# In log ε to each side of an optimum: nearer runs hardly tell where it is, farther ones cost many
# steps, and tell more of the basin's shape than of its middle.
WINDOW = 1.0
FEWEST = 4  # rates that more seeds are run at
GROWTH = 1.0  # times the seeds that are there, at most, before errors are looked at again

Stored = tuple[Piece, PieceResult]


class Wanted(NamedTuple):
    """More seeds of one batch size.

    Attributes:
      piece: what is to be run next.
      limit: evaluations that its runs get to.
      error: standard error of log ε_opt so far, the largest of all objectives.
      examples: that the piece costs, about.
      in_all: that it costs to get the error down to what was asked for, about.
    """

    piece: Piece
    limit: int
    error: float
    examples: float
    in_all: float


class _Cells(NamedTuple):
    """All runs of one optimizer: columns of equal length, and the value by each objective."""

    batch_size: np.ndarray
    learning_rate: np.ndarray
    seed: np.ndarray
    examples: np.ndarray
    value: dict[Objective, np.ndarray]


def wanted(
    stored: Sequence[Stored],
    objectives: Sequence[Objective],
    precision: float,
    lanes: Lanes,
) -> list[Wanted]:
    """Batch sizes at which the error is above `precision`, the cheapest to settle first.

    An optimum on the edge of its rates, or that no run got to, is none that more seeds would tell.

    Args:
      stored: all that was run, in any order.
      objectives: what runs are judged by; each has its own optimum.
      precision: standard error of log ε_opt.
      lanes: blocks of runs, which are filled.
    """
    found = []
    for optimizer in sorted({piece.optimizer for piece, _ in stored}):
        own = [each for each in stored if each[0].optimizer == optimizer]
        cells = _cells(own, objectives)
        columns = cells.batch_size, cells.learning_rate
        optima = [fit_basins(*columns, cells.value[each], cells.seed).optima for each in objectives]
        for size in np.unique(cells.batch_size).tolist():
            piece = next(piece for piece, _ in own if piece.batch_size == size)
            known = [each[size] for each in optima if _inside(each[size])]
            if any(_error(each) > precision for each in known):
                found.append(_wanted(piece, cells, known, precision, lanes))
    return sorted(found, key=lambda each: (each.in_all, each.piece[:3]))


def examples_of(stored: Iterable[Stored]) -> float:
    """Examples that all runs trained on."""
    return sum(float(_examples(result).sum()) for _, result in stored)


def _inside(optimum: Optimum) -> bool:
    return math.isfinite(optimum.lr) and not optimum.bound


def _error(optimum: Optimum) -> float:
    """Of log ε_opt, infinite where no basin stands out of the noise."""
    return optimum.error if math.isfinite(optimum.error) else math.inf


def _examples(result: PieceResult) -> np.ndarray:
    """Trained on by each run [learning_rate, seed]."""
    return np.nan_to_num(result.examples).max(-1)


def _cells(stored: Sequence[Stored], objectives: Sequence[Objective]) -> _Cells:
    columns = []
    judged: dict[Objective, list[np.ndarray]] = {each: [] for each in objectives}
    for piece, result in stored:
        rate, seed = np.meshgrid(piece.learning_rates, piece.seeds, indexing="ij")
        size = np.full(rate.shape, piece.batch_size)
        columns.append(np.stack([size, rate, seed, _examples(result)]).reshape(4, -1))
        for objective in objectives:
            judged[objective].append(values(objective, piece, result).ravel())
    value = {each: np.concatenate(parts) for each, parts in judged.items()}
    size, rate, seed, examples = np.concatenate(columns, 1)
    return _Cells(size, rate, seed, examples, value)


def _wanted(
    piece: Piece, cells: _Cells, known: Sequence[Optimum], precision: float, lanes: Lanes
) -> Wanted:
    own = cells.batch_size == piece.batch_size
    still = [each for each in known if _error(each) > precision]
    rates = _near(np.unique(cells.learning_rate[own]), still, BLOCK[lanes.form])
    inside = own & np.isin(cells.learning_rate, rates)
    each = inside.sum() / len(rates)  # seeds of a rate
    cost = cells.examples[inside].mean() * len(rates)  # of one more seed

    error = max(map(_error, still))
    needed = each * ((error / precision) ** 2 - 1)
    blocks = max(1, math.ceil(min(needed, GROWTH * each) / lanes.seeds))
    first = int(cells.seed[own].max()) + 1
    seeds = tuple(range(first, first + blocks * lanes.seeds))
    limit = len(piece.eval_steps)
    if all(objective.judged_by == "steps" for objective in cells.value):
        limit = patient(piece, max(optimum.value for optimum in known))
    more = piece._replace(learning_rates=tuple(rates.tolist()), seeds=seeds)
    return Wanted(more, limit, error, cost * len(seeds), cost * max(needed, len(seeds)))


def _near(rates: np.ndarray, optima: Sequence[Optimum], block: int) -> np.ndarray:
    """The rates within WINDOW of any of the optima, filled up to whole blocks with the next."""
    centres = np.log([optimum.lr for optimum in optima])
    distance = np.abs(np.log(rates)[:, None] - centres).min(1)
    count = max(FEWEST, int((distance <= WINDOW).sum()))
    count += -count % block
    return np.sort(rates[np.argsort(distance, kind="stable")[:count]])
