"""Where a training step of a sweep goes, by kind of operation, from the runtime's own trace. For
the CPU backend.

    python scripts/profile_step.py --workload=gpt --batch=8        # under a minute on two cores
    python scripts/profile_step.py --workload=mlp --batch=8 --steps=2000

Trains the 16 cells of scripts/bench_sweep.py and adds up what every device spent in each kind of
operation: "dot" and "ynn_fusion" are products of matrices, the rest is elementwise work and copies.
Tracing itself slows small operations.
"""

import collections
import tempfile
import time
from pathlib import Path

import numpy as np
from absl import app, flags
from peers import TITLES, jax_task

from surge.cli import parsed
from surge.training import grid, hardware
from surge.training.engine import Engine
from surge.training.lanes import of_grid

_WORKLOAD = flags.DEFINE_enum("workload", "mlp", list(TITLES), "what is trained")
_BATCH = flags.DEFINE_integer("batch", 8, "examples in a step")
_STEPS = flags.DEFINE_integer("steps", 4, "steps that are traced")
RATES, SEEDS, SHOWN = 8, 2, 12
HOLDERS = (
    "while",
    "call",
    "conditional",
    "ThunkExecutor",
    "end: ",
    "$",
    "Pjit",
    "np",
    "CommonPjRt",
    "Wait",
)


def kinds(trace: Path) -> collections.Counter[str]:
    """Nanoseconds in each kind of operation on all devices; what holds others, and the host's
    Python, left out."""
    import jax

    spent: collections.Counter[str] = collections.Counter()
    for path in trace.rglob("*.xplane.pb"):
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
            for event in (event for line in plane.lines for event in line.events):
                if not event.name.startswith(HOLDERS):
                    spent[event.name.partition(".")[0]] += int(event.duration_ns)
    return spent


def main(_: list[str]) -> None:
    hardware.one_device_per_core()
    import jax

    rates = tuple(np.geomspace(1e-4, 1e-2, RATES).tolist())
    piece = grid.Piece("adam", "adam", _BATCH.value, rates, tuple(range(SEEDS)), (_STEPS.value,))
    task = jax_task(_WORKLOAD.value)
    engine = Engine(task, jax.random.key(0), of_grid(task, [piece]), stop_loss=-np.inf)
    engine.run(piece)
    with tempfile.TemporaryDirectory() as trace:
        with jax.profiler.trace(trace):
            started = time.perf_counter()
            engine.run(piece)
            wall = time.perf_counter() - started
        spent = kinds(Path(trace))
    speed = piece.cells * _STEPS.value / wall
    title = TITLES[_WORKLOAD.value]
    print(f"{title}, batch {_BATCH.value}: {speed:.1f} cell-steps/s traced")
    available = wall * 1e9 * jax.local_device_count()
    for kind, nanoseconds in spent.most_common(SHOWN):
        print(f"{kind:40}{nanoseconds / available:7.1%}")


if __name__ == "__main__":
    app.run(main, flags_parser=parsed)
