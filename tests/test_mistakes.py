"""A mistake ends in one sentence that names what is wrong, and exit code 2: those that need no
results of a run."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import xarray as xr

ROOT = Path(__file__).parent.parent
QUADRATIC = "--config=configs/quadratic.py"

# Each command line runs in a fork of one process that has imported everything: a fresh one would
# take seconds.
DRIVER = """
import contextlib, io, json, os, sys, traceback
from surge import cli, main, pipeline

def run(arguments, pipe):
    said, code = io.StringIO(), 0
    sys.argv = ["surge", *arguments]
    with contextlib.redirect_stderr(said):
        try:
            cli.run(main.main)
        except SystemExit as end:
            code = end.code
        except BaseException:
            traceback.print_exc()
            code = 1
    os.write(pipe, json.dumps([code, said.getvalue()]).encode())
    os._exit(0)

for line in sys.stdin:
    reading, writing = os.pipe()
    if not os.fork():
        run(json.loads(line), writing)
    os.close(writing)
    with open(reading) as file:
        print(file.read())
    os.wait()
"""

CONFIGS = {
    "syntax": ("def get_config(:\n", "syntax.py: SyntaxError: "),
    "import": (
        "x = 1\nimport torhc\n",
        "import.py, line 2: ModuleNotFoundError: No module named 'torhc'",
    ),
    "name": (
        "def get_config():\n    return confg\n",
        "name.py, line 2: NameError: name 'confg' is not defined",
    ),
    "zero": (
        "def get_config():\n    return 1 / 0\n",
        "zero.py, line 2: ZeroDivisionError: division by zero",
    ),
    "value": (
        "def get_config():\n    return int('x')\n",
        "value.py, line 2: ValueError: invalid literal",
    ),
    "key": ("def get_config():\n    return {}['seed']\n", "key.py, line 2: KeyError: 'seed'"),
    "file": (
        "def get_config():\n    open('no.txt')\n",
        "file.py, line 2: FileNotFoundError: [Errno 2] No such file",
    ),
    "missing": ("config = {}\n", "missing.py defines no get_config()"),
    "dict": (
        "def get_config():\n    return {'seed': 0}\n",
        "dict.py: get_config() must return an ml_collections",
    ),
    "none": (
        "def get_config():\n    pass\n",
        "must return an ml_collections.ConfigDict, not NoneType",
    ),
}
FLAGS = [
    (["--config="], "--config= names no file: give one, like --config=configs/mnist1d.py"),
    (["--config=configs"], "configs is a folder: give one"),
    (["--config=configs/nowhere.py", "--config.seeds=3"], "configs/nowhere.py does not exist"),
    (
        [QUADRATIC, "--config.measure.optimiser=sgd"],
        "no field measure.optimiser: did you mean optimizer",
    ),
    ([QUADRATIC, "--config.seeds.first=3"], "no field seeds.first: did you mean its parent"),
    ([QUADRATIC, "--config.seeds=1000000000"], "config.max_cells (100,000): make it smaller"),
    ([QUADRATIC, "--config.learning_rate_ratio=1.0000001"], "config.learning_rate_ratio"),
    ([QUADRATIC, "--config.evals=1000000000"], "config.evals must be at most 10,000"),
    ([QUADRATIC, "--config.seed=100000000000000000000"], "config.seed must be at most"),
    ([QUADRATIC, "--config.stop_loss=nan"], "config.stop_loss must be a finite number"),
    ([QUADRATIC, "--config.fit.target_losses=inf"], "fit.target_losses"),
    (["--config=surge:mnist2d"], "surge comes with no config 'mnist2d': choose distilgpt2"),
    (["--config=surge:quadratic:huge"], "quadratic.py has no variant 'huge': choose diagonal"),
    ([QUADRATIC, "--config.measure=3"], "--config.measure=3"),
    ([QUADRATIC, "--config.batch_sizes=('a',)"], "batch_sizes must be whole numbers"),
    ([QUADRATIC, "--wrokdir=x"], "'wrokdir'"),
    (
        [QUADRATIC, "--stages="],
        "--stages= is no list of stages: choose among measure,sweep,fit,report",
    ),
    ([QUADRATIC, "--stages=fit,"], "--stages=fit, is no list of stages"),
]
WORKDIRS = {  # name -> files in it, stages, words
    "empty-fit": ({}, "fit", "holds no sweep: run --stages=sweep first"),
    "empty-report": ({}, "report", "holds nothing to report"),
    "cut-sweep": (
        {"sweep/sgd-b1.nc": b"\x89HDF"},
        "fit",
        "sweep/sgd-b1.nc cannot be read (cut short?)",
    ),
    "cut-measure": ({"measure.nc": b"\x89HDF"}, "report", "measure.nc cannot be read (cut short?)"),
    "cut-fit": (
        {"fit.json": b'{"fits": ['},
        "report",
        "fit.json cannot be read (cut short?): delete that file",
    ),
    "no-fits": (
        {"fit.json": b"{}"},
        "report",
        "fit.json cannot be read (it holds no fits): delete that file",
    ),
    "cut-config": (
        {"measure.nc": b"", "config.json": b'{"see'},
        "fit",
        "config.json cannot be read (cut short?)",
    ),
    "foreign": (
        {"sweep/notes.nc": None},
        "fit",
        "sweep/notes.nc cannot be read (it is of another kind, without",
    ),
}
FILES = [("a-file", "a-file is a file: give a folder"), ("a-file/below", "a-file")]
REMOTE = ["gs://bucket/run", "s3://bucket/run", "file:///tmp/run", "hdfs://host:9000/run"]


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """(case -> exit code and stderr, folder of the cases)."""
    folder = tmp_path_factory.mktemp("mistakes")
    commands = {}
    for name, (text, _) in CONFIGS.items():
        (folder / f"{name}.py").write_text(text)
        commands[name] = [f"--config={folder / name}.py", f"--workdir={folder / 'unused'}"]
    for arguments, words in FLAGS:
        commands[words] = [*arguments, f"--workdir={folder / 'unused'}"]
    config = runpy.run_path(str(ROOT / "configs" / "quadratic.py"))["get_config"]().to_json()
    for name, (files, stages, _) in WORKDIRS.items():
        for path, content in ({"config.json": config.encode()} | files).items():
            (folder / name / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / name / path).write_bytes(foreign() if content is None else content)
        commands[name] = [QUADRATIC, f"--workdir={folder / name}", f"--stages={stages}"]
    (folder / "a-file").write_text("mine")
    for path, _ in FILES:
        commands[path] = [QUADRATIC, f"--workdir={folder / path}", "--stages=fit"]
    for address in REMOTE:
        commands[address] = [QUADRATIC, f"--workdir={address}"]
    lines = "".join(json.dumps(each) + "\n" for each in commands.values())
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", DRIVER],
        cwd=ROOT,
        input=lines,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    answers = map(json.loads, filter(None, done.stdout.splitlines()))
    return dict(zip(commands, answers, strict=True)), folder


def foreign():
    return bytes(xr.Dataset({"temperature": ("day", [1.0])}).to_netcdf(engine="h5netcdf"))


@pytest.mark.parametrize(
    ("case", "words"),
    [
        *((name, words) for name, (_, words) in CONFIGS.items()),
        *((words, words) for _, words in FLAGS),
        *((name, words) for name, (_, _, words) in WORKDIRS.items()),
        *FILES,
        *((address, "is a remote address") for address in REMOTE),
    ],
)
def test_one_sentence(said, case, words):
    code, text = said[0][case]
    assert code == 2
    assert words in text
    assert text.startswith("surge: ") and len(text.strip().splitlines()) == 1


def test_nothing_is_lost_or_left_behind(said):
    _, folder = said
    assert (folder / "a-file").read_text() == "mine"
    assert not (folder / "unused").exists()
    assert not any((ROOT / address.partition("/")[0]).exists() for address in REMOTE)
    for name, (files, _, _) in WORKDIRS.items():
        left = {
            str(path.relative_to(folder / name))
            for path in (folder / name).rglob("*")
            if path.is_file()
        }
        assert left == {"config.json", ".lock", *files}


def test_a_first_run_that_failed_leaves_the_workdir_to_the_next(said):
    """Another config may follow where nothing was computed, and none where something was."""
    _, folder = said
    for name, words in (("empty-fit", "holds no sweep"), ("cut-sweep", "seed was 0 and is now 1")):
        arguments = [QUADRATIC, "--config.seed=1", "--stages=fit", f"--workdir={folder / name}"]
        failed = subprocess.run(
            [sys.executable, "-m", "surge.main", *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert failed.returncode == 2 and words in failed.stderr
