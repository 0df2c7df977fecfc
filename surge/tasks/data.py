"""Arrays that tasks draw from, read from files on this machine or generated and cached."""

import os
import tempfile
from pathlib import Path

import numpy as np


def cache_directory() -> Path:
    """Where generated data is kept: $SURGE_CACHE, or surge/ in the user's cache directory."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("SURGE_CACHE") or Path(root) / "surge")


def mnist1d_arrays(examples: int, seed: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """MNIST-1D by the published recipe: {"x": [n, 40] float32, "y": [n] int32} for training and for testing.

    Raises:
      ValueError: fewer than ten examples, one for each class.
    """
    if examples < 10:
        raise ValueError(f"MNIST-1D needs at least 10 examples, one for each class; got {examples}")
    path = cache_directory() / f"mnist1d-{examples}-{seed}.npz"
    if not path.exists():
        from mnist1d.data import get_dataset_args, make_dataset

        recipe = get_dataset_args()
        recipe.num_samples, recipe.seed = examples, seed
        made = make_dataset(recipe)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent)
        with open(handle, "wb") as file:
            np.savez(file, **{name: made[name] for name in ("x", "y", "x_test", "y_test")})
        os.replace(temporary, path)
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    return tuple(
        {"x": arrays["x" + part].astype(np.float32), "y": arrays["y" + part].astype(np.int32)}
        for part in ("", "_test")
    )
