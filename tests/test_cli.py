"""How programs begin and end: help, flags of their own, and terminals that are not there."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from absl import flags

from surge import cli

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))


def python(program, **options):
    return subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.mark.parametrize("program", ["main", "fit_table"])
def test_help_is_no_mistake(program):
    command = [sys.executable, "-m", f"surge.{program}", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert f"python -m surge.{program}" in done.stdout and "--workdir" in done.stdout
    assert done.stderr == ""


def test_little_is_imported_before_ctrl_c_is_heeded():
    program = "import surge.main, sys; assert not {'numpy', 'absl', 'jax'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_programs_are_imported_beside_a_users_own_flags():
    program = (
        "from absl import flags\n"
        "for name in ('config', 'workdir', 'stages', 'loss', 'group', 'seed', 'batch_size'):\n"
        "    flags.DEFINE_string(name, 'mine', '')\n"
        "import surge.main, surge.fit_table\n"
        "surge.main.define(['notebook'])\n"
        "flags.FLAGS(['notebook', '--workdir=ours'])\n"
        "assert flags.FLAGS.config == 'mine' and flags.FLAGS.workdir == 'ours'\n"
    )
    process = python(program)
    _, said = process.communicate(timeout=100)
    assert process.returncode == 0, said


def test_a_reader_that_has_gone_ends_the_program_quietly():
    program = "from surge import cli; cli.run(lambda argv: [print(i) for i in range(10**6)])"
    process = python(program)
    assert process.stdout and process.stderr
    process.stdout.readline()
    process.stdout.close()
    said = process.stderr.read()
    assert process.wait(timeout=100) == cli.CLOSED_PIPE
    assert said == ""
    process.stderr.close()


def test_interrupted_it_says_so_in_one_sentence():
    program = (
        "import time; from surge import cli\n"
        "cli.run(lambda argv: (print('in', flush=True), time.sleep(100)))"
    )
    process = python(program)
    assert process.stdout and process.stdout.readline() == "in\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=100)
    assert process.returncode == cli.INTERRUPTED
    assert said == "surge: interrupted: the same command goes on from what is finished\n"


def test_an_ascii_terminal_gets_what_it_can_show():
    program = "from surge import cli; cli.run(lambda argv: print('\\u03b5 = \\u221aB'))"
    process = python(program, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    shown, said = process.communicate(timeout=100)
    assert process.returncode == 0, said
    assert shown == "\\u03b5 = \\u221aB\n"


def test_a_config_that_comes_with_surge_is_named_without_its_file():
    path = ROOT / "configs" / "mnist1d.py"
    given = ["surge", "--config=surge:mnist1d:quick", "--stages=fit", "--config", "surge:mnist1d"]
    assert cli.shipped(given) == [
        "surge",
        f"--config={path}:quick",
        "--stages=fit",
        "--config",
        str(path),
    ]
    assert cli.shipped(["--workdir=surge:mnist1d"]) == ["--workdir=surge:mnist1d"]


def test_a_flag_that_is_wrong_is_one_sentence(capsys):
    values = flags.FlagValues()
    flags.DEFINE_integer("count", 1, "How many.", flag_values=values)
    assert cli.parse(values, ["name", "--count=3", "rest"], "") == ["name", "rest"]
    with pytest.raises(SystemExit) as end:
        cli.parse(values, ["name", "--count=few"], "")
    assert end.value.code == cli.MISTAKE
    assert capsys.readouterr().err.startswith("surge: flag --count=few")


def test_a_script_that_is_told_to_end_ends_its_child():
    script = (
        "import subprocess, sys; from surge.cli import parsed\n"
        "parsed(['script'])\n"
        "child = 'import os, time; print(os.getpid(), flush=True); time.sleep(100)'\n"
        "subprocess.run([sys.executable, '-c', child], check=True)"
    )
    process = python(script)
    assert process.stdout
    child = int(process.stdout.readline())
    process.terminate()
    process.communicate(timeout=100)
    assert process.returncode == cli.TERMINATED
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_of_other_packages_warnings_alone_are_shown():
    program = (
        "import logging; from surge import cli\n"
        "other = logging.getLogger('jax')\n"
        "cli.run(lambda argv: [other.info('no TPU here'), other.warning('out of memory')])"
    )
    process = python(program)
    _, said = process.communicate(timeout=100)
    assert process.returncode == 0
    assert "out of memory" in said and "no TPU here" not in said


@pytest.mark.slow
@pytest.mark.parametrize("path", SCRIPTS, ids=[path.stem for path in SCRIPTS])
def test_every_script_tells_its_flags(path):
    command = [sys.executable, str(path), "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
