"""What a sweep costs: by number of cells and devices, and whole, compilation included, against
simpler designs.

    python scripts/bench_scaling.py        # about 5.5 minutes on two cores

First table: training steps a second over all cells of the MNIST-1D MLP (Adam, batch 64) by number
of cells, on one device and on one for each core. Second: a whole sweep of 10 batch sizes x 15
learning rates x 3 seeds, at the length of configs/mnist1d.py:quick, with an empty and then a warm
compilation cache: ours (three size classes of micro-batches), one program for each batch size, and
one program with micro-batches of 8. Every number is from its own process.
"""

import json
import os
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
from absl import app, flags

from surge.cli import parsed
from surge.tasks.mlp import mnist1d
from surge.training import grid, hardware
from surge.training.dense import run_pieces
from surge.training.engine import Engine
from surge.training.lanes import of_grid

_ONE = flags.DEFINE_string("one", "", "what a child process measures, as JSON")
SIZES = tuple(2**power for power in range(2, 12))
DESIGNS = {
    "ours": hardware.MICROBATCHES,
    "a program for each batch size": SIZES,
    "micro-batches of 8": (8,),
}
CELLS = (2, 8, 32, 128, 512)
SECONDS = 3.0


def steps_a_second(cells: int) -> float:
    """Cell-steps a second of one piece."""
    seeds = min(cells, 2)
    rates = tuple(np.geomspace(1e-4, 1e-3, cells // seeds).tolist())
    piece = grid.Piece("adam", "adam", 64, rates, tuple(range(seeds)), (20,))
    task = mnist1d()
    engine = Engine(task, jax.random.key(0), of_grid(task, [piece]), stop_loss=-np.inf)

    def run(steps: int) -> float:
        started = time.perf_counter()
        engine.run(piece._replace(eval_steps=(steps,)))
        return time.perf_counter() - started

    run(20)
    steps = max(20, int(20 * SECONDS / run(20)))
    return cells * steps / run(steps)


def whole_sweep(design: str) -> float:
    """Seconds of a whole sweep, compilation included."""
    hardware.MICROBATCHES = DESIGNS[design]
    hardware.enable_compilation_cache()
    task, started = mnist1d(), time.perf_counter()
    pieces = grid.plan(
        optimizers={"adam": ("adam", (4e-4, 8e-2))},
        learning_rate_ratio=2**0.5,
        batch_sizes=SIZES,
        seeds=3,
        max_steps=2_000,
        max_examples=100_000,
        evals=48,
    )
    for _ in run_pieces(task, pieces, jax.random.key(0), stop_loss=1.0):
        pass
    return time.perf_counter() - started


def child(devices: int, cache: str, **what: object) -> float:
    """What a fresh process measures."""
    extra = {"JAX_NUM_CPU_DEVICES": str(devices), "XDG_CACHE_HOME": cache}
    command = [sys.executable, __file__, f"--one={json.dumps(what)}"]
    done = subprocess.run(
        command, env=os.environ | extra, stdout=subprocess.PIPE, text=True, check=True
    )
    return float(done.stdout.splitlines()[-1])


def main(_: list[str]) -> None:
    if _ONE.value:
        what = json.loads(_ONE.value)
        print(steps_a_second(**what) if "cells" in what else whole_sweep(**what))
        return
    cores = hardware.cores()
    with tempfile.TemporaryDirectory() as cache:
        mnist1d()  # generates the data, which is not what is timed
        print(f"{'cells':>8}{'1 device':>14}{f'{cores} devices':>14}{'ratio':>8}   cell-steps/s")
        for cells in CELLS:
            one, all_of_them = (child(count, cache, cells=cells) for count in (1, cores))
            print(f"{cells:8d}{one:14.0f}{all_of_them:14.0f}{all_of_them / one:8.2f}", flush=True)
    print(f"\n{'whole sweep, seconds':32}{'cold':>8}{'warm':>8}{'compiling':>11}")
    for design in DESIGNS:
        with tempfile.TemporaryDirectory() as cache:
            cold, warm = (child(cores, cache, design=design) for _ in range(2))
        print(f"{design:32}{cold:8.1f}{warm:8.1f}{(cold - warm) / cold:11.0%}", flush=True)


if __name__ == "__main__":
    app.run(main, flags_parser=parsed)
