"""Arrays that tasks draw from, read from files on this machine or generated and cached."""

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

MNIST1D_ARRAYS = ("x", "y", "x_test", "y_test")
MNIST1D_MOST = 1_000_000  # they are made one by one
DIGEST_BYTES = 32  # of a SHA-256, which a sealed file ends in


def cache_directory() -> Path:
    """Where generated data is kept: $SURGE_CACHE, or surge/ in the user's cache directory."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("SURGE_CACHE") or Path(root) / "surge")


def write_whole(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Writes a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent)
    try:
        with open(handle, "w+b") as file:
            write(file)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink()
        raise


def write_sealed(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Writes a file that ends in the digest of what stands before it, whole or not at all."""

    def write_with_digest(file: IO[bytes]) -> None:
        write(file)
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").digest()  # pyrefly: ignore
        file.write(digest)

    write_whole(path, write_with_digest)


def is_sealed(path: Path) -> bool:
    """Whether a file is there and is what `write_sealed` wrote, to the last bit."""
    try:
        content = np.memmap(path, np.uint8, "r")
    except (OSError, ValueError):  # it is not there, or empty
        return False
    digest = hashlib.sha256(content[:-DIGEST_BYTES].data).digest()
    return digest == content[-DIGEST_BYTES:].tobytes()


def load_rows(source: str, split: str, how: str) -> Any:
    """Rows of a `datasets` data set: a name on the hub, or a file or folder in one of its formats.

    Args:
      source: owner/name, owner/name:configuration, or a path.
      split: "train", ...
      how: to get the data: what an error message ends with.

    Raises:
      ValueError: `datasets` is not installed, or the data is not there or of a kind that it does
        not read.
    """
    path = Path(source).expanduser().resolve()
    if source.startswith(("/", ".", "~")) and not path.exists():
        raise ValueError(f"no data at {source}: {how}")
    try:
        import datasets
    except ImportError:
        raise ValueError(
            f"{source} needs Hugging Face datasets: pip install 'surge[data]'"
        ) from None
    # Data sets that are Python scripts are refused by a RuntimeError, missing decompressors by an
    # ImportError.
    refusals = (OSError, ValueError, RuntimeError, ImportError, datasets.exceptions.DatasetsError)
    try:
        if (path / "state.json").is_file():
            return datasets.load_from_disk(str(path))
        if path.is_file():
            return datasets.load_dataset(str(path.parent), data_files=path.name, split=split)
        if path.is_dir():
            return datasets.load_dataset(str(path), split=split)
        name, _, configuration = source.partition(":")
        return datasets.load_dataset(name, configuration or None, split=split)
    except refusals as error:
        first = str(error).strip().splitlines()[:1]
        raise ValueError(f"cannot load {split} of {source} ({' '.join(first)}): {how}") from None


def mnist1d_arrays(examples: int, seed: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """MNIST-1D by the published recipe, for training and for testing.

    Both are {"x": [n, 40] float32, "y": [n] int32}. They are kept in the
    cache, and made again where what is there is damaged.

    Raises:
      ValueError: fewer than ten examples, one for each class, or more than MNIST1D_MOST.
    """
    if not 10 <= examples <= MNIST1D_MOST:
        raise ValueError(
            "MNIST-1D needs at least 10 examples, one for each class, and at most "
            f"{MNIST1D_MOST:,}; got {examples}"
        )
    path = cache_directory() / f"mnist1d-{examples}-{seed}.npz"
    arrays = _read_mnist1d(path, examples)
    if arrays is None:
        arrays = _make_mnist1d(examples, seed)
        write_whole(path, lambda file: np.savez(file, **arrays))
    train, test = (
        {"x": arrays["x" + part].astype(np.float32), "y": arrays["y" + part].astype(np.int32)}
        for part in ("", "_test")
    )
    return train, test


def _make_mnist1d(examples: int, seed: int) -> dict[str, Any]:
    from mnist1d.data import get_dataset_args, make_dataset

    recipe: Any = get_dataset_args()
    recipe.num_samples = examples
    recipe.seed = seed
    made = make_dataset(recipe)
    return {name: made[name] for name in MNIST1D_ARRAYS}


def _read_mnist1d(path: Path, examples: int) -> dict[str, np.ndarray] | None:
    """The arrays in a file of the cache; None where they are not what was written there."""
    try:
        with path.open("rb") as file, np.load(file) as stored:
            arrays = {name: stored[name] for name in MNIST1D_ARRAYS}
        inputs = np.concatenate([arrays["x"], arrays["x_test"]])
        labels = np.concatenate([arrays["y"], arrays["y_test"]])
    except Exception:  # each layer of the format has errors of its own; the file is only a cache
        return None
    whole = inputs.shape == (examples, 40) and labels.shape == (examples,)
    sound = whole and np.isfinite(inputs).all() and np.isin(labels, range(10)).all()
    return arrays if sound else None
