"""One run, and what is measured of one checkpoint, on eight devices: as on one."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from surge.gradients import directions, wide
from surge.gradients.batch import mean_gradient, weighted
from surge.gradients.moments import per_example_moments
from surge.tasks import Task, draw_from_arrays
from surge.tasks.mlp import MLP
from surge.training import hardware, lanes
from surge.training.engine import Engine
from surge.training.grid import Piece
from surge.training.lanes import WIDE, Lanes

KEY = jax.random.key(0)
EIGHT = 8


def task() -> Task:
    model = MLP((8,), 3)
    inputs = jax.random.normal(jax.random.key(1), (53, 6))
    data = {"x": inputs, "y": jnp.arange(53) % 3}

    def loss(params, example):
        return -jax.nn.log_softmax(jnp.asarray(model.apply(params, example["x"])))[example["y"]]

    return Task(lambda key: model.init(key, inputs[0]), loss, data, draw_from_arrays, data)


def assert_close(one, other, rtol=2e-5, atol=1e-6):
    for leaf, like in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(leaf, like, rtol=rtol, atol=atol)


def gradients(problem, params):
    """Also of batches that leave devices without a micro-batch, and of a last one that is short."""

    def of(devices, size, params, data):
        batch = params, data, KEY, size, 4
        return mean_gradient(weighted(problem.loss), problem.draw, *batch, devices=devices)

    alone = jax.jit(of, static_argnums=0)
    for size in (1, 9, 32, 70):
        given = size, params, problem.data
        assert_close(wide.everywhere(of, wide.DEVICES)(*given), alone(None, *given))


def moments(problem, params):
    many = wide.wide_moments(problem.loss, params, problem.data)
    one = per_example_moments(problem.loss, params, problem.data)
    assert_close(many._replace(sign_sum=(), zeros=()), one._replace(sign_sum=(), zeros=()))
    for counts, like in ((many.sign_sum, one.sign_sum), (many.zeros, one.zeros)):
        assert_close(counts, like, rtol=0, atol=0)


def sampled(problem, params):
    def pool(together):
        directions.worth_it = lambda: together
        source = directions.PoolSource(
            problem.loss, params, problem.draw, problem.data, KEY, members=2, size=200
        )
        return source.at(16), source.at(64)

    assert_close(pool(True), pool(False))


def training(problem):
    piece = Piece("adam", "adam", 33, (0.01, 0.1, 0.3), (0, 1), (1, 5, 12))
    results = [
        Engine(problem, KEY, shape, stop_loss=-np.inf).run(piece)
        for shape in (WIDE, Lanes("vmap", 1, 2))
    ]
    assert_close(results[0].loss, results[1].loss, rtol=1e-4)
    np.testing.assert_array_equal(results[0].diverged, results[1].diverged)
    np.testing.assert_array_equal(results[0].examples, results[1].examples)


def the_trap():
    """Single gradients on two of eight devices: by shared parameters they are sums over devices."""
    mesh = Mesh(np.asarray(jax.devices()), (wide.DEVICES,))
    examples = jnp.arange(16.0)

    def single(weight, examples):
        return jax.vmap(jax.grad(lambda weight, x: weight * x), (None, 0))(weight, examples)

    def own(weight, examples):
        return single(jax.lax.pcast(weight, wide.DEVICES, to="varying"), examples)

    shared = PartitionSpec(), PartitionSpec(wide.DEVICES)
    by_shard_map = {
        name: jax.shard_map(each, mesh=mesh, in_specs=shared, out_specs=shared[1])(1.0, examples)
        for name, each in (("single", single), ("own", own))
    }
    sums = np.tile(np.asarray(examples).reshape(EIGHT, 2).sum(0), EIGHT)
    np.testing.assert_array_equal(by_shard_map["single"], sums)  # this is the trap
    np.testing.assert_array_equal(by_shard_map["own"], examples)


def on_eight():
    assert jax.local_device_count() == EIGHT
    problem = task()
    params = problem.init(KEY)
    gradients(problem, params)
    moments(problem, params)
    sampled(problem, params)
    training(problem)
    the_trap()


def test_two_devices_give_what_one_gives():
    problem = task()
    params = problem.init(KEY)
    gradients(problem, params)
    moments(problem, params)


@pytest.mark.slow
def test_eight_devices_give_what_one_gives():
    tests = str(Path(__file__).parent)
    program = f"import sys; sys.path.insert(0, {tests!r}); import test_wide; test_wide.on_eight()"
    given = os.environ | {"JAX_NUM_CPU_DEVICES": str(EIGHT)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=given, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture
def pod(monkeypatch):
    """Eight accelerators that have room for so many runs each."""
    monkeypatch.setattr(
        lanes,
        "jax",
        SimpleNamespace(default_backend=lambda: "gpu", local_device_count=lambda: EIGHT),
    )
    monkeypatch.setattr(lanes, "fastest_form", lambda task: "vmap")
    monkeypatch.setattr(lanes, "run_bytes", lambda task: 1.0)
    return lambda runs: monkeypatch.setattr(
        lanes, "device_bytes", lambda: (runs + 0.5) / hardware.MEMORY_SHARE
    )


def test_few_cells_are_wide_and_many_are_narrow(pod):
    pod(100)
    assert lanes.spread(task(), 20, 3) == ("vmap", 3, 3)
    assert lanes.spread(task(), 5, 3) == WIDE
    assert lanes.spread(task(), 5, 3, "narrow") == ("vmap", 1, 3)
    assert lanes.spread(task(), 20, 3, "wide") == WIDE
    pod(4)
    assert lanes.spread(task(), 20, 3) == ("vmap", 1, 3)
    pod(1)
    assert lanes.spread(task(), 20, 3) == WIDE
    assert lanes.spread(task(), 20, 3, "narrow") == ("vmap", 1, 1)


def test_a_cpu_keeps_its_lanes():
    devices = jax.local_device_count()
    assert lanes.spread(task(), 1, 3) == ("vmap", 1, 3) and devices > 1
    assert lanes.spread(task(), 1, 3, "wide") == WIDE
