"""The mean over all tokens of a batch: right in training, in moments and in noise scales."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import surge
from surge.gradients.curvature import hvp
from surge.gradients.moments import per_example_moments
from surge.gradients.ratio import as_mean
from surge.measurement.point import Point, Problem
from surge.optimizers import make_optimizer
from surge.tasks import Task, draw_from_arrays
from surge.tasks.check import TaskError, check_task
from surge.training.run import Cell, Shared, evaluate, make_train
from surge.training.step import batch_gradient

LENGTH = 6
RNG = np.random.default_rng(0)
COUNTS = RNG.integers(1, LENGTH + 1, 512)
DATA = {
    "x": RNG.normal(size=(512, LENGTH, 3)).astype(np.float32),
    "y": RNG.normal(size=(512, LENGTH)).astype(np.float32) + COUNTS[:, None],  # longer is harder
    "mask": (np.arange(LENGTH) < COUNTS[:, None]).astype(np.float32),
}
THETA = jnp.array([0.3, -0.2, 0.5])
KEY = jax.random.key(4)


def tokens(example):
    return example["mask"].sum()


def loss(params, example):
    """The mean over the tokens of one sequence."""
    off = jnp.tanh(example["x"] @ params) - example["y"]
    return (example["mask"] * off**2).sum() / example["mask"].sum()


TASK = Task(lambda key: THETA, loss, DATA, draw_from_arrays, DATA, weight=tokens)


def sums(params, example):
    """Loss summed over the tokens of one sequence: a second way to say it."""
    off = jnp.tanh(example["x"] @ params) - example["y"]
    return (example["mask"] * off**2).sum()


def token_mean(params, examples):
    """Σ of token losses / Σ of tokens, in one expression."""
    return jax.vmap(sums, (None, 0))(params, examples).sum() / examples["mask"].sum()


def drawn(key, batch_size):
    keys = [jax.random.fold_in(key, i) for i in range(batch_size)]
    examples = [draw_from_arrays(DATA, one) for one in keys]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *examples)


@pytest.mark.parametrize("batch_size", [1, 5, 12])
def test_the_gradient_of_a_batch_is_that_of_its_token_mean(batch_size):
    got = batch_gradient(TASK, THETA, DATA, KEY, batch_size, 4)
    want = jax.grad(token_mean)(THETA, drawn(KEY, batch_size))
    np.testing.assert_allclose(got, want, rtol=1e-5)
    plain = batch_gradient(TASK._replace(weight=None), THETA, DATA, KEY, batch_size, 4)
    assert (batch_size == 1) == np.allclose(got, plain, rtol=1e-4)


def test_a_run_equals_a_plain_loop_over_token_means():
    cell = Cell(0.05, KEY, 6, np.array([1, 8], np.int32))
    train = jax.jit(make_train(TASK, lambda rate, *_: optax.sgd(rate), microbatch_size=4))
    run = train(cell, Shared(-np.inf, DATA, DATA))
    params = THETA
    for index in range(8):
        examples = drawn(jax.random.fold_in(jax.random.split(KEY)[1], index), 6)
        params = params - 0.05 * jax.grad(token_mean)(params, examples)
    np.testing.assert_allclose(run.state.params, params, rtol=1e-4)
    assert run.loss[-1] == pytest.approx(float(token_mean(params, DATA)), rel=1e-4)


def test_a_batch_without_any_tokens_moves_nothing():
    empty = TASK._replace(weight=lambda example: 0 * tokens(example))
    np.testing.assert_array_equal(batch_gradient(empty, THETA, DATA, KEY, 5, 4), 0)


def influences():
    """[n, p] by hand, in float64: μ + (w/w̄)(g − μ)."""
    gradients = np.asarray(jax.vmap(jax.grad(loss), (None, 0))(THETA, DATA), float)
    share = COUNTS / COUNTS.mean()
    mu = (share[:, None] * gradients).mean(0)
    return mu, mu + share[:, None] * (gradients - mu)


def test_moments_are_those_of_the_influences():
    mu, rows = influences()
    moments = per_example_moments(as_mean(loss, tokens, THETA, DATA), THETA, DATA)
    np.testing.assert_allclose(moments.mean, mu, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(moments.variance, rows.var(0, ddof=1), rtol=1e-4)
    np.testing.assert_allclose(mu, jax.grad(token_mean)(THETA, DATA), rtol=1e-4)


def test_noise_is_that_of_real_batches_and_not_of_the_mean_of_means():
    """Batches of 32 sequences, their token means differentiated: B times their covariance."""
    _, rows = influences()
    batches = RNG.integers(0, 512, (4_000, 32))
    gradient = jax.jit(jax.vmap(jax.grad(token_mean), (None, 0)))
    seen = np.asarray(gradient(THETA, jax.tree.map(lambda leaf: leaf[batches], DATA)), float)
    trace = 32 * seen.var(0).sum()
    measured = rows.var(0).sum()
    plain = np.asarray(jax.vmap(jax.grad(loss), (None, 0))(THETA, DATA)).var(0).sum()
    assert measured == pytest.approx(trace, rel=0.05)
    assert abs(plain / trace - 1) > 0.1


def test_the_curvature_is_that_of_the_token_mean():
    vector = jnp.array([1.0, -2.0, 0.5])
    got = hvp(as_mean(loss, tokens, THETA, DATA), THETA, DATA, vector)
    want = jax.hessian(lambda params: token_mean(params, DATA))(THETA) @ vector
    np.testing.assert_allclose(got, want, rtol=1e-4)


def test_measure_takes_a_weight():
    mu, rows = influences()
    found = surge.measure(loss, THETA, [DATA], weight=tokens)
    n = len(rows)
    signal = ((rows.sum(0) ** 2).sum() - (rows**2).sum()) / (n * (n - 1))
    trace = (rows**2).sum(1).mean() - signal
    assert found.b_simple.value == pytest.approx(trace / signal, rel=1e-3)
    np.testing.assert_allclose(found.moments.mean, mu, rtol=1e-4, atol=1e-6)
    summed = surge.measure(loss, THETA, [DATA], weight=lambda example: 3.0)
    plain = surge.measure(loss, THETA, [DATA])
    np.testing.assert_allclose(summed.b_simple[:3], plain.b_simple[:3], rtol=1e-4)


def test_a_checkpoint_is_measured_by_its_weights():
    problem = Problem(TASK, {"sgd": "sgd"}, (16,), 0, 512, 8, (1,), 1_000)
    point = Point(problem, THETA, 0)
    _, rows = influences()
    assert point.single.weight is None
    trace = sum(np.asarray(point.noise.moments.variance).ravel())
    assert trace == pytest.approx(rows.var(0).sum(), rel=0.25)  # of 512 fresh draws
    assert evaluate(TASK, THETA, DATA) == pytest.approx(float(token_mean(THETA, DATA)), rel=1e-5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weight": lambda example: example["mask"]}, "must return one real number"),
        ({"weight": lambda example: example["length"]}, "weight raises KeyError"),
        ({"batch_loss": token_mean}, "leave out the weight"),
    ],
)
def test_each_mistake_in_a_weight_is_one_sentence(change, said):
    with pytest.raises(TaskError, match=said):
        check_task(TASK._replace(**change))


def test_an_optimizer_of_single_examples_refuses_weights():
    train = make_train(TASK, make_optimizer("examplewise_adam"), microbatch_size=4)
    cell = Cell(0.05, KEY, 6, np.array([1], np.int32))
    with pytest.raises(ValueError, match="examplewise_adam needs examples that count alike"):
        jax.eval_shape(train, cell, Shared(-np.inf, DATA, DATA))
