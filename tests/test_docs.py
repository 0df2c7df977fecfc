"""README and docs/: each command can be given as printed, and each block of Python runs."""

import doctest
import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from surge import main
from surge.__main__ import PROGRAMS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
OTHERS = {"pip", "pytest", "mkdocs", "ruff", "pyrefly", "bash"}  # what else may be called
TAKES = {"suggest": 0, "fit_table": 1, "show": 1}  # arguments that are no flags
QUOTED = [
    path for path in (ROOT / "surge").rglob("*.py") if re.search("^ *>>> ", path.read_text(), re.M)
]


class Command(NamedTuple):
    page: str
    words: list[str]


def commands() -> list[Command]:
    """Every command of the pages: indented lines, and code in a line of text."""
    said = []
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        text = re.sub(r"\\\n\s*", "", text)  # a command that goes on in the next line
        indented = re.findall(r"^    (\S.*)$", text, re.MULTILINE)
        inline = re.findall(r"`([^`]+)`", re.sub(r"^    .*$", "", text, flags=re.MULTILINE))
        for line in (*indented, *(" ".join(code.split()) for code in inline)):
            if is_command(line):
                words = shlex.split(line, comments=True)
                said += [Command(page.name, part) for part in split(words)]
    return said


def is_command(line: str) -> bool:
    """Whether a piece of code is a command rather than output, a name or a signature."""
    start = line.split(" ")[0].rpartition("/")[2]
    return start in {"python", "python3", "surge", *OTHERS} and " " in line


def split(words: list[str]) -> list[list[str]]:
    """The commands between &&, without assignments of variables and a leading source."""
    parts, part = [], []
    for word in [*words, "&&"]:
        if word != "&&":
            part.append(word)
        elif part:
            parts.append([*part])
            part = []
    return [part for part in parts if part[0] != "."]


def program(words: list[str]) -> tuple[str, list[str]] | None:
    """A program of surge and its arguments; None where it is another's."""
    name = words[0].rpartition("/")[2]
    if name == "surge":
        return words[1], words[2:]
    if name.startswith("python") and words[1:2] == ["-m"] and words[2].startswith("surge"):
        dotted = words[2].removeprefix("surge").removeprefix(".")
        return (dotted, words[3:]) if dotted else (words[3], words[4:])
    return None


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A folder with the configs, and the page's own."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    text = (ROOT / "docs" / "own_model.md").read_text()
    [config] = re.findall(r"```python my_config.py\n(.*?)```", text, re.DOTALL)
    (tmp_path / "my_config.py").write_text(config)
    monkeypatch.chdir(tmp_path)


def test_the_pages_give_commands():
    named = [program(command.words) for command in commands()]
    assert {found[0] for found in named if found} >= {"main", "suggest", "fit_table"}
    assert {command.page for command in commands()} >= {"README.md", "index.md", "own_model.md"}


@pytest.mark.parametrize("command", commands(), ids=lambda one: f"{one.page} {' '.join(one.words)}")
def test_each_command_can_be_given(command, clone):
    words = command.words
    called = program(words)
    if called is None:
        name = words[0].rpartition("/")[2]
        if name.startswith("python"):
            assert words[1] == "-m" or (ROOT / words[1]).is_file(), words
        else:
            assert name in OTHERS, words
        return
    name, given = called
    if given in ([], ["--help"]):
        assert name in PROGRAMS
    elif name == "main":
        config: Any = main.parse_flags(["surge", *given])["config"].value
        assert config.task
    else:
        flags = importlib.import_module(f"surge.{name}").own_flags()
        assert len(flags(["surge", *given])) == 1 + TAKES[name]


def test_a_command_that_cannot_be_given_is_seen(clone):
    with pytest.raises(SystemExit):
        main.parse_flags(["surge", "--config=surge:mnist2d"])
    with pytest.raises(SystemExit):
        main.parse_flags(["surge", "--config=configs/mnist1d.py", "--config.seedz=5"])


def test_the_sharp_edges_are_as_shown():
    blocks = re.findall(
        r"```python edge\n(.*?)```", (ROOT / "docs" / "sharp_edges.md").read_text(), re.DOTALL
    )
    assert len(blocks) >= 5
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)


@pytest.mark.parametrize("path", QUOTED, ids=lambda path: path.stem)
def test_examples_in_docstrings_print_what_they_say(path):
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    result = doctest.testmod(module)
    assert result.attempted and not result.failed


def test_files_that_the_pages_link_to_are_there():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} -> {target}"


def test_every_page_is_in_the_sites_contents():
    contents = (ROOT / "mkdocs.yml").read_text()
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    assert all(f" {page}\n" in contents for page in pages), pages


@pytest.mark.slow
def test_the_front_page_from_its_first_command_to_its_last(tmp_path):
    """In an empty folder, save for a table of runs."""
    table = (ROOT / "docs" / "results" / "predictions" / "mnist1d-runs.csv").read_text()
    rows = [line for line in table.splitlines() if not line.startswith(("sgd", "sign_sgd"))]
    rows[0] = rows[0].replace("steps_1.2", "steps")
    (tmp_path / "runs.csv").write_text("\n".join(rows) + "\n")
    for command in commands():
        called = program(command.words)
        if command.page == "index.md" and called and called[1]:
            subprocess.run(
                [sys.executable, "-m", "surge", called[0], *called[1]],
                cwd=tmp_path,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                check=True,
            )
    assert (tmp_path / "runs" / "mnist1d-quick" / "report.html").exists()


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install -e '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True)
    assert (tmp_path / "api" / "index.html").exists()
