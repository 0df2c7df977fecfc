"""Labelled arrays in and out of the workdir, and the tables read from them."""

import subprocess
import sys

import numpy as np
import pytest

from surge import results
from surge.results import ResultError


def store(workdir, optimizer, batch_size, rates, loss, steps):
    loss = np.asarray(loss, float)  # [learning_rate, seed, eval]
    diverged = np.zeros(loss.shape[:2], bool)
    dataset = results.piece_dataset(optimizer, batch_size, rates, range(loss.shape[1]), steps, loss, diverged, {})
    results.write_dataset(results.sweep_path(workdir, optimizer, batch_size), dataset)


@pytest.fixture
def sweep(tmp_path):
    store(tmp_path, "adam", 8, [0.1, 0.2], [[[3, 2, 1]], [[3, 3, 3]]], [1, 10, 100])
    store(tmp_path, "sgd", 16, [0.2, 0.4], [[[1, np.nan]], [[4, 2]]], [1, 4])
    return results.open_sweep(tmp_path)


def test_pieces_of_unlike_grids_make_one_array(sweep):
    assert sweep.learning_rate.values.tolist() == [0.1, 0.2, 0.4]
    assert sweep.loss.sel(optimizer="adam", batch_size=8, learning_rate=0.1, seed=0).values.tolist() == [3, 2, 1]
    assert np.isnan(sweep.loss.sel(optimizer="adam", learning_rate=0.4)).all()
    assert sweep.examples.sel(optimizer="sgd", batch_size=16).values[:2].tolist() == [16, 64]


def test_steps_to_target_interpolates_log_steps_in_the_loss(sweep):
    cells = results.steps_to_target(sweep, 1.5).sel(seed=0)
    assert cells.sel(optimizer="adam", batch_size=8, learning_rate=0.1) == pytest.approx(10**1.5)
    assert np.isnan(cells.sel(optimizer="adam", batch_size=8, learning_rate=0.2))  # never reached
    assert cells.sel(optimizer="sgd", batch_size=16, learning_rate=0.2) == 1  # below at the first evaluation


def test_rows_hold_the_cells_that_were_run(sweep):
    rows = results.rows(sweep, "sgd", 3.0)
    assert rows["batch_size"].tolist() == [16, 16]
    assert rows["steps"] == pytest.approx([1, 2])  # loss falls from 4 to 2 between steps 1 and 4
    assert rows["value"] == pytest.approx(np.log(rows["steps"]))
    assert results.rows(sweep, "sgd", None)["value"].tolist() == [1, 2]  # an early end keeps its last loss


def test_losses_are_compared_when_the_first_rate_arrives(sweep):
    loss = results.loss_when_first_arrives(sweep, "adam", 2.0)
    assert loss.sel(batch_size=8).values.tolist() == [2, 3]


def test_json_has_no_nan(tmp_path):
    results.write_json(tmp_path / "a.json", {"x": [np.float32("nan"), np.inf, np.int64(2)]})
    assert results.read_json(tmp_path / "a.json") == {"x": [None, None, 2]}


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    results.write_json(path, {"old": 1})
    monkeypatch.setattr(results.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(OSError, match="disk"):
        results.write_json(path, {"new": 1})
    assert results.read_json(path) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["broken.nc", "broken.json"])
def test_a_truncated_file_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(b'{"half')
    read = results.read_dataset if name.endswith("nc") else results.read_json
    with pytest.raises(ResultError, match=f"{name} cannot be read"):
        read(tmp_path / name)
    with pytest.raises(ResultError, match="run the stage"):
        read(tmp_path / "missing")


def test_a_workdir_belongs_to_one_config(tmp_path):
    config = {"a": {"b": (1, 2)}, "grid": "dense", "fit": 1}
    results.claim_workdir(tmp_path, config)
    results.claim_workdir(tmp_path, config | {"fit": 2})  # what only the fit reads may change
    with pytest.raises(ResultError, match=r"a\.b was \[1, 2\] and is now \[1, 3\]"):
        results.claim_workdir(tmp_path, config | {"a": {"b": (1, 3)}})


def test_the_targets_of_an_adaptive_grid_are_bound_too(tmp_path):
    results.claim_workdir(tmp_path, {"grid": "adaptive", "fit": {"target_losses": (1,)}})
    with pytest.raises(ResultError, match=r"fit\.target_losses was \[1\] and is now \[2\]"):
        results.claim_workdir(tmp_path, {"grid": "adaptive", "fit": {"target_losses": (2,)}})


def test_a_workdir_is_locked_while_a_process_lives(tmp_path):
    program = (
        "import pathlib, sys, time; from surge import results\n"
        "with results.lock_workdir(pathlib.Path(sys.argv[1])): print('in', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE)
    assert holder.stdout and holder.stdout.readline() == b"in\n"
    for _ in range(2):  # being refused leaves the owner's name in place
        with pytest.raises(ResultError, match=f"in use by process {holder.pid} on"), results.lock_workdir(tmp_path):
            pass
    holder.kill()
    holder.communicate()
    with results.lock_workdir(tmp_path):
        pass
