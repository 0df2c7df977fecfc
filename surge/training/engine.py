"""Runs one piece of a grid after another with few programs.

Lanes of learning rates and seeds are on every device.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from surge.tasks import Task
from surge.training import hardware
from surge.training.grid import Piece, PieceResult
from surge.training.lanes import Lanes
from surge.training.programs import Programs, compile_advance, compile_begin
from surge.training.protocol import PLAIN, Protocol
from surge.training.run import Cell, Run, State

# Of one call of a program, about: what the CPU runtime puts by meanwhile, up to 45 MB a second, is
# free at its end.
CALL_SECONDS = 10.0
SAY_SECONDS = 60.0  # between two lines about a block that takes long
EVALS = 64  # eval steps of a program are filled up to a multiple of this


class Engine:
    """Runs pieces of one task with few programs.

    They are compiled in a thread, in the order that they are asked for.

    Seed s starts from fold_in(key, s) whatever the piece, so cells are paired across batch sizes,
    rates and optimizers.

    Args:
      task: what is trained.
      key: of all seeds.
      lanes: runs that go on at once; programs for which memory is short take fewer.
      stop_loss: a run ends here; -inf for never.
      protocol: what else all runs have in common.
    """

    def __init__(
        self,
        task: Task,
        key: jax.Array,
        lanes: Lanes,
        *,
        stop_loss: float,
        protocol: Protocol = PLAIN,
    ):
        self.task = task
        self.key = key
        self.lanes = lanes
        self.devices = jax.local_device_count()
        self._protocol = protocol
        self._mesh = Mesh(np.asarray(jax.local_devices()), "device")
        self._shared = self._replicated(protocol.shared(task, stop_loss))
        self._classes = hardware.size_classes(task)
        self._pool = ThreadPoolExecutor(1)
        self._begins: dict[tuple, Any] = {}
        self._programs: dict[tuple, Future[Programs]] = {}
        self._fewer: dict[tuple, Lanes] = {}

    def size(self, piece: Piece) -> int:
        """Examples in a micro-batch of the piece."""
        share = piece.batch_size
        if self.lanes.wide and self.task.batch_loss is None:
            share = -(-share // self.devices)
        return hardware.microbatch(self.task, self._classes, share)

    def compile(self, piece: Piece, start: State | None = None) -> Future[Programs]:
        """Starts compiling what the piece needs, unless done before."""
        start = start or self._protocol.start(piece)
        lanes = self._lanes(piece)
        name = self._program(piece), lanes, jax.tree.structure(start)
        if name not in self._programs:
            self._programs[name] = self._pool.submit(self._compile, piece, lanes, start)
        return self._programs[name]

    def run(
        self,
        piece: Piece,
        limit: int | None = None,
        start: State | None = None,
    ) -> PieceResult:
        """All cells of a piece, in blocks that fit in memory.

        Args:
          piece: what to run.
          limit: how many of its evals to run to; None is all.
          start: what all runs branch from; None is initialisation.

        Raises:
          ValueError: the first eval is not after the state that runs branch from.
          MemoryError: one run alone does not fit; the message is one sentence.
        """
        start = start or self._protocol.start(piece)
        begun = 0 if start is None else int(start.step)
        if piece.eval_steps[0] <= begun:
            raise ValueError(
                f"runs branch from step {begun}: "
                f"the first eval, at {piece.eval_steps[0]}, must be later"
            )
        until = (begun, *piece.eval_steps)[len(piece.eval_steps) if limit is None else limit]
        while True:
            try:
                return self._run(piece, start, begun, until)
            except (jax.errors.JaxRuntimeError, MemoryError) as error:
                if not hardware.short_of_memory(error):
                    raise
                self._take_fewer(piece, error)

    def finish(self, results: Iterable) -> Iterator:
        """Passes results on.

        What is not compiled when they end, or are not asked for any more, is dropped.
        """
        try:
            yield from results
        finally:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _program(self, piece: Piece) -> tuple[str, str, int, int]:
        return piece.spec, piece.batches, self.size(piece), len(_padded(piece.eval_steps))

    def _lanes(self, piece: Piece) -> Lanes:
        """Fewer for one program only, so that it does not depend on what ran before."""
        return self._fewer.get(self._program(piece), self.lanes)

    def _take_fewer(self, piece: Piece, error: Exception) -> None:
        lanes = self._lanes(piece)
        if lanes.alone:
            raise MemoryError(
                f"one run does not fit in memory ({piece.optimizer} at batch size "
                f"{piece.batch_size}): take a smaller model, evaluation set or example"
            ) from error
        lanes = lanes.smaller()
        self._fewer[self._program(piece)] = lanes
        logging.warning(
            "out of memory: going on with %d learning rates x %d seeds at once",
            lanes.rates,
            lanes.seeds,
        )

    def _compile(self, piece: Piece, lanes: Lanes, start: State | None) -> Programs:
        rates = np.ones((self.devices, lanes.rates))
        cells = self._cells(piece, rates, piece.seeds[:1] * lanes.seeds)
        arm = piece.spec, piece.batches
        name = *arm, len(_padded(piece.eval_steps)), lanes, jax.tree.structure(start)
        if name not in self._begins:
            self._begins[name] = compile_begin(
                self.task,
                piece.spec,
                cells,
                self._shared,
                self._replicated(start),
                lanes=lanes,
                batches=piece.batches,
            )
        begin = self._begins[name]
        advance = compile_advance(
            self.task,
            piece.spec,
            begin,
            cells,
            self._shared,
            self._replicated((np.int32(0), np.int32(0))),
            microbatch_size=self.size(piece),
            lanes=lanes,
            batches=piece.batches,
        )
        programs = Programs(begin, advance)
        needed = programs.bytes()
        share = 1.0 if lanes.alone else hardware.MEMORY_SHARE
        if needed > share * hardware.device_bytes():
            raise MemoryError(
                f"{needed / 2**30:.1f} GiB needed for "
                f"{lanes.rates} learning rates x {lanes.seeds} seeds"
            )
        return programs

    def _replicated(self, tree: Any) -> Any:
        return jax.device_put(tree, NamedSharding(self._mesh, PartitionSpec()))

    def _cells(
        self,
        piece: Piece,
        rates: np.ndarray,  # [device, R]
        seeds: Sequence[int] | np.ndarray,  # [S]
    ) -> Cell:
        """Of one block, on the devices."""
        keys = jax.vmap(jax.random.fold_in, (None, 0))(self.key, jnp.asarray(seeds))
        by_device = NamedSharding(self._mesh, PartitionSpec("device"))
        moving = piece.max_examples
        return Cell(
            jax.device_put(rates.astype(np.float32), by_device),
            self._replicated(keys),
            self._replicated(np.int32(piece.batch_size)),
            self._replicated(np.asarray(_padded(piece.eval_steps), np.int32)),
            # None is no array, and a program without it is what it was.
            self._replicated(None if moving is None else np.uint32(moving)),
        )

    def _run(self, piece: Piece, start: State | None, begun: int, until: int) -> PieceResult:
        lanes = self._lanes(piece)
        programs = self.compile(piece, start).result()
        rows = []
        for rates in _blocks(piece.learning_rates, lanes.at_once(self.devices)):
            dealt = lanes.deal(rates, self.devices)
            columns = []
            for seeds in _blocks(piece.seeds, lanes.seeds):
                cells = self._cells(piece, dealt, seeds)
                runs = self._run_block(programs, piece, cells, start, begun, until)
                fields = runs.loss, runs.diverged, runs.examples
                if runs.half_loss is not None:
                    fields += (runs.half_loss,)
                columns.append([lanes.gather(np.asarray(field)) for field in fields])
            rows.append([np.concatenate(column, 1) for column in zip(*columns, strict=True)])
        fields = (np.concatenate(row) for row in zip(*rows, strict=True))
        loss, diverged, examples, *half = (
            field[: len(piece.learning_rates), : len(piece.seeds)] for field in fields
        )
        evals = len(piece.eval_steps)
        halves = (field[..., :evals] for field in half)
        return PieceResult(loss[..., :evals], diverged, _seen(examples[..., :evals]), *halves)

    def _run_block(
        self,
        programs: Programs,
        piece: Piece,
        cells: Cell,
        start: State | None,
        now: int,
        until: int,
    ) -> Run:
        """In calls of some seconds, each as many steps as the one before says."""
        runs = programs.begin(cells, self._shared, self._replicated(start))
        stride = 1
        said = time.monotonic()
        while now < until and not np.all(runs.ended):
            called = time.monotonic()
            since = now
            now = min(now + stride, until)
            steps = self._replicated((np.int32(since), np.int32(now)))
            runs = programs.advance(runs, cells, self._shared, *steps)
            jax.block_until_ready(runs)
            stride = max(1, int((now - since) * CALL_SECONDS / (time.monotonic() - called)))
            if time.monotonic() > said + SAY_SECONDS:
                where = piece.optimizer, piece.batch_size, now, until
                logging.info("%s at batch size %d: step %d of %d", *where)
                said = time.monotonic()
        return runs


def _padded(eval_steps: Sequence[int]) -> tuple[int, ...]:
    """Filled up with the last step, so that one program serves runs of any length."""
    return (*eval_steps, *[eval_steps[-1]] * (-len(eval_steps) % EVALS))


def _blocks(values: Sequence, size: int) -> list[np.ndarray]:
    """Consecutive blocks of one size; the last is filled up by repetition."""
    count = -(-len(values) // size)
    return np.split(np.resize(np.asarray(values), count * size), count)


def _seen(trained: np.ndarray) -> np.ndarray:
    """Examples seen by each evaluation [..., eval], of those trained on since the one before."""
    return np.where(trained > 0, trained.cumsum(-1, dtype=float), np.nan)
