"""The grid of runs: optimizer x batch size x learning rate x seed.

It is in pieces that can be finished one by one.
"""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from surge.theory.objective import Objective, needs_halves


class Piece(NamedTuple):
    """All runs of one optimizer at one batch size.

    From start_step to the last of eval_steps (both absolute), or over max_examples where `batches`
    say that the batch size moves: batch_size is then the first.
    """

    optimizer: str
    spec: str
    batch_size: int
    learning_rates: tuple[float, ...]
    seeds: tuple[int, ...]
    eval_steps: tuple[int, ...]
    start_step: int = 0
    batches: str = "constant"
    max_examples: int | None = None

    @property
    def cells(self) -> int:
        return len(self.learning_rates) * len(self.seeds)

    @property
    def examples(self) -> int:
        """Training examples if no run ends early."""
        trained = self.max_examples or (self.eval_steps[-1] - self.start_step) * self.batch_size
        return self.cells * trained


class PieceResult(NamedTuple):
    """What the runs of a piece recorded.

    Attributes:
      loss: [learning_rate, seed, eval], nan after a run's end.
      diverged: [learning_rate, seed].
      examples: [learning_rate, seed, eval] trained on by then, nan after a run's end.
      half_loss: as loss, on one half of the evaluation set; None where it was not recorded.
    """

    loss: np.ndarray
    diverged: np.ndarray
    examples: np.ndarray
    half_loss: np.ndarray | None = None


def values(objective: Objective, piece: Piece, result: PieceResult) -> np.ndarray:
    """What an objective says of each run [learning_rate, seed]."""
    steps = np.asarray(piece.eval_steps) - piece.start_step
    halves = {"half_loss": result.half_loss} if needs_halves(objective) else {}
    return objective.value(result.loss, result.diverged, steps, **halves)


def powers(low: float, high: float, ratio: float) -> range:
    """The exponents of the powers of `ratio` within [low, high]."""
    first = math.ceil(math.log(low, ratio) - 1e-9)
    last = math.floor(math.log(high, ratio) + 1e-9)
    return range(first, last + 1)


def lattice(low: float, high: float, ratio: float) -> tuple[float, ...]:
    """The powers of `ratio` within [low, high], so that the grids of all optimizers align."""
    return tuple(ratio**power for power in powers(low, high, ratio))


def geometric_steps(last: int, count: int) -> tuple[int, ...]:
    """At most `count` distinct whole steps from 1 to `last`, evenly spaced in the logarithm."""
    return tuple(int(step) for step in np.unique(np.geomspace(1, last, count).round()))


def plan(
    *,
    optimizers: Mapping[str, tuple[str, tuple[float, float]]],
    learning_rate_ratio: float,
    batch_sizes: Sequence[int],
    seeds: int,
    max_steps: int,
    max_examples: int,
    evals: int,
    start_step: int = 0,
    batches: Mapping[str, str] = MappingProxyType({}),
) -> list[Piece]:
    """The pieces of a grid, largest batch size first within an optimizer.

    A run ends at max_steps or max_examples, whichever comes first: for a horizon in examples set
    max_steps to max_examples, for one in steps set max_examples to max_steps times the largest
    batch size.

    Args:
      optimizers: label -> (spec, (lowest, highest learning rate)).
      learning_rate_ratio: between neighbouring learning rates.
      batch_sizes: examples per step.
      seeds: how many runs share each cell.
      max_steps: longest run in steps, from start_step on.
      max_examples: longest run in examples, from start_step on.
      evals: how often a run's loss is taken, at geometrically spaced steps after start_step.
      start_step: step of the State that all runs branch from.
      batches: label -> spec of an arm whose batch size moves from batch_sizes on.

    Raises:
      ValueError: no power of learning_rate_ratio lies between the bounds, or max_examples is below
        a batch size.
    """
    pieces = []
    for label, (spec, (low, high)) in optimizers.items():
        rates = lattice(low, high, learning_rate_ratio)
        if not rates:
            raise ValueError(
                f"{label}: no power of {learning_rate_ratio:g} lies in [{low:g}, {high:g}]: "
                "widen it"
            )
        for batch_size in sorted(batch_sizes, reverse=True):
            steps = min(max_steps, max_examples // batch_size)
            if steps < 1:
                raise ValueError(
                    f"max_examples ({max_examples}) allows no step at batch size {batch_size}: "
                    "raise it"
                )
            ends = tuple(start_step + step for step in geometric_steps(steps, evals))
            piece = Piece(label, spec, batch_size, rates, tuple(range(seeds)), ends, start_step)
            if label in batches:
                piece = piece._replace(batches=batches[label], max_examples=max_examples)
            pieces.append(piece)
    return pieces
