"""Training states on disk: a thin wrapper around orbax."""

import os
import re
import shutil
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from absl import logging

UNFINISHED = ".orbax-checkpoint-tmp"  # ends the names of what orbax has begun to write


def save(directory: Path, name: str, state: Any) -> None:
    """Writes a pytree of arrays to directory/name, replacing what is there.

    It is complete or absent, never half.

    Raises:
      OSError: it cannot be written, on a full disk say; `filename` is directory/name.
    """
    path = directory.absolute() / name
    _remove_unfinished(path)
    logger = logging.get_absl_logger()
    logger.addFilter(_not_of_orbax)
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path, state, force=True)
    except ValueError as error:  # tensorstore's, which names the system's error in its text
        code = re.search(r"os_error_code='(\d+)'", str(error))
        if code is None:
            raise
        _remove_unfinished(path)
        number = int(code[1])
        raise OSError(number, os.strerror(number), str(path)) from None
    finally:
        logger.removeFilter(_not_of_orbax)


def restore(directory: Path, name: str, like: Any) -> Any:
    """Reads the pytree saved under directory/name, with the structure and dtypes of `like`."""
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(directory.absolute() / name, like)


def _not_of_orbax(record: Any) -> bool:
    """Its threads log the traceback of an error that is raised here as well."""
    return "orbax" not in record.pathname


def _remove_unfinished(path: Path) -> None:
    """Also what a killed process left."""
    for begun in path.parent.glob(f"{path.name}{UNFINISHED}*"):
        shutil.rmtree(begun, ignore_errors=True)
