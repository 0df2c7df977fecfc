"""The grid of runs: optimizer x batch size x learning rate x seed, in pieces that can be finished one by one."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from surge.optimizers import make_optimizer
from surge.tasks import Task
from surge.training.run import make_train

MICROBATCHES = (8, 64, 512)  # size classes: one compiled program for each optimizer and class serves every B


class Piece(NamedTuple):
    """All runs of one optimizer at one batch size."""

    optimizer: str
    spec: str
    batch_size: int
    learning_rates: tuple[float, ...]
    seeds: tuple[int, ...]
    eval_steps: tuple[int, ...]

    @property
    def cells(self) -> int:
        return len(self.learning_rates) * len(self.seeds)


class PieceResult(NamedTuple):
    """loss [learning_rate, seed, eval], nan after a run's end; diverged [learning_rate, seed]."""

    loss: np.ndarray
    diverged: np.ndarray


def enable_compilation_cache() -> None:
    """Keeps compiled programs between processes, in the user's cache directory."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    jax.config.update("jax_compilation_cache_dir", str(Path(root) / "surge" / "programs"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def lattice(low: float, high: float, ratio: float) -> tuple[float, ...]:
    """The powers of `ratio` within [low, high], so that the grids of all optimizers align."""
    first, last = math.ceil(math.log(low, ratio) - 1e-9), math.floor(math.log(high, ratio) + 1e-9)
    return tuple(ratio**power for power in range(first, last + 1))


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
) -> list[Piece]:
    """The pieces of a grid.

    Args:
      optimizers: label -> (spec, (lowest, highest learning rate)).
      learning_rate_ratio: between neighbouring learning rates.
      batch_sizes: examples per step.
      seeds: how many runs share each cell.
      max_steps: longest run in steps.
      max_examples: longest run in examples.
      evals: how often a run's loss is taken, at geometrically spaced steps.
    """
    return [
        Piece(
            label,
            spec,
            batch_size,
            lattice(*bounds, learning_rate_ratio),
            tuple(range(seeds)),
            geometric_steps(min(max_steps, max_examples // batch_size), evals),
        )
        for label, (spec, bounds) in optimizers.items()
        for batch_size in sorted(batch_sizes, reverse=True)
    ]


def microbatch(batch_size: int) -> int:
    """The largest size class within the batch, or the smallest class."""
    return max((size for size in MICROBATCHES if size <= batch_size), default=MICROBATCHES[0])


def run_pieces(
    task: Task, pieces: Sequence[Piece], key: jax.Array, *, stop_loss: float
) -> Iterator[tuple[Piece, PieceResult]]:
    """Runs pieces one after another, each on all local devices; yields each as it is finished.

    Learning rates are dealt out to devices in turn (pmap), and vmapped with the seeds within one. Seed s starts
    from fold_in(key, s) whatever the piece, so cells are paired across batch sizes, rates and optimizers.
    """
    devices = jax.local_device_count()
    axes = ("learning_rate", "seed")

    @lru_cache
    def program(spec: str, microbatch_size: int):
        train = make_train(task, make_optimizer(spec), microbatch_size=microbatch_size, axis_name=axes)

        def record(*arguments):
            result = train(*arguments)
            return result.loss, result.diverged

        shared = (None,) * 5
        lanes = jax.vmap(record, (None, 0, *shared), axis_name="seed")
        lanes = jax.vmap(lanes, (0, None, *shared), axis_name="learning_rate")
        return jax.pmap(lanes, in_axes=(0, None, *shared))

    for piece in pieces:
        rates = np.asarray(piece.learning_rates, np.float32)
        padded = np.resize(rates, -(-len(rates) // devices) * devices)
        dealt = padded.reshape(-1, devices).T  # neighbours go to different devices: they cost alike
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.asarray(piece.seeds))
        run = program(piece.spec, microbatch(piece.batch_size))
        loss, diverged = run(
            dealt,
            keys,
            piece.batch_size,
            np.asarray(piece.eval_steps, np.int32),
            stop_loss,
            task.data,
            task.evaluation,
        )
        order = [
            np.swapaxes(np.asarray(each), 0, 1).reshape(-1, *each.shape[2:])[: len(rates)] for each in (loss, diverged)
        ]
        yield piece, PieceResult(*order)
