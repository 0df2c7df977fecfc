"""Whose workdir it is: one process at a time, and one config for all that it holds."""

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from surge.workdir.files import (
    PARTIAL,
    ResultError,
    read_dataset,
    read_json,
    unreadable,
    write_json,
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
        raise unreadable(path, "it holds no config")
    return [owner]


def _config_within(path: Path) -> dict[str, Any]:
    attributes = read_dataset(path).attrs
    if "config" not in attributes:
        raise unreadable(path, "it does not say which config it is of")
    return json.loads(attributes["config"])


def _differences(old: Any, new: Any, prefix: str = "") -> Iterable[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from _differences(
                old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key
            )
    elif old != new:
        yield f"{prefix} was {old!r} and is now {new!r}"
