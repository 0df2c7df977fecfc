"""About how long a grid takes, said before it starts, from a few steps of its first program."""

import time
from collections.abc import Sequence

from absl import logging

from surge.tasks import count_rows
from surge.training.engine import Engine
from surge.training.grid import Piece

TRIAL_SECONDS = 0.3


def announce(engine: Engine, pieces: Sequence[Piece]) -> None:
    """Logs what the pieces hold and about how long they take, and has their programs compiled."""
    size = engine.size(pieces[0])
    alike = [piece for piece in pieces if engine.size(piece) == size]
    trial = min(alike, key=lambda piece: piece.batch_size)
    at_once = engine.lanes.at_once(engine.devices)
    speed = _seconds_a_gradient(
        engine, trial._replace(learning_rates=trial.learning_rates[:at_once])
    )
    for piece in pieces:
        engine.compile(piece)
    work = sum(_gradients(engine, piece, len(piece.eval_steps)) for piece in pieces)
    logging.info(
        "sweep: at most %d runs in %d pieces, %.2g examples, %s; less where runs end early",
        sum(piece.cells for piece in pieces),
        len(pieces),
        sum(piece.examples for piece in pieces),
        _duration(speed * work),
    )


def _seconds_a_gradient(engine: Engine, trial: Piece) -> float:
    engine.run(trial, 0)  # compiles
    rates = []
    begun = time.monotonic()
    for limit in range(1, len(trial.eval_steps) + 1):
        started = time.monotonic()
        engine.run(trial, limit)
        rates.append((time.monotonic() - started) / _gradients(engine, trial, limit))
        if time.monotonic() > begun + TRIAL_SECONDS:
            break
    return min(rates)


def _gradients(engine: Engine, piece: Piece, limit: int) -> float:
    """Gradients of one example that a piece costs up to an eval; a loss alone is a third of one."""
    size = engine.size(piece)
    steps = piece.eval_steps[min(limit, len(piece.eval_steps)) - 1] - piece.start_step
    trained = piece.max_examples or steps * -(-piece.batch_size // size) * size
    evaluated = (limit + 1) * count_rows(engine.task.evaluation) / 3
    return piece.cells * (trained + evaluated)


def _duration(seconds: float) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds > 1.5 * length:
            return f"{seconds / length:.2g} {unit}"
    return f"{seconds:.0f} s"
