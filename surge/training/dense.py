"""Every cell of a grid, piece by piece."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import jax

from surge.tasks import Task
from surge.training.engine import Engine
from surge.training.forecast import announce
from surge.training.grid import Piece, PieceResult
from surge.training.lanes import Lanes, of_grid
from surge.training.protocol import PLAIN, Protocol


def everyones(_: Piece) -> AbstractContextManager[bool]:
    """Every piece is run."""
    return nullcontext(True)


def run_pieces(
    task: Task,
    pieces: Sequence[Piece],
    key: jax.Array,
    *,
    stop_loss: float,
    lanes: Lanes | None = None,
    mine: Callable[[Piece], AbstractContextManager[bool]] = everyones,
    protocol: Protocol = PLAIN,
) -> Iterator[tuple[Piece, PieceResult]]:
    """Logs the plan, and runs pieces one after another on all local devices.

    The iterator yields each piece when it is finished.

    Learning rates are dealt out to devices in turn (pmap), and share one with the seeds. Later
    programs are compiled while earlier pieces run.

    Args:
      task, key, stop_loss, protocol: as for `Engine`.
      pieces: of the grid, in the order in which they are run.
      lanes: runs that go on at once; None is `of_grid` of these pieces. To go on with a grid of
        which some pieces are done, give those that it began with.
      mine: of a piece, a block in which it is run and passed on, or left to others.
    """
    if not pieces:
        return iter(())
    lanes = lanes or of_grid(task, pieces)
    engine = Engine(task, key, lanes, stop_loss=stop_loss, protocol=protocol)
    announce(engine, pieces)

    def results() -> Iterator[tuple[Piece, PieceResult]]:
        for piece in pieces:
            with mine(piece) as ours:
                if ours:
                    yield piece, engine.run(piece)

    return engine.finish(results())
