"""bfloat16 from end to end: trained, written, measured and reported, with and without masters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from surge import pipeline
from surge.config import default
from surge.tasks import Task, draw_from_arrays
from surge.training.precision import with_master_weights
from surge.training.run import Cell, Shared, make_begin, make_train
from surge.workdir import files, sweeps

ROWS = np.random.default_rng(0).normal(size=(256, 6)).astype(np.float32)
DATA = {"x": ROWS, "y": np.sin(ROWS.sum(1))}


def task(dtype="bfloat16"):
    """A small regression, all of it in one dtype, its loss too."""

    def init(key):
        first, second = jax.random.split(key)
        params = {
            "a": jax.random.normal(first, (6, 8)) / 2,
            "b": jax.random.normal(second, (8,)) / 2,
        }
        return jax.tree.map(lambda leaf: leaf.astype(dtype), params)

    def loss(params, example):
        x = example["x"].astype(params["a"].dtype)
        return (jnp.tanh(x @ params["a"]) @ params["b"] - example["y"].astype(x.dtype)) ** 2

    evaluation = jax.tree.map(lambda leaf: leaf[:64], DATA)
    return Task(init, loss, DATA, draw_from_arrays, evaluation)


def config(**changes):
    made = default()
    made.task = "test_precision:task"
    made.optimizers = {"adam": {"spec": "adam", "learning_rates": (1e-3, 4e-2)}}
    made.learning_rate_ratio = 2.0
    made.batch_sizes = (8, 32, 128)
    made.seeds = 2
    made.max_steps = 60
    made.max_examples = 4_000
    made.evals = 12
    made.measure.losses = ()
    made.measure.examples = 64
    made.measure.directions = 8
    made.measure.horizons = (1,)
    made.measure.branch_examples = 20_000
    made.measure.max_steps = 20
    made.fit.target_losses = (0.6,)
    made.update(changes)
    return made


@pytest.mark.slow
@pytest.mark.parametrize("master_weights", ["float32", "none"])
def test_bfloat16_goes_from_end_to_end(tmp_path, monkeypatch, master_weights):
    monkeypatch.syspath_prepend(__file__.rpartition("/")[0])
    stages = ("measure", "sweep", "fit", "report")
    pipeline.run(config(master_weights=master_weights), tmp_path, stages)
    measured = files.read_dataset(tmp_path / "measure.nc")
    assert measured.loss.dtype.itemsize >= 4 and np.isfinite(measured.loss).all()
    assert np.isfinite(measured.oracle_lr.sel(bound="value")).all()
    sweep = sweeps.open_sweep(tmp_path)
    assert sweep.loss.dtype.itemsize >= 4 and np.isfinite(sweep.loss.values).any()
    assert not (sweep.diverged == 1).any()
    assert (tmp_path / "report.html").exists()


def plain_loop(masters, rate, steps, batch_size=4):
    """A second implementation: optax on float32 copies, or on the rounded parameters."""
    held = task()
    key = jax.random.key(3)
    init_key, data_key = jax.random.split(key)
    params = held.init(init_key)
    dtypes = jax.tree.map(lambda leaf: leaf.dtype, params)
    transform = optax.adam(rate)
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    state = transform.init(wide)

    def narrow(tree):
        return jax.tree.map(lambda leaf, dtype: leaf.astype(dtype), tree, dtypes)

    for index in range(steps):
        batch_key = jax.random.fold_in(data_key, index)
        keys = [jax.random.fold_in(batch_key, i) for i in range(batch_size)]
        gradients = [jax.grad(held.loss)(narrow(wide), draw_from_arrays(DATA, one)) for one in keys]
        total = jax.tree.map(
            lambda *leaves: sum(leaf.astype(jnp.float32) for leaf in leaves) / batch_size,
            *gradients,
        )
        updates, state = transform.update(total, state, wide)
        wide = optax.apply_updates(wide, updates)
        if not masters:
            wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), narrow(wide))
    return wide


def trained(masters, rate, steps):
    held = with_master_weights(task()) if masters else task()
    train = jax.jit(make_train(held, lambda rate, *_: optax.adam(rate), microbatch_size=4))
    cell = Cell(rate, jax.random.key(3), 4, np.array([steps], np.int32))
    run = train(cell, Shared(-np.inf, held.data, held.evaluation))
    return run, jax.tree.map(lambda leaf: leaf.astype(jnp.float32), run.state.params)


@pytest.mark.parametrize("masters", [True, False])
def test_training_equals_a_plain_loop(masters):
    run, params = trained(masters, 1e-2, 10)
    state = run.state.opt_state[0]
    assert {leaf.dtype for leaf in jax.tree.leaves((state.mu, state.nu))} == {jnp.dtype("float32")}
    assert run.loss.dtype == run.start_loss.dtype == jnp.float32
    kept = {leaf.dtype for leaf in jax.tree.leaves(run.state.params)}
    assert kept == {jnp.dtype("float32" if masters else "bfloat16")}
    # Gradients are bfloat16: what order they are summed in moves their last digit, and Adam's step.
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, atol=0.02),
        params,
        plain_loop(masters, 1e-2, 10),
    )


def test_steps_below_the_last_digit_add_up_in_masters_and_are_lost_without():
    start = jax.tree.map(
        lambda leaf: leaf.astype(jnp.float32), task().init(jax.random.split(jax.random.key(3))[0])
    )

    def moved(masters):
        away = jax.tree.map(lambda a, b: np.abs(a - b) > 1e-4, trained(masters, 2e-5, 50)[1], start)
        return np.mean(np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(away)]))

    assert moved(True) > 0.6
    assert moved(False) < 0.2


def test_float32_parameters_have_no_masters():
    held = task("float32")
    assert with_master_weights(held) is held
    begin = make_begin(with_master_weights(task()), lambda rate, *_: optax.sgd(rate))
    cell = Cell(0.1, jax.random.key(0), 4, np.array([1], np.int32))
    run = begin(cell, Shared(-np.inf, DATA, task().evaluation))
    rounded = jax.vmap(task().loss, (None, 0))(
        task().init(jax.random.split(jax.random.key(0))[0]), task().evaluation
    )
    assert run.start_loss == pytest.approx(float(rounded.astype(jnp.float32).mean()), rel=1e-6)
