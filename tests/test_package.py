"""The package from outside: its names, and its programs by one name."""

import subprocess
import sys

import pytest

import surge


def run(*arguments):
    command = [sys.executable, "-m", "surge", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_what_is_public_is_there():
    assert surge.__version__
    for name in surge.__all__:
        assert callable(getattr(surge, name)) and name in dir(surge)
    with pytest.raises(AttributeError, match="no attribute 'meazure'"):
        surge.meazure  # noqa: B018


@pytest.mark.parametrize("arguments", [(), ("--help",)])
def test_help_names_every_program(arguments):
    said = run(*arguments)
    assert said.returncode == 0
    assert all(f"surge {name}" in said.stdout for name in ("main", "suggest", "fit_table"))


def test_version():
    assert run("--version").stdout.strip() == surge.__version__


def test_a_program_that_is_not_there_is_one_sentence():
    said = run("predict")
    assert said.returncode == 2 and "Traceback" not in said.stderr
    assert "no program 'predict': choose main, suggest, fit_table" in said.stderr


@pytest.mark.parametrize("name", ["main", "suggest", "fit_table"])
def test_each_program_tells_its_flags(name):
    said = run(name, "--help")
    assert said.returncode == 0 and "--" in said.stdout
