"""Does text that stays in its file starve the device? Training steps with tokens resident and
streamed, side by side.

    python scripts/bench_streaming.py        # about 2 minutes on two cores

Windows drawn a second, and cell-steps a second of Adam over 8 cells of the smallest GPT, batch 16,
from the standard library's source packed into a memory-mapped file. The two forms take turns;
medians of --repeats.
"""

import time
from collections.abc import Callable

import jax
import numpy as np
from absl import app, flags

from surge.cli import parsed
from surge.tasks import Task, gpt
from surge.training import grid, hardware
from surge.training.engine import Engine
from surge.training.lanes import of_grid

_REPEATS = flags.DEFINE_integer("repeats", 5, "timed runs of each form", lower_bound=1)
FORMS = ("resident", "streamed")
WINDOWS, BATCH, STEPS = 4_096, 16, 30
RATES, SEEDS = (1e-4, 3e-4, 1e-3, 3e-3), (0, 1)


def draws(task: Task) -> Callable[[], int]:
    """Draws WINDOWS windows."""
    draw = jax.jit(jax.vmap(task.draw, (None, 0)))
    keys = jax.random.split(jax.random.key(0), WINDOWS)

    def run() -> int:
        jax.block_until_ready(draw(task.data, keys))
        return WINDOWS

    return run


def steps(task: Task) -> Callable[[], int]:
    """Trains every cell for STEPS steps."""
    piece = grid.Piece("adam", "adam", BATCH, RATES, SEEDS, (STEPS,))
    engine = Engine(task, jax.random.key(0), of_grid(task, [piece]), stop_loss=-np.inf)

    def run() -> int:
        engine.run(piece)
        return piece.cells * STEPS

    return run


def main(_: list[str]) -> None:
    hardware.one_device_per_core()
    tasks = {
        form: gpt.text("tiny", context=32, evaluation_examples=1, stream=form == "streamed")
        for form in FORMS
    }
    print(f"{'a second':24}" + "".join(f"{form:>12}" for form in FORMS) + f"{'ratio':>8}")
    for label, make in (("windows drawn", draws), ("cell-steps", steps)):
        runs = {form: make(task) for form, task in tasks.items()}
        rates: dict[str, list[float]] = {form: [] for form in FORMS}
        for repeat in range(_REPEATS.value + 1):  # the first compiles
            for form, run in runs.items():
                started = time.perf_counter()
                count = run()
                if repeat:
                    rates[form].append(count / (time.perf_counter() - started))
        resident, streamed = (float(np.median(rates[form])) for form in FORMS)
        print(f"{label:24}{resident:12.0f}{streamed:12.0f}{streamed / resident:8.2f}", flush=True)


if __name__ == "__main__":
    app.run(main, flags_parser=parsed)
