"""Runs a notebook's cells as they stand, in order and in one process.

python tests/cells.py FILE [NAME=VALUE ...]     NAME=VALUE replaces a line of the notebook
"""

import importlib.util
import json
import re
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MAGIC = ("%", "!")  # lines of IPython alone: here they install what is installed already


def code_cells(path: Path) -> list[str]:
    """The source of each cell of code, without lines of IPython."""
    cells = json.loads(path.read_text())["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return ["\n".join(_plain(source)) for source in sources]


def _plain(source: str) -> list[str]:
    return [line for line in source.splitlines() if not line.startswith(MAGIC)]


def execute(path: Path, replaced: Sequence[str] = ()) -> dict[str, Any]:
    """The names that the notebook has bound at its end.

    Args:
      replaced: lines NAME=VALUE, each in the place of the line that binds NAME.

    Raises:
      ValueError: no line of the notebook binds NAME.
    """
    _display()
    source = "\n\n".join(code_cells(path))
    for line in replaced:
        name = line.partition("=")[0].strip()
        source, count = re.subn(rf"^{name} = .*$", line, source, flags=re.MULTILINE)
        if count != 1:
            raise ValueError(f"{path.name} binds {name} in {count} lines, not in one")
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(source, str(path), "exec"), names)
    return names


def _display() -> None:
    """Where there is no IPython, what notebooks take from it: HTML holds its text."""
    if importlib.util.find_spec("IPython") is None:
        module: Any = types.ModuleType("IPython.display")
        module.HTML = str
        sys.modules["IPython.display"] = module  # alone: matplotlib asks a whole IPython for more


if __name__ == "__main__":
    execute(Path(sys.argv[1]), sys.argv[2:])
