"""Files of a workdir: bytes, JSON and NetCDF, written and read whole or not at all.

A NetCDF file ends in the digest of what stands before it, which readers of HDF5 pass over; a file
without one is from before there were any, and is read as it is.
"""

import hashlib
import io
import json
import math
import os
import socket
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

UNITS = {
    "loss": "mean training loss on the fixed evaluation subset",
    "steps": "optimizer steps",
    "examples": "training examples",
    "diverged": "1 if the loss stopped being finite or far exceeded its start, 0 if not, "
    "nan if not run",
    "learning_rate": "update per step in units of the optimizer's direction",
    "batch_size": "examples per optimizer step",
}
FIT = {
    "optimizer",
    "target_loss",
    "judged_by",
    "optimal_lr",
    "noise_scale",
    "laws",
    "best_law",
    "b_peak",
}
MEASURED = ("loss", "step")  # of measure.nc at least; what else is missing is left out
SEAL = b"surge:sha256:"  # begins the last bytes of a NetCDF file, its digest in hexadecimal
PARTIAL = ".part"  # ends the names of files that are being written


class ResultError(Exception):
    """A workdir that cannot be used as asked; the message is one sentence for the user."""


def write_bytes(path: Path | str, content: bytes) -> None:
    """Writes a file under a temporary name and renames it: a killed process leaves no half file.

    Raises:
      OSError: it cannot be written; `filename` is `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Unlike mkstemp's, its mode obeys the umask; machines that share a folder may share numbers.
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}{PARTIAL}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(
            error.errno, error.strerror or str(error), str(path)
        ) from None  # a full disk names no file
    finally:
        temporary.unlink(missing_ok=True)


def finite_or_none(value: Any) -> Any:
    """JSON has no nan and no infinity: they become null, in nested lists and dicts too."""
    if isinstance(value, Mapping):
        return {str(key): finite_or_none(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_none(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path | str, content: Any) -> None:
    """Writes JSON atomically; nan and infinities become null."""
    write_bytes(
        path, (json.dumps(finite_or_none(content), indent=1, allow_nan=False) + "\n").encode()
    )


def read_json(path: Path | str) -> Any:
    """Reads JSON.

    Raises:
      ResultError: the file is missing or is not JSON (cut short, say).
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ResultError(f"{path} does not exist: run the stage that writes it first") from None
    except (ValueError, RecursionError):
        raise unreadable(path) from None


def write_dataset(path: Path | str, dataset: xr.Dataset) -> None:
    """Writes a NetCDF-4 file atomically, with the units of every variable it knows."""
    for name in dataset.variables:
        if name in UNITS:
            dataset[name].attrs["units"] = UNITS[name]
    content = bytes(dataset.to_netcdf(engine="h5netcdf"))  # pyrefly: ignore
    write_bytes(path, content + _seal(content))


def read_dataset(path: Path | str, variables: Collection[str] = ()) -> xr.Dataset:
    """Reads a NetCDF-4 file into memory.

    Raises:
      ResultError: the file is missing, truncated or damaged, or lacks one of `variables`.
    """
    content = _unsealed(path)
    try:
        dataset = xr.load_dataset(io.BytesIO(content), engine="h5netcdf")
    except Exception:  # h5py, h5netcdf and xarray each raise their own kinds for a broken file
        raise unreadable(path) from None
    if missing := [name for name in variables if name not in dataset.variables]:
        raise unreadable(path, f"it is of another kind, without {', '.join(missing)}")
    return dataset


def _seal(content: bytes) -> bytes:
    return SEAL + hashlib.sha256(content).hexdigest().encode()


def _unsealed(path: Path | str) -> bytes:
    """The bytes of a file without its seal, which is compared with them if there is one."""
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise ResultError(f"{path} does not exist: run the stage that writes it first") from None
    start = content.rfind(SEAL, max(0, len(content) - 2 * len(_seal(b""))))  # its end may be lost
    if start < 0:
        return content
    content, seal = content[:start], content[start:]
    if seal != _seal(content):
        raise unreadable(path, "its content is not what its checksum says")
    return content


def write_fits(workdir: Path, entries: Sequence[dict[str, Any]], **about: Any) -> None:
    """Writes fit.json: its entries, what is said about all of them, and the digest of both."""
    content = finite_or_none(about | {"fits": entries})
    write_json(workdir / "fit.json", content | {"checksum": _digest(content)})


def _digest(content: Any) -> str:
    """Of JSON, however it is indented."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_fits(workdir: Path | str) -> list[dict[str, Any]]:
    """The entries of fit.json, none where there is no such file.

    Raises:
      ResultError: it is no JSON, holds something else, or was changed since it was written.
    """
    path = Path(workdir) / "fit.json"
    if not path.exists():
        return []
    content = read_json(path)
    entries = content.get("fits") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not all(map(_is_fit, entries)):
        raise unreadable(path, "it holds no fits")
    checksum = content.pop("checksum", None)
    if checksum not in (None, _digest(content)):
        raise unreadable(path, "its content is not what its checksum says")
    return entries


def read_about(workdir: Path | str) -> dict[str, Any]:
    """What fit.json says beside its entries, nothing where there is no such file."""
    path = Path(workdir) / "fit.json"
    content = read_json(path) if path.exists() else {}
    return {name: value for name, value in content.items() if name not in ("fits", "checksum")}


def _is_fit(entry: Any) -> bool:
    return isinstance(entry, dict) and entry.keys() >= FIT


def unreadable(path: Path | str, why: str = "cut short?") -> ResultError:
    return ResultError(
        f"{path} cannot be read ({why}): delete that file and run the stage that writes it again"
    )
