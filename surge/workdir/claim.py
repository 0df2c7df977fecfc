"""Whose workdir it is: one process at a time, or shards that claim its pieces, and one config."""

import contextlib
import fcntl
import json
import math
import os
import shutil
import socket
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

from surge.workdir.files import (
    PARTIAL,
    ResultError,
    read_dataset,
    read_json,
    unreadable,
    write_json,
)

# Fields that no result which is there depends on: they say how far a sweep goes on.
FREE = ("max_cells", "precision", "reach", "max_examples_total")
NOT_FINITE = ("nan", "inf", "-inf")  # which older configs have as null
CLAIMS = ".claims"  # the folder of what shards are at work on


class InUse(ResultError):
    """Another process is at work in a workdir."""


@contextlib.contextmanager
def lock_workdir(workdir: Path, *, shared: bool = False) -> Iterator[None]:
    """Keeps other processes out of a workdir.

    The system frees it when this process ends, however it ends. What a killed process was writing
    is removed.

    Args:
      workdir: a folder, made where there is none.
      shared: let in others that share it too, each of which claims what it works on.

    Raises:
      InUse: another process is at work there, and the message names it.
      ResultError: the workdir is a file, or an address like gs://bucket/folder.
    """
    if workdir.parts and workdir.parts[0].endswith(":"):
        raise ResultError(
            f"--workdir {workdir} is a remote address, which surge cannot write to: give a folder "
            "of this machine, and copy it"
        )
    if workdir.exists() and not workdir.is_dir():
        raise ResultError(f"--workdir {workdir} is a file: give a folder")
    workdir.mkdir(parents=True, exist_ok=True)
    with open(workdir / ".lock", "a+") as file:
        held = _locked(file, fcntl.LOCK_EX)
        if held:
            _clean(workdir)
        if shared:
            held = _locked(file, fcntl.LOCK_SH)
        if not held:
            file.seek(0)
            owner = file.read() or "another process"
            raise InUse(f"{workdir} is in use by {owner}: wait for it, or give another --workdir")
        file.truncate(0)
        others = ", and others that share it" if shared else ""
        file.write(f"process {os.getpid()} on {socket.gethostname()}{others}")
        file.flush()
        yield


@contextlib.contextmanager
def claimed(workdir: Path, name: str) -> Iterator[bool]:
    """Whether a part of a shared workdir is this process's until the block ends, or the process."""
    path = workdir / CLAIMS / name
    path.parent.mkdir(exist_ok=True)
    with open(path, "a") as file:
        yield _locked(file, fcntl.LOCK_EX)


def _locked(file: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _clean(workdir: Path) -> None:
    """Removes what killed processes left, where nobody else is at work."""
    for stale in [*workdir.glob(f".*{PARTIAL}"), *workdir.glob(f"*/.*{PARTIAL}")]:
        stale.unlink()
    shutil.rmtree(workdir / CLAIMS, ignore_errors=True)


def claim_workdir(
    workdir: Path,
    config: Mapping[str, Any],
    default: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Binds a workdir to one config; what only the fit and the report read may change freely.

    That is `fit`, except where its targets steer an adaptive grid, and how large a grid may be. A
    field that an older config lacks counts as `default` has it.

    Raises:
      ResultError: the workdir holds results of another config; the message names the fields that
        differ.
    """
    bound = _bound(config, default)
    for owner in _owners(workdir):
        if differing := sorted(_differences(_bound(owner, default), bound)):
            shown = "; ".join(differing[:5]) + ("; and more" if len(differing) > 5 else "")
            raise ResultError(
                f"{workdir} holds results of a different config ({shown}): give another --workdir, "
                "or the old config"
            )
    write_json(workdir / "config.json", bound)


def _bound(config: Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that results depend on, as JSON holds them."""
    whole = _completed(config, default)
    free = FREE if whole.get("grid") == "adaptive" else (*FREE, "fit")
    return {name: _plain(value) for name, value in whole.items() if name not in free}


def _completed(config: Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, Any]:
    """A config with the fields that it lacks."""
    whole = {**default, **config}
    for name, value in whole.items():
        inner = default.get(name)
        if isinstance(value, Mapping) and isinstance(inner, Mapping):
            whole[name] = _completed(value, inner)
    return whole


def _plain(value: Any) -> Any:
    """Lists in place of tuples, and words in place of nan and infinities, which JSON has not."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _owners(workdir: Path) -> list[dict[str, Any]]:
    """The configs of what has been computed, which is nothing where a first run failed early."""
    pieces = sorted((workdir / "sweep").glob("*.nc"))
    computed = [path for path in (workdir / "measure.nc", *pieces) if path.exists()]
    path = workdir / "config.json"
    if not computed or not path.exists():
        return [_config_within(result) for result in computed]
    owner = read_json(path)
    if not isinstance(owner, dict):
        raise unreadable(path, "it holds no config")
    return [owner]


def _config_within(path: Path) -> dict[str, Any]:
    config = read_dataset(path).attrs.get("config")
    try:
        owner = json.loads(config or "")
    except ValueError:
        owner = None
    if not isinstance(owner, dict):
        raise unreadable(path, "it does not say which config it is of")
    return owner


def _differences(old: Any, new: Any, prefix: str = "") -> Iterable[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(old.keys() | new.keys()):
            path = f"{prefix}.{name}" if prefix else name
            yield from _differences(old.get(name), new.get(name), path)
    elif old != new and not (old is None and new in NOT_FINITE):
        yield f"{prefix} was {old!r} and is now {new!r}"
