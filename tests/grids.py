"""A small grid that the tests of what runs it share."""

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from surge.tasks.quadratic import quadratic
from surge.training.dense import run_pieces
from surge.training.grid import Piece, plan
from surge.training.run import Shared

KEY = jax.random.key(0)
TASK = quadratic(size=6, noise=2.0)
SHARED = Shared(-np.inf, TASK.data, TASK.evaluation)
GRID: dict[str, Any] = {
    "optimizers": {"sgd": ("sgd", (0.02, 0.7))},
    "learning_rate_ratio": 2**0.5,
    "batch_sizes": (8, 64),
    "seeds": 3,
    "max_steps": 60,
    "max_examples": 640,
    "evals": 12,
}


def planned(**changes: Any) -> list[Piece]:
    """Pieces of GRID with these changes."""
    return plan(**(GRID | changes))


PIECES = planned()


def collected(pieces, **options):
    return {
        piece.batch_size: result
        for piece, result in run_pieces(TASK, pieces, KEY, stop_loss=-np.inf, **options)
    }


def on_one_device(expression, path):
    """What an expression in terms of a test file gives in a process with one device.

    Args:
      expression: like "test_engine.collected(...)".
      path: of a file to hand it over in.
    """
    module = expression.partition(".")[0]
    program = f"""
import pickle, sys
import jax
sys.path.insert(0, {str(Path(__file__).parent)!r})
import {module}
assert jax.local_device_count() == 1
with open({str(path)!r}, "wb") as file:
    pickle.dump({expression}, file)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    return pickle.loads(path.read_bytes())
