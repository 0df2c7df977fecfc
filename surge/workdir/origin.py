"""Which version of surge made a result, where it runs from a clone."""

import functools
import subprocess
from pathlib import Path

PACKAGE = Path(__file__).parent.parent


@functools.cache
def commit() -> str:
    """The commit of the clone that surge runs from, "-dirty" after it where files were changed;
    "unknown" where there is no clone or no git."""
    # A package that is installed may lie in somebody else's repository, which does not track it.
    if not _git("ls-files", "__init__.py"):
        return "unknown"
    return _git("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*") or "unknown"


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(PACKAGE), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
