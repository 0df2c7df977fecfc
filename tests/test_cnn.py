"""The convolution against Flax's own, and the CNN on the real images where they are installed."""

import resource
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from slowly import slow

from surge.tasks import Task, cnn, draw_from_arrays, images
from surge.training import engine
from surge.training.dense import run_pieces
from surge.training.grid import Piece, plan
from surge.training.lanes import Lanes
from surge.training.run import Cell, Shared, make_train

real = pytest.mark.skipif(
    not Path(images.FASHION_MNIST).exists(), reason="needs dataset-fashion-mnist"
)


@pytest.mark.parametrize(
    ("size", "stride", "pool"),
    [(3, 1, 1), (1, 2, 1), (3, 2, 2), *slow((3, 2, 1), (5, 1, 1), (3, 1, 2))],
)
def test_both_forms_of_convolution_equal_flax(size, stride, pool):
    inputs = jax.random.normal(jax.random.key(0), (2, 9, 8, 3))
    ours = cnn.Conv(4, size, stride, pool)
    margin = (size - 1) // 2
    theirs = nn.Conv(4, (size, size), stride, padding=((margin, margin), (margin, margin)))
    params = theirs.init(jax.random.key(1), inputs)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(
        jnp.shape, ours.init(jax.random.key(1), inputs)
    )
    convolved = jnp.asarray(theirs.apply(params, inputs))
    expected = nn.max_pool(convolved, (pool, pool), (pool, pool))
    kernel = jnp.asarray(params["params"]["kernel"])
    np.testing.assert_allclose(jnp.asarray(ours.apply(params, inputs)), expected, atol=1e-5)
    np.testing.assert_allclose(ours.native(inputs, kernel), expected, atol=1e-5)
    alone = jnp.asarray(ours.apply(params, inputs[0]))
    np.testing.assert_allclose(alone, expected[0], atol=1e-5)
    slopes = [
        jax.grad(lambda inputs, kernel, form=form: jnp.square(form(inputs, kernel)).sum(), (0, 1))(
            inputs, kernel
        )
        for form in (ours.patches, ours.native)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), *slopes)


def test_the_form_for_accelerators_runs_on_every_lane_of_a_sweep(monkeypatch):
    data = {"x": jax.random.normal(jax.random.key(0), (4, 6, 6, 1)), "y": jnp.arange(4) % 2}
    model = cnn.CNN((2, 3), 4, classes=2)
    task = Task(
        init=lambda key: model.init(key, data["x"][0]),
        loss=cnn.image_loss(model.apply, (0.0,), (1 / 255,)),
        data=data,
        draw=draw_from_arrays,
        evaluation=data,
    )
    pieces = plan(
        optimizers={"adam": ("adam", (1e-3, 1e-1))},
        learning_rate_ratio=10.0,
        batch_sizes=(8,),
        seeds=2,
        max_steps=3,
        max_examples=24,
        evals=2,
    )

    def losses():
        [(_, result)] = run_pieces(
            task, pieces, jax.random.key(1), stop_loss=0.0, lanes=Lanes("vmap", 2, 2)
        )
        return result.loss

    patches = losses()
    monkeypatch.setattr(cnn.Conv, "patches", cnn.Conv.native)
    native = losses()
    assert np.isfinite(native).all() and native.std() > 0
    np.testing.assert_allclose(native, patches, rtol=1e-4)


@pytest.mark.slow
def test_bfloat16_computes_a_finite_loss_and_leaves_parameters_float32():
    data = {
        "x": jax.random.bits(jax.random.key(0), (8, 12, 12, 1), "uint8"),
        "y": jnp.arange(8) % 2,
    }
    losses = []
    for dtype in (jnp.float32, jnp.bfloat16):
        model = cnn.CNN((2, 3), 4, classes=2, dtype=dtype)
        loss = cnn.image_loss(model.apply, (0.5,), (0.25,))

        def init(key, model=model):
            return model.init(key, jnp.zeros((12, 12, 1)))

        task = Task(init, loss, data, draw_from_arrays, data)
        train = jax.jit(make_train(task, lambda rate, *_: optax.adam(rate), microbatch_size=8))
        cell = Cell(1e-2, jax.random.key(1), 8, np.array([1, 10]))
        result = train(cell, Shared(0.0, data, data))
        assert {leaf.dtype for leaf in jax.tree.leaves(result.state)} <= {
            jnp.dtype("float32"),
            jnp.dtype("int32"),
        }
        losses.append(result.loss)
    assert np.isfinite(losses).all()
    np.testing.assert_allclose(*losses, rtol=0.05)


@real
def test_loss_falls_on_fashion_mnist():
    task = cnn.fashion_mnist(channels=(4, 8), hidden=16, evaluation_examples=64)
    assert task.data["x"].shape == (60_000, 28, 28, 1)
    train = jax.jit(make_train(task, lambda rate, *_: optax.adam(rate), microbatch_size=8))
    cell = Cell(3e-3, jax.random.key(0), 8, np.array([1, 200]))
    result = train(cell, Shared(0.0, task.data, task.evaluation))
    assert result.loss[0] > 1.5 > 1.2 > result.loss[1]


@pytest.mark.slow
@real
def test_cnn_reaches_ninety_percent_of_the_test_images():
    task = cnn.fashion_mnist()
    train = jax.jit(make_train(task, lambda rate, *_: optax.adam(rate), microbatch_size=64))
    cell = Cell(1e-3, jax.random.key(0), 64, np.array([8_000]))
    result = train(cell, Shared(0.0, task.data, task.evaluation))
    test = images.fashion_mnist_arrays(split="test")
    model, params = cnn.CNN(), result.state.params
    pixels = (jnp.asarray(test["x"], jnp.float32) / 255 - 0.2860) / 0.3530
    guesses = jnp.concatenate(
        [jnp.argmax(jnp.asarray(model.apply(params, part)), -1) for part in jnp.split(pixels, 10)]
    )
    accuracy = float((guesses == test["y"]).mean())
    print(f"accuracy {accuracy:.4f}")
    assert accuracy >= 0.9


@pytest.mark.slow
def test_memory_does_not_grow_with_steps(monkeypatch):
    """On two CPU devices, where a call of a program gathers tens of megabytes a second."""
    data = {
        "x": jax.random.bits(jax.random.key(0), (64, 28, 28, 1), "uint8"),
        "y": jnp.arange(64) % 10,
    }
    model = cnn.CNN()
    loss = cnn.image_loss(model.apply, (0.5,), (0.25,))

    def init(key):
        return model.init(key, jnp.zeros((28, 28, 1)))

    task = Task(init, loss, data, draw_from_arrays, jax.tree.map(lambda leaf: leaf[:1], data))
    monkeypatch.setattr(engine, "CALL_SECONDS", 2.0)
    runs = engine.Engine(task, jax.random.key(0), Lanes("map", 1, 2), stop_loss=-np.inf)
    rates = tuple(1e-5 * 2.0**power for power in range(2 * runs.devices))
    piece = Piece("adam", "adam", 64, rates, (0, 1), (100,))
    mebibytes = []
    for steps in (100, 100, 800):  # the first two settle what the allocator keeps
        runs.run(piece._replace(eval_steps=(steps,)))
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        mebibytes.append(pages * resource.getpagesize() / 2**20)
    print("MiB", mebibytes)
    assert mebibytes[2] < mebibytes[1] + 100
