"""Every program of the pipeline, lowered for devices that are not here."""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import surge.gradients
import surge.measurement
from surge.gradients import curvature, directions, independent, moments, noise
from surge.gradients import steps as sampled
from surge.measurement import point
from surge.optimizers import make_optimizer
from surge.tasks import Task, draw_from_arrays, gpt
from surge.tasks.cnn import CNN
from surge.tasks.mlp import MLP
from surge.theory.derivations import Hessian
from surge.training import hardware
from surge.training.lanes import Lanes, fastest_form
from surge.training.programs import advance_on_devices, begin_on_devices
from surge.training.run import Cell, Shared, make_begin

PLATFORMS = ("cuda", "tpu")
ROWS = 16
COUNT = 8
SIZES = (1, 8)


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever asks for the backend is told that it is not the CPU; others share their traces."""
    jax.clear_caches()  # a trace for the CPU would serve again
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    yield
    jax.clear_caches()


def of_module(model: Any, shape: tuple[int, ...]) -> Task:
    inputs = jax.random.normal(jax.random.key(1), (ROWS, *shape))
    data = {"x": inputs, "y": jnp.arange(ROWS) % 3}

    def loss(params: Any, example: Any) -> jax.Array:
        return -jax.nn.log_softmax(model.apply(params, example["x"]))[example["y"]]

    return Task(lambda key: model.init(key, inputs[0]), loss, data, draw_from_arrays, data)


def of_gpt() -> Task:
    model = gpt.GPT(gpt.Size(64, 8, 16, 1, 2), dtype=jnp.bfloat16, remat=True)
    rows = jax.random.randint(jax.random.key(1), (ROWS, 9), 0, 64)
    return Task(
        init=lambda key: model.init(key, rows[0, :-1]),
        loss=lambda params, row: gpt.token_losses(model, params, row)[0].mean(),
        data=rows,
        draw=draw_from_arrays,
        evaluation=rows,
    )


TASKS = {
    "mlp": lambda: of_module(MLP((8,)), (6,)),
    "cnn": lambda: of_module(CNN((4,), 8), (8, 8, 1)),
    "gpt": of_gpt,
}


def assert_lowered(program: Any, *args: Any) -> None:
    """An operation that has no form on an accelerator raises; a library of the CPU is none."""
    exported = jax.export.export(program, platforms=PLATFORMS)(*args)
    assert exported.platforms == PLATFORMS
    assert "lapack" not in exported.mlir_module()


@pytest.mark.parametrize("name", TASKS)
def test_runs_of_a_sweep_begin_and_advance(accelerator, name):
    task = TASKS[name]()
    lanes = Lanes(fastest_form(task), 2, 2)
    size = hardware.size_classes(task)[0]
    shared = Shared(np.float32(0), task.data, task.evaluation)
    keys = jax.random.split(jax.random.key(0), 2)
    rates = jnp.ones((jax.local_device_count(), 2))
    cells = Cell(rates, keys, np.int32(8), np.arange(1, 5, dtype=np.int32))
    begin = jax.jit(begin_on_devices(task, "adam", lanes))
    assert_lowered(begin, cells, shared, None)
    advance = advance_on_devices(task, "adam", microbatch_size=size, lanes=lanes)
    steps = np.int32(0), np.int32(4)
    runs = jax.eval_shape(begin, cells, shared, None)
    assert_lowered(jax.jit(advance), runs, cells, shared, *steps)
    alone = make_begin(task, make_optimizer("adam"))
    assert_lowered(jax.jit(alone), cells._replace(learning_rate=1.0, key=keys[0]), shared)


def programs_of_a_checkpoint(task: Task) -> Iterator[tuple[Any, tuple]]:
    """Each program that a measured checkpoint runs, with arguments for it."""
    loss, key = task.loss, jax.random.key(0)
    params = jax.eval_shape(task.init, key)
    optimizer = make_optimizer("adam")
    layers = tuple(range(len(jax.tree.leaves(params))))
    flat = jnp.ones(hardware.parameters(task))
    wide = jax.eval_shape(curvature.widened, params)

    yield point._draw, (task.draw, task.data, jax.random.split(key, COUNT))
    yield moments._stream, (loss, 4, params, task.evaluation)
    yield noise._layer_alignments, (loss, params, task.evaluation, wide, layers)
    yield independent._hutchinson, (loss, wide, task.evaluation, key, 2)
    yield independent._flat_hvp(loss), (wide, task.evaluation, flat)
    hessian = Hessian(flat, jax.tree_util.Partial(lambda scale, vector: scale * vector, flat))
    yield independent._cross_parts, (hessian, flat, flat, flat, jnp.ones(2))

    source = loss, task.draw
    members = directions._members, (*source, 2, params, task.data, key, 4)
    yield members
    grouped = jax.eval_shape(lambda *args: directions._members(*source, 2, *args), *members[1][3:])
    centre = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape[:1] + leaf.shape[2:], leaf.dtype), grouped
    )
    yield directions._centre, (*source, params, task.data, key, 128, 1, (centre, centre))
    yield directions._mean_norms, (grouped,)
    pool = directions.Pool(centre, wide, grouped, 128, 4)
    weights = jnp.asarray(optimizer.weights(8))
    arguments = optimizer, COUNT, 64, params, pool, jnp.asarray(8), weights, key
    yield directions._directions, arguments

    def stacked(leaf):
        return jax.ShapeDtypeStruct((COUNT, *leaf.shape), jnp.float32)

    steps = jax.tree.map(stacked, params)
    yield sampled._look, (loss, params, task.evaluation, steps)
    yield sampled._look_by_layer, (loss, layers, params, task.evaluation, steps, jnp.float32(1))


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("mlp", "cnn")]


@pytest.mark.parametrize("name", ["gpt", *SLOW])
def test_a_checkpoint_is_measured(accelerator, name):
    for program, arguments in programs_of_a_checkpoint(TASKS[name]()):
        assert_lowered(program, *arguments)


def test_no_program_of_a_checkpoint_is_left_out():
    lowered = {inspect.unwrap(program) for program, _ in programs_of_a_checkpoint(TASKS["mlp"]())}
    jitted = type(moments._stream)
    for package in (surge.gradients, surge.measurement):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            for name, value in vars(importlib.import_module(module.name)).items():
                if isinstance(value, jitted):
                    assert inspect.unwrap(value) in lowered, f"{module.name}.{name}"


@pytest.mark.parametrize("name", ["gpu", "tpu", "another"])
def test_each_backend_has_its_choices(monkeypatch, name):
    monkeypatch.setattr(jax, "default_backend", lambda: name)
    chosen = hardware.backend()
    assert chosen.options is None and not chosen.rewrites
    task = TASKS["mlp"]()
    assert fastest_form(task._replace(init=lambda key: jnp.zeros(100_000))) == "vmap"
    example = jax.tree.map(lambda leaf: leaf[0], task.evaluation)
    held = hardware.plan(task.loss, task.init(jax.random.key(0)), example).activations
    for fitting, sizes in ((2_000, (8, 32, 128, 512)), (130, (8, 32, 128)), (5, (4,)), (0, (1,))):
        memory = (fitting + 0.5) * held / hardware.MICROBATCH_SHARE
        monkeypatch.setattr(hardware, "device_bytes", lambda memory=memory: memory)
        assert hardware.size_classes(task) == sizes


@pytest.mark.parametrize("precision", ["highest", "high", "default"])
def test_products_have_the_precision_that_is_asked_for(accelerator, precision):
    before = jax.config.values["jax_default_matmul_precision"]
    try:
        hardware.set_matmul_precision(precision)
        square = jax.jit(lambda matrix: matrix @ matrix)
        text = jax.export.export(square, platforms=PLATFORMS)(jnp.ones((3, 3))).mlir_module()
    finally:
        jax.config.update("jax_default_matmul_precision", before)
    assert f"precision = [{precision.upper()}, {precision.upper()}]" in text or (
        precision == "default" and "HIGH" not in text
    )


def test_a_cpus_programs_stay_as_they_are():
    before = jax.config.values["jax_default_matmul_precision"]
    hardware.set_matmul_precision("high")
    assert jax.config.values["jax_default_matmul_precision"] == before
