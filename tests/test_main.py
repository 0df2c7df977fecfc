"""The command line as a user meets it: results, resuming, and one sentence for each mistake."""

import random
import re
import runpy
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import xarray as xr

from surge import pipeline
from surge.config import ConfigError, check
from surge.workdir import files, sweeps

ROOT = Path(__file__).parent.parent
SMALL = (
    "--config=configs/mnist1d.py:quick",
    "--config.task_args.widths=(16,)",
    "--config.task_args.examples=1000",
    "--config.task_args.evaluation_examples=800",
    "--config.batch_sizes=(4,32)",
    "--config.max_steps=200",
    "--config.max_examples=2000",
    "--config.evals=6",
    "--config.measure.losses=(2.0,)",
    "--config.measure.examples=64",
    "--config.measure.directions=8",
    "--config.measure.horizons=(1,4)",
    "--config.measure.branch_examples=20000",
    "--config.fit.target_losses=(2.2,2.0)",
)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "surge.main", *arguments]


def surge(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small experiment, run to its report without interruption."""
    workdir = tmp_path_factory.mktemp("finished")
    done = surge(*SMALL, f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    return workdir, done


def test_report_is_self_contained(finished):
    workdir, done = finished
    page = (workdir / "report.html").read_text()
    shown = page.count("<svg") + page.count('data-packed="')  # on the page, and in its folds
    assert shown == len(list((workdir / "figures").glob("*.svg"))) > page.count("<svg") > 3
    assert "http://" not in page and "https://" not in page
    assert "optimal learning rate by batch size" in done.stderr and "report.html" in done.stderr


def test_sweep_is_one_labelled_array(finished):
    sweep = sweeps.open_sweep(finished[0])
    assert set(sweep.sizes) == {"optimizer", "batch_size", "learning_rate", "seed", "eval"}
    assert {"loss", "steps", "examples", "diverged"} <= set(sweep.data_vars)
    assert (
        sweep.loss.attrs["units"] and "config" in sweep.attrs and "jax" in sweep.attrs["versions"]
    )
    seen = (sweep.steps * sweep.batch_size).where(sweep.loss.notnull())
    assert (sweep.examples == seen).where(sweep.loss.notnull(), True).all()


def test_second_run_computes_nothing(finished):
    workdir, _ = finished
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*.nc")}
    again = surge(*SMALL, f"--workdir={workdir}")
    assert again.returncode == 0 and "kept" in again.stderr
    assert before == {path: path.stat().st_mtime_ns for path in workdir.rglob("*.nc")}


def test_different_config_is_refused(finished):
    refused = surge(*SMALL, f"--workdir={finished[0]}", "--config.seed=1")
    assert (
        refused.returncode != 0
        and "seed was 0 and is now 1" in refused.stderr
        and "Traceback" not in refused.stderr
    )


def test_killed_twice_and_resumed_is_bit_identical(finished, tmp_path):
    arguments = (*SMALL, f"--workdir={tmp_path}", "--stages=sweep")
    moment = random.Random(0)
    for pieces in (1, 3):
        process = subprocess.Popen(command(*arguments), cwd=ROOT, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(list((tmp_path / "sweep").glob("*.nc"))) < pieces:
            time.sleep(0.01)
        time.sleep(0.2 * moment.random())
        process.kill()
        process.wait()
    assert len(list((tmp_path / "sweep").glob("*.nc"))) < 6
    assert surge(*arguments).returncode == 0
    xr.testing.assert_identical(sweeps.open_sweep(tmp_path), sweeps.open_sweep(finished[0]))


def test_second_process_on_a_workdir_is_refused(tmp_path):
    arguments = (*SMALL, f"--workdir={tmp_path}", "--stages=sweep")
    first = subprocess.Popen(command(*arguments), cwd=ROOT, stderr=subprocess.DEVNULL)
    while not (tmp_path / "config.json").exists():
        time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)  # at work for as long as the second needs
    second = surge(*arguments)
    first.kill()
    first.wait()
    assert second.returncode != 0 and f"in use by process {first.pid}" in second.stderr
    assert "Traceback" not in second.stderr


@pytest.mark.slow
def test_adaptive_grid_finds_the_dense_optima_and_resumes(finished, tmp_path):
    arguments = (*SMALL, f"--workdir={tmp_path}", "--config.grid=adaptive")
    done = surge(*arguments, "--stages=sweep,fit")
    assert done.returncode == 0, done.stderr
    assert "examples, " in done.stderr
    fits = [files.read_json(workdir / "fit.json")["fits"] for workdir in (finished[0], tmp_path)]
    for dense, adaptive in zip(*fits, strict=True):
        for one, other in zip(dense["optimal_lr"], adaptive["optimal_lr"], strict=True):
            if one["low"] and other["low"] and not one["at_edge"]:
                assert max(one["low"], other["low"]) <= min(one["high"], other["high"])
    sweep = sweeps.open_sweep(tmp_path)
    assert sweep.diverged.isnull().any()  # rates that only another batch size was run at
    for path in sorted((tmp_path / "sweep").glob("*.nc"))[::2]:
        path.unlink()
    assert surge(*arguments, "--stages=sweep").returncode == 0
    xr.testing.assert_identical(sweeps.open_sweep(tmp_path), sweep)


def test_truncated_piece_is_named_and_the_rest_kept(finished, tmp_path):
    workdir, _ = finished
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(workdir), str(copy)], check=True)
    broken = sorted((copy / "sweep").glob("*.nc"))[0]
    broken.write_bytes(broken.read_bytes()[:1000])
    failed = surge(*SMALL, f"--workdir={copy}")
    assert (
        failed.returncode != 0 and broken.name in failed.stderr and "Traceback" not in failed.stderr
    )
    broken.unlink()
    incomplete = surge(*SMALL, f"--workdir={copy}", "--stages=fit")
    assert incomplete.returncode == 0
    assert "incomplete, without 1 of its pieces" in incomplete.stderr
    assert files.read_json(copy / "fit.json")["missing"] == [broken.stem]
    assert surge(*SMALL, f"--workdir={copy}", "--stages=sweep").returncode == 0
    xr.testing.assert_identical(sweeps.open_sweep(copy), sweeps.open_sweep(workdir))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config=configs/nowhere.py"], "nowhere.py"),
        ([], "--config is missing"),
        (["--confg=configs/mnist1d.py"], "'confg'"),
        (["--config=configs/mnist1d.py:huge"], "no variant"),
        (["--config=configs/mnist1d.py", "--config.sedes=3"], "did you mean seeds"),
        (["--config=configs/mnist1d.py", "--config.seeds=many"], "seeds"),
        (["--config=configs/mnist1d.py", "--config.batch_sizes=(8,-16)"], "batch_sizes"),
        (["--config=configs/mnist1d.py", "--config.batch_sizes=(8,x)"], "batch_sizes"),
        (["--config=configs/mnist1d.py", "--config.optimizers.adam.spec=adma"], "adam"),
        (
            ["--config=configs/mnist1d.py", "--config.optimizers.adam.learning_rates=(1,0.1)"],
            "learning_rates",
        ),
        (["--config=configs/mnist1d.py", "--config.measure.optimizer=lion"], "measure.optimizer"),
        (
            ["--config=configs/mnist1d.py", "--config.task=surge.tasks.mlp:nothing"],
            "no function nothing",
        ),
        (["--config=configs/mnist1d.py", "--config.grid=sparse"], "'dense' or 'adaptive'"),
        (["--config=configs/mnist1d.py", "--stages=train"], "choose among"),
        (["--config=configs/mnist1d.py", "--workdir=/proc/nowhere"], "/proc"),
        (["--config=configs/mnist1d.py", "stray"], "stray"),
    ],
)
def test_mistakes_end_in_one_sentence(arguments, words, tmp_path):
    if not any("workdir" in each for each in arguments):
        arguments = [*arguments, f"--workdir={tmp_path}"]
    failed = surge(*arguments)
    assert failed.returncode != 0
    assert words in failed.stderr
    assert "Traceback" not in failed.stderr
    assert len(failed.stderr.strip().splitlines()) <= 2


def loaded(name, variant="", **changes):
    """A config of configs/ with some fields changed."""
    config = runpy.run_path(str(ROOT / "configs" / f"{name}.py"))["get_config"](variant)
    config.update_from_flattened_dict(changes)
    return config


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("measure.directions", 12, "at least 8, a multiple of 8; got 12"),
        ("measure.directions", 0, "at least 8"),
        ("measure.examples", 8, "at least 16, a multiple of 8; got 8"),
        ("measure.examples", 100, "a multiple of 8; got 100"),
        ("measure.horizons", (1, 0), "measure.horizons must be whole numbers of at least 1"),
        ("measure.horizons", (), "measure.horizons must be whole numbers of at least 1"),
        (
            "measure.branch_examples",
            0,
            "measure.branch_examples must be a whole number of at least 1",
        ),
        ("measure.losses", (1.0, "x"), "measure.losses must be numbers"),
        ("measure.learning_rate", 0.0, "measure.learning_rate must be above 0"),
        ("measure.batch_size", 0, "measure.batch_size must be a whole number of at least 1"),
        ("measure.max_steps", -1, "measure.max_steps must be a whole number of at least 1"),
        ("fit.target_losses", (1.2, "x"), "fit.target_losses must be numbers"),
        ("optimizers.adam.learning_rates", (1e-3,), "must be 0 < low < high, got"),
        ("optimizers.adam.learning_rates", (1e-3, "x"), "must be 0 < low < high, got"),
        ("optimizers.adam.learning_rates", (1.1e-3, 1.2e-3), "adam: no power of 1.41421 lies in"),
    ],
)
def test_a_number_that_cannot_be_run_is_refused_before_anything_is(field, value, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        check(loaded("mnist1d", **{field: value}))


def test_data_that_the_batches_do_not_fit_is_one_sentence(tmp_path):
    (tmp_path / "a.txt").write_text("what is measured need not be assumed. " * 4)
    text = {"task_args.source": str(tmp_path / "a.txt"), "task_args.evaluation_examples": 16}
    coupled = text | {"task_args.balance_over": "batch", "task_args.ghost": 16}
    rows = {"task_args.examples": 1_000, "task_args.evaluation_examples": 100}
    for name, variant, changes, words in (
        ("mnist1d", "", rows, "has 800 examples to train on, fewer than the batch size 4096"),
        (
            "mnist1d",
            "",
            {"task_args.examples": 20},
            "has 16 rows, fewer than evaluation_examples=1024",
        ),
        (
            "gpt2",
            "quick",
            text | {"measure.batch_size": 128},
            "has 114 examples to train on, fewer than the batch",
        ),
        (
            "moe",
            "quick",
            coupled,
            "couples ghost batches of 16 examples: .* multiples of that, and .4, 8. are not",
        ),
    ):
        with pytest.raises(ConfigError, match=words):
            pipeline.run(loaded(name, variant, **changes), tmp_path / name, ("measure",))


def test_full_disk_is_one_sentence_and_loses_nothing(finished, tmp_path):
    """A limit on file size stands in for a full disk: every write past it fails with an OSError."""
    workdir, _ = finished
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(workdir), str(copy)], check=True)
    (copy / "report.html").unlink()
    line = "ulimit -f 20; exec " + shlex.join(
        command(*SMALL, f"--workdir={copy}", "--stages=report")
    )
    failed = subprocess.run(
        ["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert failed.returncode != 0 and "Traceback" not in failed.stderr and "kept" in failed.stderr
    assert not (copy / "report.html").exists()
    xr.testing.assert_identical(sweeps.open_sweep(copy), sweeps.open_sweep(workdir))
