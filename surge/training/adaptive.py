"""Coarse to fine: the optimal learning rate of each batch size for a fraction of the dense grid's
examples.

Every rate is a power of one ratio, so results are cells of the dense grid, with the same batches.
"""

from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np

from surge.tasks import Task
from surge.theory.objective import Objective
from surge.theory.optimum import optimal_lr
from surge.training.grid import Piece, PieceResult
from surge.training.hardware import fastest_form
from surge.training.sweep import Engine, whole_block

FIRST_RATIO = 4.0  # between the first rates, about
# A refining run ends at this many times the steps of the best so far. At half the best rate a run
# takes twice the steps, an unlucky seed as long again, and a rate of which one seed is missing is
# lost to the fit.
PATIENCE = 4.0
FEW = 4  # learning rates at once, at most
EXTENSION = 8  # powers beyond the given bounds that the search may follow an optimum to


def _best(
    runs: Mapping[int, tuple[np.ndarray, np.ndarray]],
    piece: Piece,
    ratio: float,
    objectives: Sequence[Objective],
) -> list[tuple[int, float]]:
    """(power, value) of each objective's optimum that the runs have, as the fit will place it."""
    power, seed = (each.ravel() for each in np.meshgrid(sorted(runs), piece.seeds, indexing="ij"))
    loss, diverged = _table(runs)
    found = []
    for objective in objectives:
        value = objective.value(loss, diverged, piece.eval_steps)
        optimum = optimal_lr(ratio ** power.astype(float), value.ravel(), seed, resamples=1)
        if np.isfinite(optimum.lr):
            found.append((round(np.log(optimum.lr) / np.log(ratio)), optimum.value))
    return found


def _powers(piece: Piece, ratio: float) -> list[int]:
    return [round(np.log(rate) / np.log(ratio)) for rate in piece.learning_rates]


def _runs(
    piece: Piece, result: PieceResult, ratio: float
) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Power -> (loss [seed, eval], diverged [seed])."""
    return dict(zip(_powers(piece, ratio), zip(*result, strict=True), strict=True))


def _table(runs: Mapping[int, tuple[np.ndarray, np.ndarray]]) -> PieceResult:
    return PieceResult(
        *(np.stack(each) for each in zip(*(runs[power] for power in sorted(runs)), strict=True))
    )


def _search(
    engine: Engine,
    piece: Piece,
    ratio: float,
    objectives: Sequence[Objective],
    before: Sequence[tuple[int, float]],
) -> tuple[Piece, PieceResult]:
    """Refines around the optimum of each target until its neighbours at every stride are known.

    `before` is the (power, log steps) of the next smaller batch's optima: where to start, and an
    upper bound of the steps, which do not grow with the batch size. Empty starts wide.
    """
    given, full, width = (
        _powers(piece, ratio),
        len(piece.eval_steps),
        engine.block[0] * engine.devices,
    )
    least, most = given[0] - EXTENSION, given[-1] + EXTENSION
    if before:
        centre = sorted(power for power, _ in before)[len(before) // 2]
        stride, wanted = 2, set(range(centre - 1, centre + 3))  # optima tend to rise with B
    else:
        stride = max(1, round(np.log(FIRST_RATIO) / np.log(ratio)))
        wanted = {*given[::stride], given[-1]}
    runs, best, tried, strides = {}, before, False, (stride, 2, 1)
    while wanted := {power for power in wanted if least <= power <= most} - runs.keys():
        if (
            spare := -len(wanted) % width
        ):  # the program runs this many lanes anyway: fill them with neighbours
            near = {power + step for power in wanted for step in (-1, 1)} - wanted - runs.keys()
            middle = np.mean([power for power, _ in best] or list(wanted))
            wanted |= set(sorted(near, key=lambda power: (abs(power - middle), power))[:spare])
        limit = full
        if objectives[0].judged_by == "steps" and best and (tried or len(best) == len(objectives)):
            slowest = PATIENCE * np.exp(max(value for _, value in best))
            limit = min(full, int(np.searchsorted(piece.eval_steps, slowest)) + 1)
        part = piece._replace(learning_rates=tuple(ratio**power for power in sorted(wanted)))
        runs |= _runs(part, engine.run(part, limit), ratio)
        best = _best(runs, piece, ratio, objectives)
        if len(best) < len(before) and limit < full:  # the bound was too tight after all
            return _search(engine, piece, ratio, objectives, ())
        tried |= limit == full and stride <= 2  # a target not reached by now is given up
        for stride in strides:
            wanted = {power + step for power, _ in best for step in (-stride, stride)}
            if stride > 2:  # only to hold the optimum between the rates that are known
                wanted -= set(range(min(runs), max(runs)))
            if {power for power in wanted if least <= power <= most} - runs.keys():
                break
    return piece._replace(learning_rates=tuple(ratio**power for power in sorted(runs))), _table(
        runs
    )


def run_adaptive(
    task: Task,
    pieces: Sequence[Piece],
    key: jax.Array,
    *,
    ratio: float,
    objectives: Sequence[Objective],
    stop_loss: float,
    done: Mapping[Piece, tuple[Piece, PieceResult]],
    form: str | None = None,
) -> Iterator[tuple[Piece, PieceResult]]:
    """Runs of each piece near its optimal learning rates only.

    The smallest batch of an optimizer starts wide: its runs cost the fewest examples. Larger ones
    start around the optimum of the one before. The optimum of every target is refined to its
    neighbours on the lattice, beyond the piece's bounds if it sits on them; runs that have taken
    PATIENCE times the best steps end.

    Args:
      task, key, stop_loss, form: as for `run_pieces`.
      pieces: the dense grid, whose learning rates give the bounds.
      ratio: of the lattice, as for `plan`.
      objectives: what runs are judged by; each gets its own optimum.
      done: what an earlier call yielded for some of the pieces: they guide the others and are not
        run again.

    Returns:
      Iterator of (piece with the rates that were run, its result), for each piece not done,
      smallest batch first.
    """
    pieces = sorted(pieces, key=lambda piece: (piece.optimizer, piece.batch_size))
    todo = [piece for piece in pieces if piece not in done]
    if not todo:
        return iter(())
    form = form or fastest_form(task)
    rates, seeds = whole_block(pieces, form)
    block = min(rates, max(1, FEW // jax.local_device_count())), seeds
    engine = Engine(task, key, stop_loss=stop_loss, block=block, form=form)
    engine.announce(todo)

    def each() -> Iterator[tuple[Piece, PieceResult]]:
        best: dict[str, list[tuple[int, float]]] = {}
        for piece in pieces:
            found = done.get(piece) or _search(
                engine, piece, ratio, objectives, best.get(piece.optimizer, ())
            )
            best[piece.optimizer] = _best(_runs(*found, ratio), piece, ratio, objectives)
            if piece not in done:
                yield found

    return engine.finish(each())
