"""Coarse to fine: the optimal learning rates for a fraction of the dense grid's examples.

Every rate is a power of one ratio, so results are cells of the dense grid, with the same batches.
"""

from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np

from surge.tasks import Task
from surge.theory.objective import Objective
from surge.theory.optimum import lowest_vertex
from surge.training.engine import Engine
from surge.training.forecast import announce
from surge.training.grid import Piece, PieceResult, values
from surge.training.lanes import Lanes, spread
from surge.training.protocol import PLAIN, Protocol

FIRST_RATIO = 4.0  # between the first rates, about
# A refining run ends at this many times the steps of the best so far. At half the best rate a run
# takes twice the steps, an unlucky seed as long again, and a rate of which one seed is missing is
# lost to the fit.
PATIENCE = 4.0
EXTENSION = 8  # powers beyond the given bounds that the search may follow an optimum to
# Learning rates in a block, at least, by the form of its lanes: what is short is filled up with
# neighbours, which then cost no time. Not a matter of how many devices there are, so that the
# search takes the same path on any number of them.
BLOCK = {"vmap": 4, "map": 2, "wide": 2}

Optima = Sequence[tuple[int, float]]  # (power of the ratio, value) of an objective's optimum each
Runs = dict[int, tuple[np.ndarray, ...]]  # power -> the fields of a PieceResult, for its seeds


def few_lanes(task: Task, pieces: Sequence[Piece], cells: str = "auto") -> Lanes:
    """Lanes for the few learning rates that a search runs at once."""
    return spread(task, BLOCK["vmap"], max(len(piece.seeds) for piece in pieces), cells)


def run_adaptive(
    task: Task,
    pieces: Sequence[Piece],
    key: jax.Array,
    *,
    ratio: float,
    objectives: Sequence[Objective],
    stop_loss: float,
    done: Mapping[Piece, tuple[Piece, PieceResult]],
    lanes: Lanes | None = None,
    protocol: Protocol = PLAIN,
) -> Iterator[tuple[Piece, PieceResult]]:
    """Runs of each piece near its optimal learning rates only.

    The smallest batch of an optimizer starts wide: its runs cost the fewest examples. Larger ones
    start around the optimum of the one before. The optimum of every objective is refined to its
    neighbours on the lattice, beyond the piece's bounds if it sits on them; runs that have taken
    PATIENCE times the best steps end.

    Args:
      task, key, stop_loss, protocol: as for `Engine`.
      pieces: the dense grid, whose learning rates give the bounds.
      ratio: of the lattice, as for `plan`.
      objectives: what runs are judged by; each gets its own optimum.
      done: what an earlier call yielded for some of the pieces: they guide the others and are not
        run again.
      lanes: runs that go on at once; None is `few_lanes`. To go on with a search, give those that
        it began with.

    Returns:
      Iterator of (piece with the rates that were run, its result), for each piece not done,
      smallest batch first.
    """
    pieces = sorted(pieces, key=lambda piece: (piece.optimizer, piece.batch_size))
    todo = [piece for piece in pieces if piece not in done]
    if not todo:
        return iter(())
    lanes = lanes or few_lanes(task, pieces)
    engine = Engine(task, key, lanes, stop_loss=stop_loss, protocol=protocol)
    announce(engine, todo)

    def results() -> Iterator[tuple[Piece, PieceResult]]:
        best: dict[str, Optima] = {}
        for piece in pieces:
            before = best.get(piece.optimizer, ())
            ran, result = done.get(piece) or _search(engine, piece, ratio, objectives, before)
            best[piece.optimizer] = _best(_by_power(ran, result, ratio), piece, ratio, objectives)
            if piece not in done:
                yield ran, result

    return engine.finish(results())


def _search(
    engine: Engine,
    piece: Piece,
    ratio: float,
    objectives: Sequence[Objective],
    before: Optima,
) -> tuple[Piece, PieceResult]:
    """Refines around the optimum of each objective until its neighbours at every stride are known.

    `before` are the optima of the next smaller batch: where to start, and an upper bound of the
    steps, which do not grow with the batch size. Empty starts wide.
    """
    given = _powers(piece, ratio)
    inside = range(given[0] - EXTENSION, given[-1] + EXTENSION + 1)
    full = len(piece.eval_steps)
    wanted, stride = _first(given, ratio, before)
    strides = (stride, 2, 1)
    wanted &= set(inside)
    runs: Runs = {}
    best = before
    tried = False
    while wanted:
        wanted = _filled(wanted, runs, best, BLOCK[engine.lanes.form])
        limit = full
        if objectives[0].judged_by == "steps" and best and (tried or len(best) == len(objectives)):
            limit = patient(piece, max(value for _, value in best))
        part = piece._replace(learning_rates=tuple(ratio**power for power in sorted(wanted)))
        runs |= _by_power(part, engine.run(part, limit), ratio)
        best = _best(runs, piece, ratio, objectives)
        if len(best) < len(before) and limit < full:  # the bound was too tight after all
            return _search(engine, piece, ratio, objectives, ())
        tried |= limit == full and stride <= 2  # a target not reached by now is given up
        wanted, stride = _next(best, runs, strides, inside)
    rates = tuple(ratio**power for power in sorted(runs))
    return piece._replace(learning_rates=rates), _table(runs)


def patient(piece: Piece, log_steps: float) -> int:
    """Evaluations until PATIENCE times some steps."""
    slowest = piece.start_step + PATIENCE * np.exp(log_steps)
    return min(len(piece.eval_steps), int(np.searchsorted(piece.eval_steps, slowest)) + 1)


def _first(given: Sequence[int], ratio: float, before: Optima) -> tuple[set[int], int]:
    """The powers that a search starts with, and about how far they lie apart."""
    if before:
        centre = sorted(power for power, _ in before)[len(before) // 2]
        return set(range(centre - 1, centre + 3)), 2  # optima tend to rise with B
    stride = max(1, round(np.log(FIRST_RATIO) / np.log(ratio)))
    return {*given[::stride], given[-1]}, stride


def _filled(wanted: set[int], runs: Runs, best: Optima, block: int) -> set[int]:
    """With neighbours, to whole blocks: the program runs that many lanes anyway."""
    spare = -len(wanted) % block
    near = {power + step for power in wanted for step in (-1, 1)} - wanted - runs.keys()
    middle = np.mean([power for power, _ in best] or list(wanted))
    nearest = sorted(near, key=lambda power: (abs(power - middle), power))
    return wanted | set(nearest[:spare])


def _next(best: Optima, runs: Runs, strides: Sequence[int], inside: range) -> tuple[set[int], int]:
    """The optima and their neighbours at the widest stride at which some are not known, and that
    stride: a vertex between two rates is no rate that was run."""
    wanted: set[int] = set()
    for stride in strides:
        wanted = {power + step for power, _ in best for step in (-stride, 0, stride)}
        if stride > 2:  # only to hold the optimum between the rates that are known
            wanted -= set(range(min(runs), max(runs)))
        wanted = (wanted & set(inside)) - runs.keys()
        if wanted:
            break
    return wanted, stride


def _best(
    runs: Runs, piece: Piece, ratio: float, objectives: Sequence[Objective]
) -> list[tuple[int, float]]:
    """(power, value) of each objective's optimum that the runs have, about where a fit finds it."""
    rate = np.repeat(ratio ** np.array(sorted(runs), float), len(piece.seeds))
    table = _table(runs)
    best = []
    for objective in objectives:
        vertex = lowest_vertex(rate, values(objective, piece, table).ravel())
        if np.isfinite(vertex.lr):
            best.append((round(np.log(vertex.lr) / np.log(ratio)), vertex.value))
    return best


def _powers(piece: Piece, ratio: float) -> list[int]:
    return [round(np.log(rate) / np.log(ratio)) for rate in piece.learning_rates]


def _by_power(piece: Piece, result: PieceResult, ratio: float) -> Runs:
    recorded = [field for field in result if field is not None]
    return dict(zip(_powers(piece, ratio), zip(*recorded, strict=True), strict=True))


def _table(runs: Runs) -> PieceResult:
    fields = zip(*(runs[power] for power in sorted(runs)), strict=True)
    return PieceResult(*(np.stack(field) for field in fields))
