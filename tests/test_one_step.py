"""One-step optima from a checkpoint, on quadratics whose answers are known."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from surge.gradients import independent, one_step
from surge.gradients.directions import GROUPS, PoolSource, directions
from surge.gradients.moments import per_example_moments
from surge.gradients.steps import StepSample, sample_steps
from surge.optimizers import make_optimizer
from surge.tasks.quadratic import problem, quadratic
from surge.theory import derivations, momentum
from surge.theory.second_order import Hessian

SIZES = (1, 8, 64, 512, 4096)


def exact(kind, correlation, sizes=SIZES):
    """The law in closed form on the exact μ, Σ, H: {spec: ε_opt [b]}."""
    known = problem(**kind, correlation=correlation)
    mu, sigma, matrix = (
        jnp.asarray(each, jnp.float32) for each in (known.mu, known.sigma, known.hessian)
    )
    rho = jnp.asarray(
        known.noise_root @ known.noise_root.T / np.outer(known.sigma, known.sigma), jnp.float32
    )
    covariance = known.noise_root @ known.noise_root.T
    trace = float(np.trace(known.hessian @ covariance))
    batch = np.array(sizes, float)

    def sign(size):
        return np.asarray(
            derivations.sign_descent_correlated(size, mu, sigma, matrix, rho).optimal_lr
        )

    def plain(size):
        return np.asarray(derivations.sgd(size, mu, Hessian.dense(matrix), trace).optimal_lr)

    return {
        "sign_sgd": sign(batch),
        "sgd": plain(batch),
        "momentum": 0.1 * plain(momentum.momentum_batch(batch, 0.9)),
        "adam": np.array([_adam(known, covariance, size) for size in sizes]),
        "lion": sign(momentum.lion_batch(batch)),
    }


def _adam(known, covariance, size):
    """Mean-field Adam with its second moment at the mean and the momentum's 19 batches averaged."""
    root = np.sqrt(known.mu**2 + known.sigma**2 / size)
    mean, spread = known.mu / root, covariance / (19 * size) / np.outer(root, root)
    return (mean @ known.mu) / (mean @ known.hessian @ mean + np.trace(known.hessian @ spread))


def sample(task, spec, key, count=256, sizes=SIZES):
    point = task.loss, task.init(jax.random.key(0)), task.draw, task.data, task.evaluation
    return sample_steps(*point, {spec: OPTIMIZERS[spec]}, sizes, key, count=count).samples[spec]


OPTIMIZERS = {
    spec: make_optimizer(spec) for spec in ("sign_sgd", "sgd", "momentum", "adam", "lion")
}
KIND: dict[str, Any] = {"hessian": "rank_one", "size": 40, "noise": 8.0}


def coverage(spec, correlation, repetitions, sizes):
    """Share of intervals that hold the exact optimum [b]."""
    task, truth = quadratic(**KIND, correlation=correlation), exact(KIND, correlation, sizes)[spec]
    covered = []
    for repetition in range(repetitions):
        law = one_step.measured_law(
            sample(task, spec, jax.random.key(repetition), count=64, sizes=sizes)
        )
        rounding = 1e-3 * truth  # where every sign is certain the interval has no width
        covered.append((law.low <= truth + rounding) & (truth - rounding <= law.high))
    return np.mean(covered, 0)


@pytest.mark.parametrize("spec", ["sign_sgd", "sgd"])
def test_measured_law_covers_the_exact_optimum(spec):
    assert coverage(spec, 0.3, 10, (1, 100, 1_000)).mean() >= 0.9 - 3 * np.sqrt(0.09 / 30)


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
    law = derivations.adam_mean_field(jnp.asarray([16.0, 1024.0]), mu, sigma, hessian)
    for each, drift, curvature in zip(samples, law.drift, law.curvature, strict=True):
        for values, expected in ((each.drift, drift), (each.curvature, curvature)):
            assert abs(values.mean() - float(expected)) < 4 * values.std() / np.sqrt(
                512
            ) + 0.05 * float(expected)


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
    exact = derivations.surge_coefficients(mu, sigma, Hessian.dense(jnp.asarray(known.hessian)))
    assert summary.mu_l1 == pytest.approx(np.abs(known.mu).sum(), rel=0.05)
    assert summary.r == pytest.approx(
        known.hessian.trace() / (known.hessian.sum() - known.hessian.trace()), rel=0.1
    )
    assert (summary.b_noise, summary.max_lr) == pytest.approx(
        (float(exact.b_noise), float(exact.max_lr)), rel=0.15
    )


def step_sample(drift, curvature):
    """Directions that all have one drift and curvature, but for a tenth of scatter from group to
    group."""
    scatter = 1 + 0.1 * np.random.default_rng(0).normal(size=8)
    return StepSample(drift * scatter, curvature * scatter, np.ones(8), np.ones(3), np.ones((3, 8)))


def test_measured_surge_has_the_coefficients_that_a_and_q_were_made_of():
    sizes = (1, 4, 16, 64, 256)
    found = one_step.measured_surge(
        [step_sample(3 * size**0.5, 20 + 0.5 * size) for size in sizes], sizes
    )
    assert found.n == 4  # up to 64: the highest of these lies at N/K' = 40
    assert found.b_noise == pytest.approx([40, 40, 40])
    np.testing.assert_allclose(found.max_lr, 3 / (2 * np.sqrt(10)), rtol=1e-6)


def test_measured_surge_on_correlated_noise_is_that_of_the_exact_law_at_small_batches():
    noisy, sizes = KIND | {"noise": 30.0}, (4, 16, 64, 256)  # small batches all: |μ|/σ is 1/30
    known = problem(**noisy, correlation=0.3)
    samples = sample(
        quadratic(**noisy, correlation=0.3), "sign_sgd", jax.random.key(0), sizes=sizes, count=1024
    )
    found = one_step.measured_surge(samples, sizes)
    mu, sigma, matrix = (
        jnp.asarray(each, jnp.float32) for each in (known.mu, known.sigma, known.hessian)
    )
    rho = jnp.asarray(
        known.noise_root @ known.noise_root.T / np.outer(known.sigma, known.sigma), jnp.float32
    )
    small = jnp.array([1.0, 33.0])
    first, second = (
        float(each)
        for each in derivations.sign_descent_correlated(small, mu, sigma, matrix, rho).curvature
    )
    truth = first / (
        (second - first) / 32
    )  # N over the slope of q in B, which holds that the noise of signs shrinks
    assert found.b_noise[1] / 1.3 < truth < found.b_noise[2] * 1.3
    assert found.b_noise[0] == pytest.approx(truth, rel=0.5)


def test_measured_surge_without_one_says_why():
    sizes = (1, 4, 16)
    falling = one_step.measured_surge([step_sample(1.0, 1.0 * size) for size in sizes], sizes)
    assert np.isnan(falling.b_noise).all() and "fewer than three" in falling.why
    rising = one_step.measured_surge([step_sample(size**0.5, 1.0) for size in sizes], sizes)
    assert rising.b_noise[0] == np.inf and not rising.why


def source(task, members, size):
    params = task.init(jax.random.key(0))
    return params, PoolSource(
        task.loss, params, task.draw, task.data, jax.random.key(9), members=members, size=size
    )


def test_pool_holds_plain_gradients_of_nested_batches():
    task = quadratic(**KIND)
    params, pools = source(task, 2, 64 * 3)
    key = jax.random.split(jax.random.key(9), GROUPS)[3]

    def gradient(batch, size):
        """The mean over the first examples of one batch, drawn and differentiated one by one."""
        keys = [jax.random.fold_in(jax.random.fold_in(key, batch), index) for index in range(size)]
        return np.mean(
            [jax.grad(task.loss)(params, task.draw(task.data, each)) for each in keys], 0
        )

    for size in (64, 5, 1, 4096):
        pool = pools.at(size)
        assert pool.drawn == min(size, 64) and pool.size == 192
        np.testing.assert_allclose(
            pool.members[3, 1], gradient(1, pool.drawn), rtol=1e-4, atol=1e-4
        )
    np.testing.assert_allclose(
        pool.centre[3], np.mean([gradient(b, 64) for b in range(3)], 0), rtol=1e-4, atol=1e-4
    )
    known = problem(**KIND)
    np.testing.assert_allclose(
        np.mean(pool.variance / np.diag(known.noise_root @ known.noise_root.T)), 1, atol=0.2
    )
    assert pools.examples == GROUPS * (3 * 64 + 2 * (5 + 1))
    lion = OPTIMIZERS["lion"]  # whose update averages 71 batches
    pool = pools.for_update(lion, 1)
    first, rest = gradient(0, 64), lion.examples(1) - 64
    np.testing.assert_allclose(
        pool.centre[3], (64 * first + rest * gradient(1, rest)) / (64 + rest), rtol=1e-4, atol=1e-4
    )
    assert pool.size == lion.examples(1) and pools.examples == GROUPS * (
        3 * 64 + 2 * (5 + 1 + 1) + pool.size
    )


def test_directions_have_the_mean_and_covariance_of_a_batch_also_beyond_the_pool():
    task, known = quadratic(**KIND, correlation=0.3), problem(**KIND, correlation=0.3)
    covariance = known.noise_root @ known.noise_root.T
    for spec, size, batches in (("sgd", 4, 1), ("sgd", 300, 1), ("momentum", 16, 19)):
        params, pools = source(task, 64, OPTIMIZERS[spec].examples(size))
        pool = pools.for_update(OPTIMIZERS[spec], size)
        found = np.asarray(
            directions(params, pool, OPTIMIZERS[spec], size, jax.random.key(1), count=512)
        )
        gain = 10.0 if spec == "momentum" else 1.0  # of a decay of 0.9
        spread = np.trace(np.cov(found.T)) / gain**2 * batches * size
        assert spread == pytest.approx(np.trace(covariance), rel=0.25)
        assert np.abs(found.mean(0) / gain - known.mu).mean() < 4 * np.sqrt(
            np.trace(covariance) / 40 / size / 100
        )


def test_no_curvature_is_nan_with_a_reason():
    flat = StepSample(np.ones(8), -np.ones(8), np.ones(8), np.ones(3), np.ones((3, 8)))
    law = one_step.measured_law([flat])
    assert np.isnan(law.lr[0]) and "q <= 0" in law.why[0]
    losses = np.array([[3.0], [2.0], [1.0]]) * np.ones(8)
    rates = np.array([1.0, 2.0, 4.0])
    edge = StepSample(np.ones(8), np.ones(8), np.full(8, 4.0), rates, losses)
    level = edge._replace(start=np.ones(8))
    oracle = one_step.one_step_oracle([edge, level])
    assert np.isnan(oracle.lr).all() and "edge" in oracle.why[0]
    assert "no step of this direction lowers the loss" in oracle.why[1]
