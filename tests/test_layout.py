"""The folders show the architecture: imports go one way."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "surge"
ALLOWED = {  # a part may import itself and these
    "theory": set(),
    "gradients": {"optimizers", "theory"},
    "optimizers": {"theory"},
    "tasks": set(),
    "training": {"optimizers", "tasks", "gradients", "theory"},
    "fields": set(),
    "config": {"fields", "gradients", "optimizers", "theory", "training"},
    "entries": {"theory", "workdir"},
    "workdir": {"theory"},
    "measurement": {"config", "gradients", "optimizers", "tasks", "theory", "training", "workdir"},
    "report": {"workdir", "theory"},
    "tables": {"entries", "workdir", "theory"},
}


def imported(path: Path) -> set[str]:
    parts = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        parts |= {name.split(".")[1] for name in names if name.startswith("surge.")}
    return parts


@pytest.mark.parametrize("part", ALLOWED)
def test_imports_go_one_way(part):
    paths = (
        [PACKAGE / f"{part}.py"]
        if (PACKAGE / f"{part}.py").exists()
        else list((PACKAGE / part).rglob("*.py"))
    )
    assert paths
    for path in paths:
        assert imported(path) <= ALLOWED[part] | {part}, path


def test_import_is_quick_and_touches_no_device():
    code = (
        "import time; start = time.perf_counter(); import surge, sys\n"
        "assert time.perf_counter() - start < 2; assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
