"""Training states on disk: a thin wrapper around orbax."""

from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp


def save(directory: Path, name: str, state: Any) -> None:
    """Writes a pytree of arrays to directory/name, replacing what is there.

    It is complete or absent, never half.
    """
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(directory.absolute() / name, state, force=True)


def restore(directory: Path, name: str, like: Any) -> Any:
    """Reads the pytree saved under directory/name, with the structure and dtypes of `like`."""
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(directory.absolute() / name, like)
