"""Tasks with known answers, the mixture of experts, and the configs."""

import runpy
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from surge import pipeline
from surge.config import check
from surge.gradients.moments import per_example_moments
from surge.sweep import plan
from surge.tasks import linear, make_task, mlp, moe
from surge.tasks.quadratic import problem, quadratic
from surge.training.run import Cell, Shared, evaluate, make_train
from surge.workdir import files

CONFIGS = Path(__file__).parent.parent / "configs"


def gradients(task, params, count):
    keys = jax.random.split(jax.random.key(7), count)
    examples = jax.vmap(task.draw, (None, 0))(task.data, keys)
    return jax.vmap(jax.grad(task.loss), (None, 0))(params, examples)


@pytest.mark.parametrize("correlation", [0.0, 0.5])
def test_quadratic_has_the_moments_it_says(correlation):
    options = {"hessian": "random", "size": 6, "noise": 2.0, "correlation": correlation}
    known, task = problem(**options), quadratic(**options)
    params = task.init(jax.random.key(0))
    drawn = gradients(task, params, 20_000)
    covariance = known.noise_root @ known.noise_root.T
    np.testing.assert_allclose(drawn.mean(0), known.mu, atol=5 * 2 / 20_000**0.5)
    np.testing.assert_allclose(np.cov(drawn.T), covariance, atol=5 * 4 * (2 / 20_000) ** 0.5)
    np.testing.assert_allclose(np.diag(covariance) ** 0.5, known.sigma, rtol=1e-6)
    np.testing.assert_allclose(
        jax.hessian(task.loss)(params, task.evaluation[0]), known.hessian, atol=1e-5
    )


def test_linear_regression_has_the_moments_it_says():
    task = linear.mnist1d(examples=200, evaluation_examples=160)
    theta = 0.1 * jax.random.normal(jax.random.key(0), (41,))
    known = linear.exact(task.data, np.asarray(theta))
    moments = per_example_moments(task.loss, theta, task.data)
    np.testing.assert_allclose(moments.mean, known.mu, atol=1e-4)
    np.testing.assert_allclose(
        moments.square / moments.n, np.diag(known.covariance), rtol=1e-3, atol=1e-5
    )
    hessian = jax.hessian(lambda theta: jax.vmap(task.loss, (None, 0))(theta, task.data).mean())(
        theta
    )
    np.testing.assert_allclose(hessian, known.hessian, atol=1e-3)


def test_draws_with_a_key_are_reproducible_and_cover_the_data():
    task = mlp.mnist1d(widths=(4,), examples=20, evaluation_examples=16)
    labels = jax.vmap(lambda key: task.draw(task.data, key)["x"][0])(
        jax.random.split(jax.random.key(0), 400)
    )
    assert set(np.asarray(labels)) == set(task.data["x"][:, 0])


def naive_experts(params, inputs, active, shared):
    """One token and one expert at a time."""
    outputs = []
    for token in np.asarray(inputs):
        scores = np.exp(token @ params["router"])
        scores /= scores.sum()
        total = 0
        for expert in range(len(params["up"])):
            gate = 1.0 if expert < shared else scores[expert - shared]
            if expert >= shared and gate < np.sort(scores)[-active]:
                continue
            total = (
                total
                + gate
                * np.asarray(jax.nn.gelu(token @ params["up"][expert]))
                @ params["down"][expert]
            )
        outputs.append(total)
    return np.stack(outputs)


def test_experts_equal_a_loop_over_tokens_and_experts():
    inputs = jax.random.normal(jax.random.key(0), (5, 6))
    model = moe.Experts(moe.SIZES["tiny"], routed=4, active=2, shared=1, hidden=3)
    params = jax.tree.map(lambda leaf: 20 * leaf, model.init(jax.random.key(1), inputs))
    outputs, (load, probability) = jax.tree.map(jnp.asarray, model.apply(params, inputs))
    numpy_params = jax.tree.map(np.asarray, params["params"])
    np.testing.assert_allclose(outputs, naive_experts(numpy_params, inputs, 2, 1), atol=1e-5)
    np.testing.assert_allclose([load.sum(), probability.sum()], [4, 1], rtol=1e-5)


@pytest.fixture
def prose(tmp_path, monkeypatch):
    monkeypatch.setenv("SURGE_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "prose.txt"
    path.write_text("what is measured need not be assumed. " * 50)
    return str(path)


@pytest.mark.slow
def test_balance_over_a_batch_couples_its_examples(prose):
    options: dict[str, Any] = {
        "source": prose,
        "context": 8,
        "evaluation_examples": 4,
        "balance": 1.0,
    }
    single = moe.text(**options)
    alone = moe.text(**options, balance_over="batch", ghost=1)
    coupled = moe.text(**options, balance_over="batch", ghost=4)
    assert alone.batch_loss is not None and coupled.batch_loss is not None
    params = single.init(jax.random.key(0))
    windows = single.evaluation
    one_by_one = evaluate(single, params, windows)
    np.testing.assert_allclose(alone.batch_loss(params, windows), one_by_one, rtol=1e-6)
    assert abs(coupled.batch_loss(params, windows) - one_by_one) > 1e-6
    with pytest.raises(ValueError, match="balance couples the examples"):
        coupled.loss(params, windows[0])
    train = jax.jit(make_train(single, lambda rate, *_: optax.adam(rate), microbatch_size=4))
    cell = Cell(1e-2, jax.random.key(0), 4, np.array([1, 40]))
    result = train(cell, Shared(0.0, single.data, single.evaluation))
    assert result.loss[1] < result.loss[0] - 1
    with pytest.raises(ValueError, match="active must be"):
        moe.text(**options, active=9)
    with pytest.raises(ValueError, match="balance_over must be"):
        moe.text(**options, balance_over="x")


@pytest.mark.slow
def test_experts_in_bfloat16_have_a_finite_loss_and_float32_parameters(prose):
    task = moe.text(source=prose, context=8, evaluation_examples=4, dtype="bfloat16")
    train = jax.jit(make_train(task, lambda rate, *_: optax.adam(rate), microbatch_size=4))
    cell = Cell(1e-2, jax.random.key(0), 4, np.array([1, 40]))
    result = train(cell, Shared(0.0, task.data, task.evaluation))
    assert np.isfinite(result.loss).all() and result.loss[1] < result.loss[0] - 1
    assert {leaf.dtype for leaf in jax.tree.leaves(result.state.params)} == {jnp.dtype("float32")}


def get_config(name):
    return runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"]


@pytest.mark.slow
def test_experts_balanced_over_a_batch_are_measured_in_ghost_batches(prose, tmp_path):
    config = get_config("moe")("quick")
    config.task_args.update(
        source=prose, context=8, evaluation_examples=16, balance_over="batch", routed=4, hidden=8
    )
    config.batch_sizes = (4, 8)
    config.measure.update(losses=(), examples=64, branch_examples=1)
    pipeline.run(config, tmp_path / "run", ("measure",))
    found = files.read_dataset(tmp_path / "run" / "measure.nc")
    assert (found.noise_scale.sel(scale="b_simple") > 0).all() and found.measured_lr.sizes[
        "batch_size"
    ] == 2


def test_a_task_that_cannot_be_found_is_one_sentence():
    for name, sentence in (
        ("surge.tasks.mlp", "must read module:function"),
        ("nowhere:task", "must be importable from here"),
        ("surge.tasks.mlp:nothing", "has no function nothing"),
    ):
        with pytest.raises(ValueError, match=sentence):
            make_task(name)


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.py")))
def test_configs_are_complete_at_every_scale(name):
    variants = get_config(name)
    with pytest.raises(ValueError, match="no variant 'big'"):
        variants("big")
    for variant in ("", "quick", "full"):
        config = variants(variant)
        assert plan(check(config))


# Its Table 1: learning rates, batch sizes in examples, seeds.
PAPER = {
    "fashion_mnist": ((1e-4, 1e-3), (*range(1, 13), *range(64, 1165, 100)), 100),
    "tiny_imagenet": ((1e-4, 7.9e-4), tuple(range(16, 377, 33)), 100),
    "distilgpt2": ((1e-5, 5.5e-4), tuple(range(4, 115, 10)), 30),
    "moe": ((2e-6, 6e-5), tuple(192 * 2**k for k in range(7)), 10),
}


@pytest.mark.parametrize("name", PAPER)
def test_full_scale_is_the_papers(name):
    config = get_config(name)("full")
    (low, high), sizes, seeds = PAPER[name]
    assert (config.batch_sizes, config.seeds) == (sizes, seeds)
    for optimizer in config.optimizers:
        (rates,) = {
            piece.learning_rates for piece in plan(check(config)) if piece.optimizer == optimizer
        }
        assert rates[0] <= low < high <= rates[-1]


def test_the_quadratic_has_a_correlated_variant():
    options = get_config("quadratic")("correlated").task_args
    covariance = problem(**options).noise_root @ problem(**options).noise_root.T
    assert covariance[0, 1] / covariance[0, 0] == pytest.approx(0.3)
    assert get_config("quadratic")().task_args.correlation == 0
