"""One-step optima from a checkpoint, on quadratics whose answers are known."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from surge.gradients import independent, one_step
from surge.gradients.directions import Stepper
from surge.gradients.moments import per_example_moments
from surge.optimizers import gradient_weights, make_optimizer
from surge.tasks.quadratic import problem, quadratic
from surge.theory import laws
from surge.theory.laws import Hessian

SIZES = (1, 8, 64, 512, 4096)


def exact(kind, correlation, sizes=SIZES):
    """The law in closed form on the exact μ, Σ, H: {spec: ε_opt [b]}."""
    known = problem(**kind, correlation=correlation)
    mu, sigma, matrix = (jnp.asarray(each, jnp.float32) for each in (known.mu, known.sigma, known.hessian))
    rho = jnp.asarray(known.noise_root @ known.noise_root.T / np.outer(known.sigma, known.sigma), jnp.float32)
    covariance = known.noise_root @ known.noise_root.T
    trace = float(np.trace(known.hessian @ covariance))
    batch = np.array(sizes, float)
    sign = lambda size: np.asarray(laws.sign_descent_correlated(size, mu, sigma, matrix, rho).optimal_lr)  # noqa: E731
    plain = lambda size: np.asarray(laws.sgd(size, mu, Hessian.dense(matrix), trace).optimal_lr)  # noqa: E731
    return {
        "sign_sgd": sign(batch),
        "sgd": plain(batch),
        "momentum": 0.1 * plain(laws.momentum_batch(batch, 0.9)),
        "adam": np.array([_adam(known, covariance, size) for size in sizes]),
        "lion": sign(laws.lion_batch(batch)),
    }


def _adam(known, covariance, size):
    """Mean-field Adam with its second moment at the mean and the momentum's 19 batches averaged."""
    root = np.sqrt(known.mu**2 + known.sigma**2 / size)
    mean, spread = known.mu / root, covariance / (19 * size) / np.outer(root, root)
    return (mean @ known.mu) / (mean @ known.hessian @ mean + np.trace(known.hessian @ spread))


def sample(task, spec, key, count=256, sizes=SIZES):
    point = task.loss, task.init(jax.random.key(0)), task.draw, task.data, task.evaluation
    return one_step.sample_steps(*point, {spec: STEPPERS[spec]}, sizes, key, count=count).samples[spec]


STEPPERS = {
    spec: Stepper(make_optimizer(spec), partial(gradient_weights, spec))
    for spec in ("sign_sgd", "sgd", "momentum", "adam", "lion")
}
KIND = {"hessian": "rank_one", "size": 40, "noise": 8.0}


def coverage(spec, correlation, repetitions, sizes):
    """Share of intervals that hold the exact optimum [b]."""
    task, truth = quadratic(**KIND, correlation=correlation), exact(KIND, correlation, sizes)[spec]
    covered = []
    for repetition in range(repetitions):
        law = one_step.measured_law(sample(task, spec, jax.random.key(repetition), count=64, sizes=sizes))
        rounding = 1e-3 * truth  # where every sign is certain the interval has no width
        covered.append((law.low <= truth + rounding) & (truth - rounding <= law.high))
    return np.mean(covered, 0)


@pytest.mark.parametrize("spec", ["sign_sgd", "sgd", "momentum", "adam"])
def test_measured_law_covers_the_exact_optimum(spec):
    assert coverage(spec, 0.3, 10, (1, 100, 10_000)).mean() >= 0.9 - 3 * np.sqrt(0.09 / 30)


@pytest.mark.slow
@pytest.mark.parametrize("correlation", [0.0, 0.3])
@pytest.mark.parametrize("spec", ["sign_sgd", "sgd", "momentum", "adam", "lion"])
def test_measured_law_covers_the_exact_optimum_at_every_batch_size(spec, correlation):
    covered = coverage(spec, correlation, 60, (1, 10, 100, 1000, 10_000))
    assert covered.mean() >= 0.9
    assert covered.min() >= 0.9 - 3 * np.sqrt(0.09 / 60)


@pytest.mark.parametrize("spec", ["sign_sgd", "adam"])
def test_measured_law_agrees_with_the_oracle(spec):
    samples = sample(quadratic(**KIND, correlation=0.3), spec, jax.random.key(0), sizes=SIZES[1:])
    ratio = one_step.measured_law(samples).lr / one_step.one_step_oracle(samples).lr
    np.testing.assert_array_less(np.abs(np.log(ratio)), np.log(1.02))


def test_adam_directions_match_the_mean_field():
    known = problem(**KIND)
    task = quadratic(**KIND)
    samples = sample(task, "adam", jax.random.key(1), count=512, sizes=(16, 1024))
    mu, sigma = jnp.asarray(known.mu, jnp.float32), jnp.asarray(known.sigma, jnp.float32)
    hessian = Hessian.dense(jnp.asarray(known.hessian, jnp.float32))
    law = laws.adam_mean_field(jnp.asarray([16.0, 1024.0]), mu, sigma, hessian)
    for each, drift, curvature in zip(samples, law.drift, law.curvature, strict=True):
        for values, expected in ((each.drift, drift), (each.curvature, curvature)):
            assert abs(values.mean() - float(expected)) < 4 * values.std() / np.sqrt(512) + 0.05 * float(expected)


@pytest.mark.parametrize("correlation", [0.0, 0.3])
def test_independent_law_holds_where_its_assumption_does_and_fails_where_not(correlation):
    task = quadratic(**KIND, correlation=correlation)
    params = task.init(jax.random.key(0))
    draw = jax.vmap(partial(task.draw, task.data))
    groups = [
        per_example_moments(task.loss, params, draw(jax.random.split(key, 512)))
        for key in jax.random.split(jax.random.key(3), 8)
    ]
    hessian = independent.flat_hessian(task.loss, params, task.evaluation, jax.random.key(4))
    law = independent.independent_law(hessian, groups, SIZES[:4])
    ratio = law.lr / exact(KIND, correlation, SIZES[:4])["sign_sgd"]
    if correlation:
        assert ratio[0] > 2  # sees none of the noise that the coordinates share
    else:
        np.testing.assert_array_less(np.abs(np.log(ratio)), np.log(1.15))


def test_sign_summary_holds_the_known_coefficients():
    task, known = quadratic(**KIND), problem(**KIND)
    params = task.init(jax.random.key(0))
    draw = jax.vmap(partial(task.draw, task.data))
    groups = [
        per_example_moments(task.loss, params, draw(jax.random.split(key, 4096)))
        for key in jax.random.split(jax.random.key(5), 8)
    ]
    summary = independent.sign_summary(
        independent.flat_hessian(task.loss, params, task.evaluation, jax.random.key(6)), groups
    )
    mu, sigma = jnp.asarray(known.mu), jnp.asarray(known.sigma)
    exact = laws.surge_coefficients(mu, sigma, Hessian.dense(jnp.asarray(known.hessian)))
    assert summary.mu_l1 == pytest.approx(np.abs(known.mu).sum(), rel=0.05)
    assert summary.r == pytest.approx(known.hessian.trace() / (known.hessian.sum() - known.hessian.trace()), rel=0.1)
    assert (summary.b_noise, summary.max_lr) == pytest.approx((float(exact.b_noise), float(exact.max_lr)), rel=0.15)


def test_no_curvature_is_nan_with_a_reason():
    flat = one_step.StepSample(np.ones(8), -np.ones(8), np.ones(8), np.ones(3), np.ones((3, 8)))
    law = one_step.measured_law([flat])
    assert np.isnan(law.lr[0]) and "q <= 0" in law.why[0]
    losses = np.array([[3.0], [2.0], [1.0]]) * np.ones(8)
    edge = one_step.StepSample(np.ones(8), np.ones(8), np.ones(8), np.array([1.0, 2.0, 4.0]), losses)
    oracle = one_step.one_step_oracle([edge])
    assert np.isnan(oracle.lr[0]) and "edge" in oracle.why[0]
