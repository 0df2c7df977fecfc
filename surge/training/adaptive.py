"""Coarse to fine: the optimal learning rate of each batch size for a fraction of the dense grid's examples.

Every rate is a power of one ratio, so results are cells of the dense grid, with the same batches.
"""

from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np

from surge.tasks import Task
from surge.training.sweep import Engine, Piece, PieceResult

STRIDE = 4  # powers of the ratio between the first rates
PATIENCE = 3.0  # a refining run ends at this many times the steps of the best run so far: it cannot win
EXTENSION = 8  # powers beyond the given bounds that the search may follow an optimum to


def steps_to(loss: np.ndarray, eval_steps: Sequence[int], target: float) -> np.ndarray:
    """log steps at which loss [..., eval] first is at most target, linear between evals; inf where never."""
    logs = np.log(eval_steps)
    reached = loss <= target
    first = reached.argmax(-1)
    before = np.maximum(first - 1, 0)
    high, low = (np.take_along_axis(loss, index[..., None], -1)[..., 0] for index in (before, first))
    share = np.where(first > 0, (high - target) / np.where(high > low, high - low, 1.0), 1.0)
    return np.where(reached.any(-1), logs[before] + share * (logs[first] - logs[before]), np.inf)


def _values(loss: Mapping[int, np.ndarray], piece: Piece, target: float | None) -> dict[int, float]:
    """What to minimise at each power, mean over seeds: log steps to the target, or the last loss."""
    if target is None:
        ends = {power: each[:, -1].mean() for power, each in loss.items()}
        return {power: end if np.isfinite(end) else np.inf for power, end in ends.items()}
    return {power: steps_to(each, piece.eval_steps, target).mean() for power, each in loss.items()}


def _best(loss: Mapping[int, np.ndarray], piece: Piece, targets: Sequence[float | None]) -> list[tuple[int, float]]:
    """(power, value) of the optimum of each target that a run reached."""
    tables = [_values(loss, piece, target) for target in targets]
    tops = [min(table.items(), key=lambda item: item[1], default=(0, np.inf)) for table in tables]
    return [(power, value) for power, value in tops if np.isfinite(value)]


def _search(
    engine: Engine, piece: Piece, ratio: float, targets: Sequence[float | None], centres: Sequence[int]
) -> tuple[Piece, PieceResult, list[int]]:
    """Refines around the optimum of each target until its neighbours at every stride are known."""
    bounds = [round(np.log(rate) / np.log(ratio)) for rate in (piece.learning_rates[0], piece.learning_rates[-1])]
    least, most = bounds[0] - EXTENSION, bounds[1] + EXTENSION
    width = engine.block[0] * engine.devices
    wanted = {centre + step for centre in centres for step in (-2, 0, 2)} or {
        *range(bounds[0], bounds[1], STRIDE),
        bounds[1],
    }
    loss, diverged, limit = {}, {}, len(piece.eval_steps)
    while wanted := {power for power in wanted if least <= power <= most} - loss.keys():
        if spare := -len(wanted) % width:  # the program runs this many lanes anyway: fill them with neighbours
            near = {power + step for power in wanted for step in (-1, 1)} - wanted - loss.keys()
            middle = np.mean([power for power, _ in _best(loss, piece, targets)] or list(wanted))
            wanted |= set(sorted(near, key=lambda power: (abs(power - middle), power))[:spare])
        powers = sorted(wanted)
        part = engine.run(piece._replace(learning_rates=tuple(ratio**power for power in powers)), limit)
        loss |= dict(zip(powers, part.loss, strict=True))
        diverged |= dict(zip(powers, part.diverged, strict=True))
        best = _best(loss, piece, targets)
        if targets[0] is not None and len(best) == len(targets):
            slowest = PATIENCE * np.exp(max(value for _, value in best))
            limit = min(len(piece.eval_steps), int(np.searchsorted(piece.eval_steps, slowest)) + 1)
        for stride in (STRIDE, 2, 1):
            wanted = {power + step for power, _ in best for step in (-stride, stride)} if best else set()
            if {power for power in wanted if least <= power <= most} - loss.keys():
                break
    powers = sorted(loss)
    result = PieceResult(np.stack([loss[power] for power in powers]), np.stack([diverged[power] for power in powers]))
    rates = tuple(ratio**power for power in powers)
    return piece._replace(learning_rates=rates), result, [power for power, _ in _best(loss, piece, targets)]


def run_adaptive(
    task: Task,
    pieces: Sequence[Piece],
    key: jax.Array,
    *,
    ratio: float,
    targets: Sequence[float],
    stop_loss: float,
    form: str | None = None,
) -> Iterator[tuple[Piece, PieceResult]]:
    """Runs of each piece near its optimal learning rates only.

    The first piece of an optimizer starts wide, later ones around the optimum of the one before, so order them by
    batch size. The optimum of every target is refined to its neighbours on the lattice, beyond the piece's bounds
    if it sits on them; runs that have taken PATIENCE times the best steps end.

    Args:
      task, key, stop_loss, form: as for `run_pieces`.
      pieces: the dense grid, whose learning rates give the bounds.
      ratio: of the lattice, as for `plan`.
      targets: losses whose steps to reach are minimised; empty for the lowest last loss.

    Returns:
      Iterator of (piece with the rates that were run, its result), in the order given.
    """
    if not pieces:
        return
    seeds = max(len(piece.seeds) for piece in pieces)
    engine = Engine(task, key, stop_loss=stop_loss, block=(max(1, 4 // jax.local_device_count()), seeds), form=form)
    centres: dict[str, list[int]] = {}
    try:
        for piece in pieces:
            engine.compile(piece)
        for piece in pieces:
            found = _search(engine, piece, ratio, targets or (None,), centres.get(piece.optimizer, ()))
            centres[piece.optimizer] = found[2]
            yield found[:2]
    finally:
        engine.close()
