"""Labelled arrays in and out of the workdir, and the tables read from them."""

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from surge.theory.objective import FinalLoss, StepsTo
from surge.workdir import claim, files, origin, sweeps
from surge.workdir.files import ResultError


def store(workdir, optimizer, batch_size, rates, loss, steps, **attrs):
    loss = np.asarray(loss, float)  # [learning_rate, seed, eval]
    diverged = np.zeros(loss.shape[:2], bool)
    seen = np.where(np.isfinite(loss), np.multiply(steps, batch_size), np.nan)
    dataset = sweeps.piece_dataset(
        optimizer, batch_size, rates, range(loss.shape[1]), steps, loss, diverged, seen, attrs
    )
    files.write_dataset(sweeps.sweep_path(workdir, optimizer, batch_size), dataset)


@pytest.fixture
def sweep(tmp_path):
    store(tmp_path, "adam", 8, [0.1, 0.2], [[[3, 2, 1]], [[3, 3, 3]]], [1, 10, 100])
    store(tmp_path, "sgd", 16, [0.2, 0.4], [[[1, np.nan]], [[4, 2]]], [1, 4])
    return sweeps.open_sweep(tmp_path)


def test_pieces_of_unlike_grids_make_one_array(sweep):
    assert sweep.learning_rate.values.tolist() == [0.1, 0.2, 0.4]
    assert sweep.loss.sel(
        optimizer="adam", batch_size=8, learning_rate=0.1, seed=0
    ).values.tolist() == [3, 2, 1]
    assert np.isnan(sweep.loss.sel(optimizer="adam", learning_rate=0.4)).all()
    seen = sweep.examples.sel(optimizer="sgd", batch_size=16, seed=0)
    assert seen.sel(learning_rate=0.4).values[:2].tolist() == [16, 64]
    assert sweeps.examples_trained(sweep) == 2 * 800 + 16 + 64


def test_examples_of_an_older_piece_are_those_of_all_its_runs(sweep, tmp_path):
    path = sweeps.sweep_path(tmp_path, "sgd", 16)
    piece = sweeps.read_piece(path)
    old = piece.assign(examples=piece.steps * piece.batch_size)
    files.write_dataset(path, old)
    xr.testing.assert_identical(sweeps.read_piece(path).examples, piece.examples)


def test_units_survive_joining(sweep):
    for name in ("learning_rate", "batch_size", "loss", "steps", "examples", "diverged"):
        assert sweep[name].attrs["units"] == files.UNITS[name]


def test_pieces_made_unlike_are_said_so(tmp_path):
    alike = {"versions": "1", "devices": "2 x cpu"}
    for size, attrs in ((4, alike), (8, alike), (16, alike | {"devices": "1 x gpu"})):
        store(tmp_path, "adam", size, [0.1], [[[3, 2, 1]]], [1, 10, 100], **attrs)
        mixed = sweeps.open_sweep(tmp_path).attrs.get("mixed")
        assert mixed == (None if size < 16 else "devices: 1 x gpu and 2 x cpu")


def test_a_file_of_another_kind_is_named(sweep, tmp_path):
    xr.Dataset({"temperature": ("day", [1.0])}).to_netcdf(
        tmp_path / "sweep" / "notes.nc", engine="h5netcdf"
    )
    with pytest.raises(
        ResultError, match=r"notes\.nc cannot be read .*without optimizer, .*: delete that file"
    ):
        sweeps.open_sweep(tmp_path)


def test_rows_hold_the_cells_that_were_run(sweep):
    rows = sweeps.rows(sweep, "sgd", StepsTo(3.0))
    assert rows["batch_size"].tolist() == [16, 16]
    assert rows["steps"] == pytest.approx([1, 2])  # loss falls from 4 to 2 between steps 1 and 4
    assert rows["value"] == pytest.approx(np.log(rows["steps"]))


def test_rows_say_which_runs_did_not_get_there(sweep):
    rows = sweeps.rows(sweep, "adam", StepsTo(1.5))
    cells = dict(
        zip(zip(rows["learning_rate"], rows["seed"], strict=True), rows["steps"], strict=True)
    )
    assert cells[0.1, 0] == pytest.approx(10**1.5)
    assert np.isnan(cells[0.2, 0])
    assert rows["value"][np.isnan(rows["steps"])].tolist() == [np.inf]


def test_an_early_end_keeps_its_last_loss(sweep):
    rows = sweeps.rows(sweep, "sgd", FinalLoss())
    assert rows["value"].tolist() == [1, 2]


def test_losses_are_compared_when_the_first_rate_arrives(sweep):
    loss = sweeps.loss_when_first_arrives(sweep, "adam", 2.0)
    assert loss.sel(batch_size=8).values.tolist() == [2, 3]


def test_why_runs_cannot_be_told_apart_is_said(tmp_path, sweep):
    why = sweeps.why_unjudged
    assert why(sweep, "adam", 2.0) == why(sweep, "adam", None) == ""
    assert why(sweep, "adam", 0.5) == "no run of adam reaches loss 0.5: the lowest is 1"
    assert why(sweep, "adam", 3.0).startswith("every run of adam is at loss 3 or below when it is")
    store(tmp_path / "other", "adam", 8, [0.1], [[[np.inf, np.nan, np.nan]]], [1, 10, 100])
    lost = sweeps.open_sweep(tmp_path / "other")
    for target in (1.0, None):
        assert why(lost, "adam", target) == "no run of adam has a finite loss"


def test_json_has_no_nan(tmp_path):
    files.write_json(tmp_path / "a.json", {"x": [np.float32("nan"), np.inf, np.int64(2)]})
    assert files.read_json(tmp_path / "a.json") == {"x": [None, None, 2]}


def full(*_):
    raise OSError(errno.ENOSPC, "the disk is full")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    files.write_json(path, {"old": 1})
    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(OSError, match="disk") as caught:
        files.write_json(path, {"new": 1})
    assert caught.value.filename == str(path)
    assert files.read_json(path) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_files_are_as_readable_as_the_umask_lets_them(tmp_path):
    for mask, mode in ((0o022, 0o644), (0o077, 0o600)):
        before = os.umask(mask)
        try:
            files.write_json(tmp_path / "a.json", {})
        finally:
            os.umask(before)
        assert (tmp_path / "a.json").stat().st_mode & 0o777 == mode


def test_what_a_killed_process_was_writing_is_removed(tmp_path):
    program = (
        "import os, sys; from surge.workdir import files\n"
        "files.os.replace = lambda *_: os.kill(os.getpid(), 9)\n"
        "files.write_json(sys.argv[1], {})"
    )
    for path in (tmp_path / "a.json", tmp_path / "sweep" / "b.nc"):
        subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    assert len(list(tmp_path.rglob(".*"))) == 2
    with claim.lock_workdir(tmp_path):
        assert [path.name for path in tmp_path.rglob(".*")] == [".lock"]


@pytest.mark.parametrize("name", ["broken.nc", "broken.json"])
@pytest.mark.parametrize("content", [b'{"half', b"", 10**5 * b"[", b"\xff\xfe"])
def test_a_truncated_file_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    read = files.read_dataset if name.endswith("nc") else files.read_json
    with pytest.raises(ResultError, match=f"{name} cannot be read"):
        read(tmp_path / name)
    with pytest.raises(ResultError, match="run the stage"):
        read(tmp_path / "missing")


def flipped(content):
    """The bytes with each of some single bits changed."""
    random = np.random.default_rng(0)
    for bit in random.integers(0, 8 * len(content), 300):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << (bit % 8)
        yield bytes(damaged)


def test_a_flipped_bit_changes_no_value_silently(tmp_path):
    store(tmp_path, "adam", 8, [0.1, 0.2], [[[3, 2, 1]], [[3, 3, 3]]], [1, 10, 100])
    path = sweeps.sweep_path(tmp_path, "adam", 8)
    whole = sweeps.read_piece(path)
    refused = 0
    for content in flipped(path.read_bytes()):
        path.write_bytes(content)
        try:
            assert sweeps.read_piece(path).identical(whole)
        except ResultError as error:
            assert re.search(r"b8\.nc cannot be read \(.*\): delete that file", str(error))
            refused += 1
    assert refused > 290  # all but those that hit the seal's own first bytes


def test_a_flipped_bit_in_the_fits_changes_nothing_silently(tmp_path):
    entry = dict.fromkeys(files.FIT, 1.5) | {"laws": {"surge": [0.1, float("nan")]}}
    files.write_fits(tmp_path, [entry], missing=["adam-b4"])
    whole = files.read_fits(tmp_path)
    assert whole == [entry | {"laws": {"surge": [0.1, None]}}]
    path = tmp_path / "fit.json"
    for content in flipped(path.read_bytes()):
        path.write_bytes(content)
        try:
            assert files.read_fits(tmp_path) == whole
        except ResultError as error:
            assert "fit.json cannot be read" in str(error)


def test_a_file_from_before_there_were_checksums_opens(tmp_path):
    store(tmp_path, "adam", 8, [0.1], [[[3, 2, 1]]], [1, 10, 100])
    path = sweeps.sweep_path(tmp_path, "adam", 8)
    new = sweeps.read_piece(path)
    new.to_netcdf(path, engine="h5netcdf")
    assert files.SEAL not in path.read_bytes()
    xr.testing.assert_identical(sweeps.read_piece(path), new)


def test_other_readers_open_a_file_with_a_checksum(tmp_path):
    store(tmp_path, "adam", 8, [0.1], [[[3, 2, 1]]], [1, 10, 100])
    path = sweeps.sweep_path(tmp_path, "adam", 8)
    assert files.SEAL in path.read_bytes()
    xr.testing.assert_identical(xr.load_dataset(path, engine="h5netcdf"), sweeps.read_piece(path))


CONFIG = {"a": {"b": (1, 2)}, "grid": "dense", "fit": 1}


def computed(workdir, config):
    """A workdir with a result of `config`."""
    claim.claim_workdir(workdir, config)
    store(workdir, "adam", 8, [0.1], [[[3, 2, 1]]], [1, 10, 100], config=json.dumps(config))


def test_a_workdir_belongs_to_one_config(tmp_path):
    computed(tmp_path, CONFIG)
    claim.claim_workdir(tmp_path, CONFIG)
    claim.claim_workdir(tmp_path, CONFIG | {"fit": 2})  # what only the fit reads may change
    with pytest.raises(ResultError, match=r"a\.b was \[1, 2\] and is now \[1, 3\]"):
        claim.claim_workdir(tmp_path, CONFIG | {"a": {"b": (1, 3)}})


def test_a_new_field_with_a_default_leaves_old_workdirs_usable(tmp_path):
    computed(tmp_path, CONFIG)
    default = {"new": 0, "a": {"inner": 7, "b": ()}, "fit": {"new": 0}}
    now = CONFIG | {"new": 0, "a": {"b": (1, 2), "inner": 7}}
    claim.claim_workdir(tmp_path, now, default)
    with pytest.raises(ResultError, match="new was 0 and is now 1"):
        claim.claim_workdir(tmp_path, now | {"new": 1}, default)
    with pytest.raises(ResultError, match=r"a\.inner was 7 and is now 8"):
        claim.claim_workdir(tmp_path, now | {"a": {"b": (1, 2), "inner": 8}}, default)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_field_that_is_not_finite_does_not_orphan_its_workdir(tmp_path, value):
    config = CONFIG | {"task_args": {"limit": value}}
    computed(tmp_path, config)
    claim.claim_workdir(tmp_path, config)
    (tmp_path / "config.json").unlink()
    claim.claim_workdir(tmp_path, config)  # by what stands in its results
    before = files.finite_or_none(config)  # as config.json was written once
    files.write_json(tmp_path / "config.json", before)
    claim.claim_workdir(tmp_path, config)
    with pytest.raises(ResultError, match=r"task_args\.limit was .* and is now 3"):
        claim.claim_workdir(tmp_path, CONFIG | {"task_args": {"limit": 3}})


def test_how_large_a_grid_may_be_binds_nothing(tmp_path):
    computed(tmp_path, CONFIG | {"max_cells": 10})
    claim.claim_workdir(tmp_path, CONFIG | {"max_cells": 20})


@pytest.mark.parametrize("name", ["gs://bucket/run", "s3://b", "file:///tmp/run"])
def test_a_remote_workdir_is_refused(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with (
        pytest.raises(ResultError, match="is a remote address"),
        claim.lock_workdir(Path(name)),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_the_targets_of_an_adaptive_grid_are_bound_too(tmp_path):
    computed(tmp_path, {"grid": "adaptive", "fit": {"target_losses": (1,)}})
    with pytest.raises(ResultError, match=r"fit\.target_losses was \[1\] and is now \[2\]"):
        claim.claim_workdir(tmp_path, {"grid": "adaptive", "fit": {"target_losses": (2,)}})


def test_a_first_run_that_computed_nothing_binds_nothing(tmp_path):
    claim.claim_workdir(tmp_path, CONFIG)
    computed(tmp_path, CONFIG | {"a": 3})
    assert files.read_json(tmp_path / "config.json") == {"a": 3, "grid": "dense"}


def test_results_know_their_config_without_its_file(tmp_path):
    computed(tmp_path, CONFIG)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ResultError, match=r"a was .* and is now 3"):
        claim.claim_workdir(tmp_path, CONFIG | {"a": 3})
    claim.claim_workdir(tmp_path, CONFIG | {"fit": 2})
    assert (tmp_path / "config.json").exists()


def test_a_result_of_no_config_is_named(tmp_path):
    store(tmp_path, "adam", 8, [0.1], [[[3, 2, 1]]], [1, 10, 100])
    with pytest.raises(ResultError, match=r"adam-b8\.nc cannot be read .*which config"):
        claim.claim_workdir(tmp_path, CONFIG)


@pytest.mark.parametrize("content", ["[]", "3", '{"a'])
def test_a_damaged_config_is_named(tmp_path, content):
    computed(tmp_path, CONFIG)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ResultError, match=r"config\.json cannot be read"):
        claim.claim_workdir(tmp_path, CONFIG)


def test_a_workdir_is_a_folder(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(ResultError, match="file is a file: give a folder"),
        claim.lock_workdir(tmp_path / "file"),
    ):
        pass


def test_a_workdir_is_locked_while_a_process_lives(tmp_path):
    program = (
        "import pathlib, sys, time; from surge.workdir import claim\n"
        "with claim.lock_workdir(pathlib.Path(sys.argv[1])):\n"
        "    print('in', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE
    )
    assert holder.stdout and holder.stdout.readline() == b"in\n"
    for _ in range(2):  # being refused leaves the owner's name in place
        with (
            pytest.raises(ResultError, match=f"in use by process {holder.pid} on"),
            claim.lock_workdir(tmp_path),
        ):
            pass
    holder.kill()
    holder.communicate()
    with claim.lock_workdir(tmp_path):
        pass


def test_the_commit_is_that_of_the_clone_and_of_no_other_repository(tmp_path, monkeypatch):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    monkeypatch.setattr(origin, "PACKAGE", tmp_path)
    commit = origin.commit.__wrapped__
    assert commit() == "unknown"  # no repository
    git("init", "--quiet")
    (tmp_path / "__init__.py").write_text("one")
    assert commit() == "unknown"  # somebody else's, which does not track it
    git("add", "__init__.py")
    git("commit", "--quiet", "-m", "first")
    made = git("rev-parse", "--short=12", "HEAD").strip()
    assert commit() == made
    (tmp_path / "__init__.py").write_text("two")
    assert commit() == f"{made}-dirty"
    monkeypatch.setenv("PATH", "")
    assert commit() == "unknown"  # no git
