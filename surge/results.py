"""The workdir: labelled arrays and JSON, written whole or not at all.

config.json                 the config that every result here belongs to
checkpoints/                training states at chosen losses
measure.nc                  gradient statistics and predicted learning rates, a row a checkpoint
sweep/OPTIMIZER-bBATCH.nc   one file for each finished piece of the grid
fit.json                    optima, noise scales and fitted laws
figures/*.png, report.html
"""

import contextlib
import fcntl
import json
import math
import os
import socket
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

UNITS = {
    "loss": "mean training loss on the fixed evaluation subset",
    "steps": "optimizer steps",
    "examples": "training examples",
    "diverged": "1 if the run's loss stopped being finite or far exceeded its start, 0 if not, nan if not run",
    "learning_rate": "update per step in units of the optimizer's direction",
    "batch_size": "examples per optimizer step",
}
DIMS = ("optimizer", "batch_size", "learning_rate", "seed", "eval")
PIECE = (*DIMS, "loss", "diverged", "steps", "examples")
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
PARTIAL = ".part"  # ends the names of files that are being written


class ResultError(Exception):
    """A workdir that cannot be used as asked; the message is one sentence for the user."""


def write_bytes(path: Path | str, content: bytes) -> None:
    """Writes a file under a temporary name and renames it, so that a killed process leaves no half
    file.

    Raises:
      OSError: it cannot be written; `filename` is `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(
        f".{path.name}.{os.getpid()}{PARTIAL}"
    )  # unlike mkstemp's, its mode obeys the umask
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
    if isinstance(value, dict):
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
    except ValueError:
        raise _unreadable(path) from None


def write_dataset(path: Path | str, dataset: xr.Dataset) -> None:
    """Writes a NetCDF-4 file atomically, with the units of every variable it knows."""
    for name in dataset.variables:
        if name in UNITS:
            dataset[name].attrs["units"] = UNITS[name]
    write_bytes(path, bytes(dataset.to_netcdf(engine="h5netcdf")))  # pyrefly: ignore


def read_dataset(path: Path | str, variables: Collection[str] = ()) -> xr.Dataset:
    """Reads a NetCDF-4 file into memory.

    Raises:
      ResultError: the file is missing, truncated, or lacks one of `variables`.
    """
    if not Path(path).exists():
        raise ResultError(f"{path} does not exist: run the stage that writes it first")
    try:
        dataset = xr.load_dataset(path, engine="h5netcdf")
    except Exception:  # h5py, h5netcdf and xarray each raise their own kinds for a broken file
        raise _unreadable(path) from None
    if missing := [name for name in variables if name not in dataset.variables]:
        raise _unreadable(path, f"it is of another kind, without {', '.join(missing)}")
    return dataset


def read_piece(path: Path | str) -> xr.Dataset:
    """Reads one finished piece of the sweep, as `piece_dataset` labels it; raises as `read_dataset`
    does."""
    return read_dataset(path, PIECE)


def read_fits(workdir: Path | str) -> list[dict[str, Any]]:
    """The entries of fit.json, none where there is no such file.

    Raises:
      ResultError: it is no JSON, or holds something else.
    """
    path = Path(workdir) / "fit.json"
    if not path.exists():
        return []
    content = read_json(path)
    entries = content.get("fits") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not all(
        isinstance(each, dict) and each.keys() >= FIT for each in entries
    ):
        raise _unreadable(path, "it holds no fits")
    return entries


def _unreadable(path: Path | str, why: str = "cut short?") -> ResultError:
    return ResultError(
        f"{path} cannot be read ({why}): delete that file and run the stage that writes it again"
    )


@contextlib.contextmanager
def lock_workdir(workdir: Path) -> Iterator[None]:
    """Keeps other processes out of a workdir; the system frees it when this one ends, however it
    ends.

    What a killed process was writing is removed.

    Raises:
      ResultError: another process is at work there, and the message names it; or the workdir is a
        file.
    """
    if workdir.exists() and not workdir.is_dir():
        raise ResultError(f"--workdir {workdir} is a file: give a folder")
    workdir.mkdir(parents=True, exist_ok=True)
    with open(workdir / ".lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read() or "another process"
            raise ResultError(
                f"{workdir} is in use by {owner}: wait for it, or give another --workdir"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        for stale in [*workdir.glob(f".*{PARTIAL}"), *workdir.glob(f"*/.*{PARTIAL}")]:
            stale.unlink()
        yield


def claim_workdir(workdir: Path, config: dict[str, Any]) -> None:
    """Binds a workdir to one config; what only the fit and the report read may change freely.

    That is `fit`, except where its targets steer an adaptive grid.

    Raises:
      ResultError: the workdir holds results of another config; the message names the fields that
        differ.
    """
    bound = _bound(json.loads(json.dumps(config)))
    for owner in _owners(workdir):
        if differing := sorted(_differences(_bound(owner), bound)):
            shown = "; ".join(differing[:5]) + ("; and more" if len(differing) > 5 else "")
            raise ResultError(
                f"{workdir} holds results of a different config ({shown}): give another --workdir, or the old config"
            )
    write_json(workdir / "config.json", bound)


def _bound(config: dict[str, Any]) -> dict[str, Any]:
    free = () if config.get("grid") == "adaptive" else ("fit",)
    return {key: value for key, value in config.items() if key not in free}


def _owners(workdir: Path) -> list[dict[str, Any]]:
    """The configs of what has been computed, which is nothing where a first run failed early."""
    computed = [
        path
        for path in (workdir / "measure.nc", *sorted((workdir / "sweep").glob("*.nc")))
        if path.exists()
    ]
    path = workdir / "config.json"
    if not computed or not path.exists():
        return [_config_within(each) for each in computed]
    if not isinstance(owner := read_json(path), dict):
        raise _unreadable(path, "it holds no config")
    return [owner]


def _config_within(path: Path) -> dict[str, Any]:
    attributes = read_dataset(path).attrs
    if "config" not in attributes:
        raise _unreadable(path, "it does not say which config it is of")
    return json.loads(attributes["config"])


def _differences(old: Any, new: Any, prefix: str = "") -> Iterable[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from _differences(
                old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key
            )
    elif old != new:
        yield f"{prefix} was {old!r} and is now {new!r}"


def sweep_path(workdir: Path, optimizer: str, batch_size: int) -> Path:
    """The file of one finished piece of the sweep."""
    return workdir / "sweep" / f"{optimizer}-b{batch_size}.nc"


def piece_dataset(
    optimizer: str,
    batch_size: int,
    learning_rates: Iterable[float],
    seeds: Iterable[int],
    eval_steps: Iterable[int],
    loss: np.ndarray,
    diverged: np.ndarray,
    attrs: dict[str, str],
) -> xr.Dataset:
    """Labels one piece: loss [learning_rate, seed, eval] and diverged [learning_rate, seed]."""
    steps = np.asarray(tuple(eval_steps), float)[None, None]
    return xr.Dataset(
        {
            "loss": (DIMS, loss[None, None]),
            "diverged": (DIMS[:-1], diverged[None, None].astype(float)),
            "steps": (("optimizer", "batch_size", "eval"), steps),
            "examples": (("optimizer", "batch_size", "eval"), steps * batch_size),
        },
        coords={
            "optimizer": [optimizer],
            "batch_size": [batch_size],
            "learning_rate": list(learning_rates),
            "seed": list(seeds),
            "eval": np.arange(steps.shape[-1]),
        },
        attrs=attrs,
    )


def open_sweep(workdir: Path | str) -> xr.Dataset:
    """All finished pieces of a sweep as one array; nan where a cell is not in an optimizer's grid.

    Returns:
      Dataset with dims optimizer, batch_size, learning_rate, seed, eval and variables loss,
      diverged (without eval), steps and examples (optimizer, batch_size, eval); attributes give
      units, config, versions and devices, and `mixed` names those that differ between pieces.

    Raises:
      ResultError: no piece is finished, or a file in the folder is not one.
    """
    paths = sorted((Path(workdir) / "sweep").glob("*.nc"))
    if not paths:
        raise ResultError(f"{workdir} holds no sweep: run --stages=sweep first")
    pieces = [read_piece(path) for path in paths]
    labels = {
        name: np.unique(np.concatenate([piece[name].values for piece in pieces])) for name in DIMS
    }
    coords = {name: (name, values, pieces[0][name].attrs) for name, values in labels.items()}
    sweep = xr.Dataset(coords=coords, attrs=pieces[0].attrs | _mixed(pieces))
    for name, variable in pieces[0].data_vars.items():
        shape = [sweep.sizes[dim] for dim in variable.dims]
        sweep[name] = xr.Variable(variable.dims, np.full(shape, np.nan), variable.attrs)
        for piece in pieces:
            sweep[name].loc[{str(dim): piece[dim] for dim in variable.dims}] = piece[name]
    return sweep


def _mixed(pieces: Iterable[xr.Dataset]) -> dict[str, str]:
    """What was not the same for all pieces, as it may be after an upgrade or a move to another
    machine."""
    found = {
        name: sorted({str(piece.attrs.get(name)) for piece in pieces})
        for name in ("versions", "devices")
    }
    differing = [
        f"{name}: {' and '.join(values)}" for name, values in found.items() if len(values) > 1
    ]
    return {"mixed": "; ".join(differing)} if differing else {}


def steps_to_target(sweep: xr.Dataset, target: float) -> xr.DataArray:
    """Optimizer steps at which each run's loss first falls to `target`, nan where it does not.

    Between two evaluations log(steps) is interpolated linearly in the loss.

    Returns:
      steps [optimizer, batch_size, learning_rate, seed].
    """
    loss = sweep.loss.transpose(*DIMS)
    steps = np.log(sweep.steps.transpose("optimizer", "batch_size", "eval").values)[
        :, :, None, None
    ]
    below = (loss <= target).values
    first = below.argmax(-1, keepdims=True)
    before = np.maximum(first - 1, 0)

    def at(array: np.ndarray, index: np.ndarray) -> np.ndarray:
        return np.take_along_axis(np.broadcast_to(array, below.shape), index, -1)[..., 0]

    drop = at(loss.values, before) - at(loss.values, first)
    share = np.where(
        drop > 0, (at(loss.values, before) - target) / np.where(drop > 0, drop, 1.0), 1.0
    )
    log_steps = at(steps, before) + share * (at(steps, first) - at(steps, before))
    reached = np.where(below.any(-1), np.exp(log_steps), np.nan)
    return xr.DataArray(reached, dims=DIMS[:-1], coords={name: loss[name] for name in DIMS[:-1]})


def _carried(loss: xr.DataArray) -> xr.DataArray:
    """A run that ended early keeps its last loss."""
    loss = loss.transpose(..., "eval")
    position = np.where(np.isfinite(loss), np.arange(loss.sizes["eval"]), 0)
    return loss.copy(data=np.take_along_axis(loss.values, np.maximum.accumulate(position, -1), -1))


def rows(sweep: xr.Dataset, optimizer: str, target: float | None) -> dict[str, np.ndarray]:
    """One optimizer's cells as a long table, the form that `surge.theory.fit` reads.

    Args:
      sweep: as `open_sweep` gives it.
      optimizer: a label of its `optimizer` coordinate.
      target: a loss; the value judged is then log(steps to it). None: the loss at the last
        evaluation.

    Returns:
      Arrays of equal length batch_size, learning_rate, seed, value, steps; nan where a run did not
      get there.
    """
    chosen = sweep.sel(optimizer=[optimizer])
    if target is None:
        values = _carried(chosen.loss).isel(eval=-1).where(chosen.diverged == 0)
        steps = chosen.steps.max("eval").broadcast_like(values)
    else:
        steps = steps_to_target(chosen, target)
        values = np.log(steps)
    table = xr.Dataset({"value": values, "steps": steps, "run": chosen.diverged}).isel(
        optimizer=0, drop=True
    )
    frame = table.to_dataframe().reset_index().dropna(subset=["run"])
    return {
        name: np.asarray(frame[name])
        for name in ("batch_size", "learning_rate", "seed", "value", "steps")
    }


def loss_when_first_arrives(
    sweep: xr.Dataset, optimizer: str, target: float | None
) -> xr.DataArray:
    """Loss of every learning rate at the same step: where the first one of its batch size gets to
    `target`.

    Args:
      sweep: as `open_sweep` gives it.
      optimizer: a label of its `optimizer` coordinate.
      target: a loss; None: the loss at the last evaluation.

    Returns:
      Mean over seeds of the loss [batch_size, learning_rate]; nan where a run had diverged.
    """
    chosen = sweep.sel(optimizer=optimizer)
    loss = _carried(chosen.loss).where(chosen.diverged == 0)
    if target is None:
        return loss.isel(eval=-1).mean("seed").dropna("learning_rate", how="all")
    mean = loss.mean("seed")
    arrived = (mean <= target).any("learning_rate")
    first = arrived.argmax("eval").where(arrived.any("eval"), arrived.sizes["eval"] - 1)
    return mean.isel(eval=first.astype(int)).dropna("learning_rate", how="all")


def examples_trained(sweep: xr.Dataset) -> float:
    """Training examples of all runs, each to its own end."""
    return float(sweep.examples.where(np.isfinite(sweep.loss)).max("eval").sum())
