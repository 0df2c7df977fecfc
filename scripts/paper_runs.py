"""The runs behind docs/results, each one command, in slices that borrowed machines allow.

    python scripts/paper_runs.py --run=mnist1d-shared             # as it is committed
    python scripts/paper_runs.py --run=figure2 --scale=full --slice_minutes=10

A slice that ends is killed; the same command goes on. Cells begin with few seeds, and more are
added until log ε_opt is known to --precision, so that no piece is longer than a slice.
"""

import subprocess
import sys
from collections.abc import Sequence

from absl import app, flags

from surge.cli import fail, parsed

RUNS = {  # name -> config, and whether it has scales
    "mnist1d-steps": ("configs/mnist1d.py", False),
    "mnist1d-shared": ("configs/mnist1d.py:shared", False),
    "mnist1d-crossed": ("configs/mnist1d.py:crossed", False),
    "figure1": ("configs/fashion_mnist.py", True),
    "figure2": ("configs/tiny_imagenet.py", True),
    "figure3": ("configs/distilgpt2.py", True),
    "figure4": ("configs/moe.py", True),
}
SEEDS = 4  # of a piece
DONE, KILLED = 0, 3  # exit codes: finished; killed at the end of a slice


def command(run: str, scale: str, precision: float, workdir: str) -> list[str]:
    """The program that a run is."""
    config, scaled = RUNS[run]
    where = workdir or f"runs/{run}" + (f"-{scale}" if scaled else "")
    arguments = [f"--config={config}:{scale}" if scaled else f"--config={config}"]
    if scaled and precision > 0:
        arguments += [f"--config.seeds={SEEDS}", f"--config.precision={precision}"]
        arguments += ["--config.grid=adaptive"]
    return [sys.executable, "-m", "surge.main", *arguments, f"--workdir={where}"]


def run_slice(program: Sequence[str], seconds: float | None) -> int:
    """The exit code of a program, KILLED where its time was up; what it had finished is kept."""
    try:
        return subprocess.run(program, timeout=seconds).returncode
    except subprocess.TimeoutExpired:
        return KILLED


def main(argv: list[str]) -> None:
    del argv
    if _RUN.value not in RUNS:
        fail(f"--run={_RUN.value} is no run: choose among {', '.join(RUNS)}")
    program = command(_RUN.value, _SCALE.value, _PRECISION.value, _WORKDIR.value)
    code = run_slice(program, 60 * _MINUTES.value or None)
    if code == KILLED:
        print("the slice is over: the same command goes on from here")
    sys.exit(code)


if __name__ == "__main__":  # flags too: a test imports the rest
    _RUN = flags.DEFINE_string("run", "", f"one of {', '.join(RUNS)}")
    _SCALE = flags.DEFINE_enum("scale", "quick", ["quick", "full"], "of the figures' configs")
    _MINUTES = flags.DEFINE_float("slice_minutes", 0.0, "after which it is killed; 0: never")
    _PRECISION = flags.DEFINE_float("precision", 0.05, "of log ε_opt; 0: the config's seeds")
    _WORKDIR = flags.DEFINE_string("workdir", "", "where results go; default runs/NAME")
    app.run(main, flags_parser=parsed)
