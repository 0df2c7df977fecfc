"""Coarse to fine: the optimal learning rate of each batch size for a fraction of the dense grid's examples.

Every rate is a power of one ratio, so results are cells of the dense grid, with the same batches.
"""

from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np

from surge.tasks import Task
from surge.training.sweep import Engine, Piece, PieceResult

FIRST_RATIO = 4.0  # between the first rates, about
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


def _powers(piece: Piece, ratio: float) -> list[int]:
    return [round(np.log(rate) / np.log(ratio)) for rate in piece.learning_rates]


def _search(
    engine: Engine, piece: Piece, ratio: float, targets: Sequence[float | None], centres: Sequence[int]
) -> tuple[Piece, PieceResult]:
    """Refines around the optimum of each target until its neighbours at every stride are known."""
    given = _powers(piece, ratio)
    least, most = given[0] - EXTENSION, given[-1] + EXTENSION
    width = engine.block[0] * engine.devices
    wide = 2 ** max(0, round(np.log2(np.log(FIRST_RATIO) / np.log(ratio))))
    strides = [wide >> halvings for halvings in range(wide.bit_length())]
    wanted = {centre + step for centre in centres for step in (-(wide // 2), 0, wide // 2)}
    wanted = wanted or {*given[::wide], given[-1]}
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
        for stride in strides:
            wanted = {power + step for power, _ in best for step in (-stride, stride)} if best else set()
            if {power for power in wanted if least <= power <= most} - loss.keys():
                break
    powers = sorted(loss)
    result = PieceResult(np.stack([loss[power] for power in powers]), np.stack([diverged[power] for power in powers]))
    return piece._replace(learning_rates=tuple(ratio**power for power in powers)), result


def run_adaptive(
    task: Task,
    pieces: Sequence[Piece],
    key: jax.Array,
    *,
    ratio: float,
    targets: Sequence[float | None],
    stop_loss: float,
    done: Mapping[Piece, tuple[Piece, PieceResult]],
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
      targets: losses whose steps to reach are minimised; None for the lowest last loss.
      done: what an earlier call yielded for some of the pieces: they guide the others and are not run again.

    Returns:
      Iterator of (piece with the rates that were run, its result), for each piece not done, in the order given.
    """
    todo = [piece for piece in pieces if piece not in done]
    if not todo:
        return iter(())
    seeds = max(len(piece.seeds) for piece in pieces)
    engine = Engine(task, key, stop_loss=stop_loss, block=(max(1, 4 // jax.local_device_count()), seeds), form=form)
    engine.announce(todo)

    def each() -> Iterator[tuple[Piece, PieceResult]]:
        centres: dict[str, list[int]] = {}
        for piece in pieces:
            found = done.get(piece) or _search(engine, piece, ratio, targets, centres.get(piece.optimizer, ()))
            loss = dict(zip(_powers(found[0], ratio), found[1].loss, strict=True))
            centres[piece.optimizer] = [power for power, _ in _best(loss, piece, targets)]
            if piece not in done:
                yield found

    return engine.finish(each())
