"""How runs share the devices: decided once, of nothing but the grid and the task, and kept."""

import numpy as np
import pytest

from surge import pipeline
from surge.config import default
from surge.tasks.quadratic import quadratic
from surge.training import hardware, lanes
from surge.training.adaptive import few_lanes
from surge.training.grid import plan
from surge.training.lanes import Lanes, of_grid
from surge.workdir import sweeps

TASK = quadratic(size=6, noise=2.0)
PIECES = plan(
    optimizers={"sgd": ("sgd", (0.02, 0.7))},
    learning_rate_ratio=2**0.5,
    batch_sizes=(8, 64),
    seeds=3,
    max_steps=60,
    max_examples=640,
    evals=12,
)


@pytest.mark.parametrize(("devices", "rates"), [(1, 10), (2, 5), (3, 4), (16, 1)])
def test_side_by_side_a_block_holds_all_cells_of_a_piece(monkeypatch, devices, rates):
    assert len(PIECES[0].learning_rates) == 10
    monkeypatch.setattr(lanes.jax, "local_device_count", lambda: devices)
    assert of_grid(TASK, PIECES) == Lanes("vmap", rates, 3)


def test_runs_that_fill_a_core_take_turns(monkeypatch):
    monkeypatch.setattr(lanes, "VMAP_PARAMETERS", 5)
    assert of_grid(TASK, PIECES) == few_lanes(TASK, PIECES) == Lanes("map", 1, 3)


@pytest.mark.parametrize(("devices", "rates"), [(1, 4), (2, 2), (8, 1)])
def test_a_search_runs_few_rates_at_once(monkeypatch, devices, rates):
    monkeypatch.setattr(lanes.jax, "local_device_count", lambda: devices)
    assert few_lanes(TASK, PIECES) == Lanes("vmap", rates, 3)


def test_lanes_are_written_and_read():
    for written in (Lanes("map", 1, 3), of_grid(TASK, PIECES)):
        read = Lanes.from_json(written.to_json())
        assert read == written and isinstance(read, Lanes)


def test_lanes_become_fewer_until_one_is_alone():
    shapes = [Lanes("vmap", 5, 3)]
    while not shapes[-1].alone:
        shapes.append(shapes[-1].smaller())
    assert [shape[1:] for shape in shapes] == [(5, 3), (2, 3), (1, 3), (1, 1)]
    assert [shape.side_by_side for shape in shapes] == [True, True, True, False]


@pytest.mark.parametrize("grid", ["dense", "adaptive"])
def test_a_resumed_sweep_keeps_the_lanes_that_it_began_with(monkeypatch, tmp_path, grid):
    """Also where it would choose others by now, on a machine with more devices, say."""
    monkeypatch.setattr(hardware, "enable_compilation_cache", lambda: None)
    config = default()
    config.task = "surge.tasks.quadratic:quadratic"
    config.task_args = {"size": 6, "noise": 2.0}
    config.optimizers = {"sgd": {"spec": "sgd", "learning_rates": (0.05, 0.4)}}
    config.batch_sizes = (4, 8)
    config.seeds = 2
    config.max_steps = 4
    config.max_examples = 32
    config.evals = 2
    config.grid = grid
    config.fit.objective = "loss"
    config.measure.optimizer = "sgd"
    pipeline.run(config, tmp_path, ["sweep"])
    last = sweeps.sweep_path(tmp_path, "sgd", 8)
    whole = sweeps.read_piece(last)

    last.unlink()
    monkeypatch.setattr(lanes, "fastest_form", lambda task: "map")
    pipeline.run(config, tmp_path, ["sweep"])
    resumed = sweeps.read_piece(last)
    assert resumed.attrs["lanes"] == whole.attrs["lanes"]
    assert Lanes.from_json(resumed.attrs["lanes"]).form == "vmap"
    np.testing.assert_array_equal(resumed.loss, whole.loss)
