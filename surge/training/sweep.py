"""Runs the pieces of a grid with few programs: lanes of learning rates and seeds, on every
device."""

import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from surge.tasks import Task, count_rows
from surge.training import hardware
from surge.training.grid import Piece, PieceResult
from surge.training.programs import Programs, compile_advance, compile_begin
from surge.training.run import Run, State

# Of one call of a program, about: what the CPU runtime puts by meanwhile, up to 45 MB a second, is
# free at its end.
CALL_SECONDS = 10.0
SAY_SECONDS = 60.0  # between two lines about a block that takes long


def whole_block(pieces: Sequence[Piece], form: str) -> tuple[int, int]:
    """The block of a grid in one form: (learning rates on a device, seeds).

    Side by side it holds all cells of any one piece; in turns a row of seeds is as fast, and no row
    is a filler. Results are the same to the last bit only in blocks of one shape, so a grid that is
    resumed takes the block of the whole grid.
    """
    seeds = max(len(piece.seeds) for piece in pieces)
    if form == "map":
        return 1, seeds
    return -(-max(len(piece.learning_rates) for piece in pieces) // jax.local_device_count()), seeds


class Engine:
    """Runs pieces of one task with few programs, compiled in a thread in the order that they are
    asked for.

    Seed s starts from fold_in(key, s) whatever the piece, so cells are paired across batch sizes,
    rates and optimizers.

    Args:
      task: what is trained.
      key: of all seeds.
      stop_loss: a run ends here; -inf for never.
      block: learning rates on one device, and seeds, that run at once; programs for which memory is
        short take smaller ones. In blocks (1, 1) a run equals a plain loop bit for bit.
      start: a State that all runs branch from; None is initialisation. May be replaced between
        runs.
      form: how lanes share a device, "vmap" or "map"; None takes the faster, see `fastest_form`.
    """

    def __init__(
        self,
        task: Task,
        key: jax.Array,
        *,
        stop_loss: float,
        block: tuple[int, int],
        start: State | None = None,
        form: str | None = None,
    ):
        self.task, self.key, self.block, self.start = task, key, block, start
        self.form, self._classes = form or hardware.fastest_form(task), hardware.size_classes(task)
        self.devices = jax.local_device_count()
        self._mesh = Mesh(np.asarray(jax.local_devices()), "device")
        self._shared = self._replicated((np.float32(stop_loss), task.data, task.evaluation))
        self._pool, self._begins, self._programs, self._smaller = ThreadPoolExecutor(1), {}, {}, {}

    def compile(self, piece: Piece) -> Future[Programs]:
        """Starts compiling what the piece needs, unless done before."""
        name, block = self._program(piece), self._block(piece)
        if (name, block) not in self._programs:
            size = self._size(piece)
            self._programs[name, block] = self._pool.submit(self._compile, piece, size, block)
        return self._programs[name, block]

    def _program(self, piece: Piece) -> tuple:
        return piece.spec, self._size(piece), len(_padded(piece.eval_steps))

    def _size(self, piece: Piece) -> int:
        return hardware.microbatch(self.task, self._classes, piece.batch_size)

    def _block(self, piece: Piece) -> tuple[int, int]:
        """Made smaller for one program only, so that it does not depend on what ran before."""
        return self._smaller.get(self._program(piece), self.block)

    def announce(self, pieces: Sequence[Piece]) -> None:
        """Logs what the pieces hold and about how long they take, from a few steps of the first
        program."""
        size = self._size(pieces[0])
        alike = [piece for piece in pieces if self._size(piece) == size]
        trial = min(alike, key=lambda piece: piece.batch_size)
        trial = trial._replace(learning_rates=trial.learning_rates[: self.devices * self.block[0]])
        self.run(trial, 0)
        rates, begun = [], time.monotonic()
        for limit in range(1, len(trial.eval_steps) + 1):
            started = time.monotonic()
            self.run(trial, limit)
            rates.append((time.monotonic() - started) / self._work(trial, limit))
            if time.monotonic() > begun + 0.3:
                break
        for piece in pieces:
            self.compile(piece)
        logging.info(
            "sweep: at most %d runs in %d pieces, %.2g examples, %s; less where runs end early",
            sum(piece.cells for piece in pieces),
            len(pieces),
            sum(piece.examples for piece in pieces),
            _duration(
                min(rates) * sum(self._work(piece, len(piece.eval_steps)) for piece in pieces)
            ),
        )

    def _work(self, piece: Piece, limit: int) -> float:
        """Gradients of one example that a piece costs up to an eval; a loss alone costs a third of
        one."""
        size = self._size(piece)
        steps = piece.eval_steps[min(limit, len(piece.eval_steps)) - 1] - piece.start_step
        evaluation = count_rows(self.task.evaluation)
        return piece.cells * (
            steps * -(-piece.batch_size // size) * size + (limit + 1) * evaluation / 3
        )

    def finish(self, results: Iterable) -> Iterator:
        """Passes results on; what is not compiled when they end, or are not asked for any more, is
        dropped."""
        try:
            yield from results
        finally:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def run(self, piece: Piece, limit: int | None = None) -> PieceResult:
        """All cells of a piece, up to `limit` of its evals, in blocks that fit in memory.

        Raises:
          ValueError: the first eval is not after the state that runs branch from.
          MemoryError: one run alone does not fit; the message is one sentence.
        """
        begun = 0 if self.start is None else int(self.start.step)
        if piece.eval_steps[0] <= begun:
            raise ValueError(
                f"runs branch from step {begun}: the first eval, at {piece.eval_steps[0]}, must be later"
            )
        until = (begun, *piece.eval_steps)[len(piece.eval_steps) if limit is None else limit]
        while True:
            try:
                return self._run(piece, begun, until)
            except (jax.errors.JaxRuntimeError, MemoryError) as error:
                if not hardware.short_of_memory(error):
                    raise
                rates, seeds = self._block(piece)
                if (rates, seeds) == (1, 1):
                    which = f"{piece.optimizer} at batch size {piece.batch_size}"
                    raise MemoryError(
                        f"one run does not fit in memory ({which}): take a smaller model, evaluation set or example"
                    ) from error
                smaller = (rates // 2, seeds) if rates > 1 else (1, seeds // 2)
                self._smaller[self._program(piece)] = smaller
                logging.warning(
                    "out of memory: going on with %d learning rates x %d seeds at once", *smaller
                )

    def _compile(self, piece: Piece, size: int, block: tuple[int, int]) -> Programs:
        alone = block == (
            1,
            1,
        )  # no batch axis, not even of one: it would already round differently
        form = "alone" if alone else self.form
        own = self._own(piece, np.ones((self.devices, block[0])), piece.seeds[:1] * block[1])
        name = piece.spec, len(_padded(piece.eval_steps)), block
        if name not in self._begins:
            start = self._replicated(self.start)
            self._begins[name] = compile_begin(
                self.task, piece.spec, own, self._shared[-1], start, form=form
            )
        begin, steps = self._begins[name], self._replicated((np.int32(0), np.int32(0)))
        advance = compile_advance(
            self.task, piece.spec, begin, own, self._shared, steps, microbatch_size=size, form=form
        )
        programs = Programs(begin, advance)
        needed = programs.bytes()
        if needed > (1.0 if alone else hardware.MEMORY_SHARE) * hardware.device_bytes():
            raise MemoryError(
                f"{needed / 2**30:.1f} GiB needed for {block[0]} learning rates x {block[1]} seeds"
            )
        return programs

    def _replicated(self, tree: Any) -> Any:
        return jax.device_put(tree, NamedSharding(self._mesh, PartitionSpec()))

    def _own(self, piece: Piece, rates: np.ndarray, seeds: Sequence[int] | np.ndarray) -> tuple:
        """What a block has of its own: rates [device, R], keys [S], batch size, eval steps."""
        keys = jax.vmap(jax.random.fold_in, (None, 0))(self.key, jnp.asarray(seeds))
        numbers = np.int32(piece.batch_size), np.asarray(_padded(piece.eval_steps), np.int32)
        dealt = jax.device_put(
            rates.astype(np.float32), NamedSharding(self._mesh, PartitionSpec("device"))
        )
        return dealt, *self._replicated((keys, *numbers))

    def _run(self, piece: Piece, begun: int, until: int) -> PieceResult:
        block, programs = self._block(piece), self.compile(piece).result()
        rows = []
        for rates in _blocks(piece.learning_rates, self.devices * block[0]):
            dealt = rates.reshape(
                -1, self.devices
            ).T  # neighbours go to different devices: they cost alike
            columns = []
            for seeds in _blocks(piece.seeds, block[1]):
                runs = self._run_block(
                    programs, piece, self._own(piece, dealt, seeds), begun, until
                )
                columns.append([_undeal(np.asarray(each)) for each in (runs.loss, runs.diverged)])
            rows.append([np.concatenate(each, 1) for each in zip(*columns, strict=True)])
        arrays = [np.concatenate(each) for each in zip(*rows, strict=True)]
        loss, diverged = (each[: len(piece.learning_rates), : len(piece.seeds)] for each in arrays)
        return PieceResult(loss[..., : len(piece.eval_steps)], diverged)

    def _run_block(self, programs: Programs, piece: Piece, own: tuple, now: int, until: int) -> Run:
        """In calls of some seconds, each as many steps as the one before says."""
        runs = programs.begin(None, *own, self._shared[-1], self._replicated(self.start))
        stride, said = 1, time.monotonic()
        while now < until and not np.all(runs.ended):
            called, since, now = time.monotonic(), now, min(now + stride, until)
            runs = programs.advance(
                runs, *own, *self._shared, *self._replicated((np.int32(since), np.int32(now)))
            )
            jax.block_until_ready(runs)
            stride = max(1, int((now - since) * CALL_SECONDS / (time.monotonic() - called)))
            if time.monotonic() > said + SAY_SECONDS:
                logging.info(
                    "%s at batch size %d: step %d of %d",
                    piece.optimizer,
                    piece.batch_size,
                    now,
                    until,
                )
                said = time.monotonic()
        return runs


def _duration(seconds: float) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds > 1.5 * length:
            return f"{seconds / length:.2g} {unit}"
    return f"{seconds:.0f} s"


def _padded(eval_steps: Sequence[int]) -> tuple[int, ...]:
    """Filled up to a multiple of 64 with the last step, so that one program serves runs of any
    length."""
    return (*eval_steps, *[eval_steps[-1]] * (-len(eval_steps) % 64))


def _blocks(values: Sequence, size: int) -> list[np.ndarray]:
    """Consecutive blocks of one size; the last is filled up by repetition."""
    count = -(-len(values) // size)
    return np.split(np.resize(np.asarray(values), count * size), count)


def _undeal(array: np.ndarray) -> np.ndarray:
    """[device, R, ...] -> [R * device, ...] in the order before dealing."""
    return np.swapaxes(array, 0, 1).reshape(-1, *array.shape[2:])


def run_pieces(
    task: Task,
    pieces: Sequence[Piece],
    key: jax.Array,
    *,
    stop_loss: float,
    start: State | None = None,
    form: str | None = None,
    block: tuple[int, int] | None = None,
) -> Iterator[tuple[Piece, PieceResult]]:
    """Logs the plan; the iterator runs pieces one after another on all local devices, yields each
    when finished.

    Learning rates are dealt out to devices in turn (pmap), and share one with the seeds. Later
    programs are compiled while earlier pieces run. Arguments are those of `Engine`; block None
    takes all cells at once, and to go on with a grid of which some pieces are done, give the
    `whole_block` of all of it.
    """
    if not pieces:
        return iter(())
    form = form or hardware.fastest_form(task)
    block = block or whole_block(pieces, form)
    engine = Engine(task, key, stop_loss=stop_loss, block=block, start=start, form=form)
    engine.announce(pieces)
    return engine.finish((piece, engine.run(piece)) for piece in pieces)
