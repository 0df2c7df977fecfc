"""Laws against simulation, known values and limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erfinv

from surge.theory import laws
from surge.theory.laws import LAWS, Hessian

RNG = np.random.default_rng(0)
SIZE = 24
MU = RNG.normal(size=SIZE) + 0.5
SIGMA = RNG.uniform(2.0, 12.0, SIZE)
_RANDOM = RNG.normal(size=(SIZE, SIZE))
HESSIANS = {
    "diagonal": np.diag(RNG.uniform(0.5, 2.0, SIZE)),
    "rank_one": np.eye(SIZE) + 0.2 * np.ones((SIZE, SIZE)),
    "indefinite": np.eye(SIZE) + 0.1 * (_RANDOM + _RANDOM.T) * (1 - np.eye(SIZE)),
    "random": _RANDOM @ _RANDOM.T / SIZE,
}


def simulate(direction, batch_size, hessian, root, draws=40_000):
    """Mean and standard error of uᵀμ and uᵀHu over drawn mini-batch gradients: the second implementation."""
    noise = np.random.default_rng(int(batch_size)).normal(size=(draws, SIZE)) @ root.T
    u = direction(MU + noise / np.sqrt(batch_size))
    parts = u @ MU, np.einsum("ki,ij,kj->k", u, hessian, u)
    return [(each.mean(), each.std() / np.sqrt(draws)) for each in parts]


def agrees(law, simulated):
    for value, (mean, error) in zip(law, simulated, strict=True):
        assert abs(float(value) - mean) <= 4 * error + 1e-4 * abs(mean)


@pytest.mark.parametrize("name", HESSIANS)
@pytest.mark.parametrize("batch_size", [1, 30, 1e3, 1e5])
def test_sign_descent_equals_simulation(name, batch_size):
    law = laws.sign_descent(
        batch_size, jnp.asarray(MU), jnp.asarray(SIGMA), Hessian.dense(jnp.asarray(HESSIANS[name]))
    )
    agrees(law, simulate(np.sign, batch_size, HESSIANS[name], np.diag(SIGMA)))


@pytest.mark.parametrize("batch_size", [1, 100, 1e4])
def test_sgd_equals_simulation(batch_size):
    matrix = HESSIANS["random"]
    trace = float((np.diag(matrix) * SIGMA**2).sum())
    law = laws.sgd(batch_size, jnp.asarray(MU), Hessian.dense(jnp.asarray(matrix)), trace)
    agrees(law, simulate(lambda g: g, batch_size, matrix, np.diag(SIGMA)))


@pytest.mark.parametrize("rho", [-0.04, 0.0, 0.4, 0.95])
@pytest.mark.parametrize("batch_size", [1, 30, 300])
def test_correlated_sign_descent_equals_simulation(batch_size, rho):
    rho = rho * np.ones((SIZE, SIZE)) + (1 - rho) * np.eye(SIZE)
    root = np.diag(SIGMA) @ np.linalg.cholesky(rho)
    matrix = HESSIANS["rank_one"]
    law = laws.sign_descent_correlated(batch_size, *(jnp.asarray(each) for each in (MU, SIGMA, matrix, rho)))
    agrees(law, simulate(np.sign, batch_size, matrix, root))


def test_independence_underrates_the_noise_of_correlated_signs():
    rho = 0.4 * np.ones((SIZE, SIZE)) + 0.6 * np.eye(SIZE)
    matrix = jnp.asarray(HESSIANS["rank_one"])
    mu, sigma = jnp.asarray(MU), jnp.asarray(SIGMA)
    correlated = laws.sign_descent_correlated(1.0, mu, sigma, matrix, jnp.asarray(rho))
    assert float(correlated.curvature) > 1.2 * float(
        laws.sign_descent(1.0, mu, sigma, Hessian.dense(matrix)).curvature
    )


@pytest.mark.parametrize("batch_size", [1, 100])
def test_softened_sign_equals_simulation(batch_size):
    eps = 0.7
    mean = laws.softened_sign_mean(batch_size, jnp.asarray(MU), jnp.asarray(SIGMA), eps)
    draws = MU + np.random.default_rng(0).normal(size=(100_000, SIZE)) * SIGMA / np.sqrt(batch_size)
    soft = draws / (np.abs(draws) + eps)
    np.testing.assert_array_less(np.abs(mean - soft.mean(0)), 4 * soft.std(0) / np.sqrt(len(draws)))


def test_adam_mean_field_equals_simulation():
    """β2 = 0.99 at still parameters: the drift and the noise of m̂/√v̂."""
    rng, batch_size, b1, b2, chains, steps = np.random.default_rng(0), 50.0, 0.9, 0.99, 4000, 600
    spread = SIGMA / np.sqrt(batch_size)
    m, v = np.tile(MU, (chains, 1)), np.tile(MU**2 + spread**2, (chains, 1))
    for _ in range(steps):
        g = MU + rng.normal(size=(chains, SIZE)) * spread
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
    u = m / np.sqrt(v)
    matrix = HESSIANS["rank_one"]
    law = laws.adam_mean_field(batch_size, jnp.asarray(MU), jnp.asarray(SIGMA), Hessian.dense(jnp.asarray(matrix)), b1)
    assert float(law.drift) == pytest.approx((u @ MU).mean(), rel=0.02)
    assert float(law.curvature) == pytest.approx(np.einsum("ki,ij,kj->k", u, matrix, u).mean(), rel=0.03)


def test_low_rank_hessian_equals_dense():
    factor = RNG.normal(size=(SIZE, 2))
    diagonal = RNG.uniform(size=SIZE)
    dense = Hessian.dense(jnp.asarray(np.diag(diagonal) + factor @ factor.T))
    low = Hessian.low_rank(jnp.asarray(diagonal), jnp.asarray(factor))
    np.testing.assert_allclose(low.diagonal, dense.diagonal, rtol=1e-5)
    np.testing.assert_allclose(low.product(jnp.asarray(MU)), dense.product(jnp.asarray(MU)), rtol=1e-4)


@pytest.mark.parametrize(("r", "plateau"), [(0.01, 0.198), (0.1, 0.575), (0.3, 0.843), (0.6, 0.968)])
def test_homogeneous_law_has_the_known_peak_and_plateau(r, plateau):
    snr = 0.05
    sizes = jnp.geomspace(1, 1e8, 200_001)
    curve = laws.homogeneous(sizes, 3.0, r, 1.0, snr)
    assert float(sizes[curve.argmax()]) == pytest.approx(2 * erfinv(np.sqrt(r)) ** 2 / snr**2, rel=0.02)
    assert float(curve[-1] / curve.max()) == pytest.approx(plateau, abs=2e-3)
    # The same curve as a `saturating_surge`, which is parametrised by its peak height.
    same = laws.saturating_surge(sizes, curve.max(), 2 / snr**2, r)
    np.testing.assert_allclose(same, curve, rtol=1e-3)
    assert LAWS["saturating_surge"].peak(1.0, 2 / snr**2, r)[0] == pytest.approx(2 * erfinv(np.sqrt(r)) ** 2 / snr**2)


def test_surge_has_the_table_of_theory():
    table = {2: 0.943, 3: 0.866, 4: 0.800, 6: 0.700, 10: 0.575, 30: 0.353}
    for k, share in table.items():
        assert float(laws.surge(k * 7.0, 1.0, 7.0)) == pytest.approx(share, abs=1e-3)
        assert float(laws.surge(7.0 / k, 1.0, 7.0)) == pytest.approx(share, abs=1e-3)


def test_small_batch_coefficients_are_the_limit_of_the_exact_law():
    matrix = np.eye(SIZE) + 0.5 * np.ones((SIZE, SIZE))
    mu, sigma = np.full(SIZE, 1.0), np.full(SIZE, 1e3)
    hessian = Hessian.dense(jnp.asarray(matrix))
    surge = laws.surge_coefficients(jnp.asarray(mu), jnp.asarray(sigma), hessian)
    size = float(surge.b_noise) / 100
    exact = laws.sign_descent(size, jnp.asarray(mu), jnp.asarray(sigma), hessian)
    assert float(exact.optimal_lr) == pytest.approx(float(laws.surge(size, surge.max_lr, surge.b_noise)), rel=1e-2)
    assert float(exact.gain) == pytest.approx(float(laws.gain(size, surge.max_gain, surge.b_noise)), rel=1e-2)


def test_diagonal_hessian_has_no_peak():
    hessian = Hessian.dense(jnp.asarray(HESSIANS["diagonal"]))
    coefficients = laws.surge_coefficients(jnp.asarray(MU), jnp.asarray(SIGMA), hessian)
    assert np.isinf(coefficients.b_noise) and np.isinf(coefficients.max_lr)
    rates = laws.sign_descent(jnp.geomspace(1, 1e8, 50), jnp.asarray(MU), jnp.asarray(SIGMA), hessian).optimal_lr
    assert (jnp.diff(rates) >= -1e-6).all()


def test_no_minimum_is_nan():
    law = laws.sign_descent(10.0, jnp.asarray(MU), jnp.asarray(SIGMA), Hessian.dense(-jnp.eye(SIZE)))
    assert np.isnan(law.optimal_lr) and np.isnan(law.gain)


def test_effective_batches_equal_simulation():
    """The variance of what momentum and Lion take the sign of, of unit noise in every gradient."""
    rng, steps, chains = np.random.default_rng(0), 400, 20_000
    average, slow = np.zeros(chains), np.zeros(chains)
    for _ in range(steps):
        gradient = rng.normal(size=chains)
        average = 0.9 * average + 0.1 * gradient
        lion = 0.9 * slow + 0.1 * gradient
        slow = 0.99 * slow + 0.01 * gradient
    for values, batch in ((average, laws.momentum_batch(1.0, 0.9)), (lion, laws.lion_batch(1.0, 0.9, 0.99))):
        assert 1 / values.var() == pytest.approx(batch, rel=4 * np.sqrt(2 / chains))


def test_long_run_gain_of_momentum_equals_simulation():
    """Drift² over the variance of a sum of signs, against plain sign descent, at a small μ."""
    rng, mu, steps, chains = np.random.default_rng(1), 0.02, 500, 4000
    average, total, plain = np.zeros(chains), np.zeros(chains), np.zeros(chains)
    for step in range(steps + 100):
        gradient = mu + rng.normal(size=chains)
        average = 0.9 * average + 0.1 * gradient
        if step >= 100:
            total += np.sign(average)
            plain += np.sign(gradient)
    ratio = (total.mean() ** 2 / total.var()) / (plain.mean() ** 2 / plain.var())
    assert float(laws.momentum_gain(0.9, "long_run")) == pytest.approx(ratio, rel=0.15)


def test_effective_batches_have_the_known_values():
    assert laws.lion_batch(1.0) == pytest.approx(71, abs=0.5)
    assert laws.momentum_batch(1.0, 0.9) == pytest.approx(19)
    assert laws.momentum_gain(0.9) == pytest.approx(19)
    assert float(laws.momentum_gain(0.9, "long_run")) == pytest.approx(1.43, abs=0.02)
    with pytest.raises(ValueError, match="instantaneous or long_run"):
        laws.momentum_gain(0.9, "forever")


def test_steps_and_examples_lie_on_the_hyperbola():
    sizes = np.geomspace(1, 1e5, 9)
    steps, examples = laws.steps_to_target(sizes, 20.0, 300.0), laws.examples_to_target(sizes, 6000.0, 300.0)
    np.testing.assert_allclose((steps / 20 - 1) * (examples / 6000 - 1), 1)
    np.testing.assert_allclose(examples, sizes * steps)
    assert laws.examples_to_target(laws.critical_batch_size(300.0), 1.0, 300.0) == pytest.approx(1.2)


def test_rational_sign_mean_is_a_named_approximation():
    ratio = jnp.linspace(0.01, 5, 200)
    gap = jnp.abs(laws.sign_mean_rational(4.0, ratio, 1.0) - laws.sign_mean(4.0, ratio, 1.0))
    assert 0.1 < float(gap.max()) < 0.11


def test_limits_are_reached_without_overflow_in_float32():
    sizes = jnp.asarray([1e-3, 1.0, 1e12], jnp.float32)
    mu, sigma = jnp.asarray([0.0, 1e-20, 1.0, -1.0]), jnp.asarray([0.0, 1.0, 0.0, 1e-20])
    np.testing.assert_allclose(laws.sign_mean(sizes[:, None], mu, sigma)[:, 2:], [[1, -1]] * 3)
    assert (laws.sign_mean(sizes, 0.0, 0.0) == 0).all()
    named = {"max_lr": 1e-3, "b_noise": 50.0, "alpha": 0.7, "exponent": 0.5, "b_scale": 50.0, "r": 0.1}
    for law in LAWS.values():
        values = law.function(sizes, **{name: named[name] for name in law.parameters})
        assert jnp.isfinite(values).all(), law.name
    limit = laws.large_batch_limit(jnp.asarray(MU), Hessian.dense(jnp.asarray(HESSIANS["random"])))
    far = laws.sign_descent(1e12, jnp.asarray(MU), jnp.asarray(SIGMA), Hessian.dense(jnp.asarray(HESSIANS["random"])))
    assert float(far.optimal_lr) == pytest.approx(float(limit.optimal_lr), rel=1e-5)


@pytest.mark.parametrize("name", LAWS)
def test_laws_transform(name):
    law = LAWS[name]
    named = {"max_lr": 1e-3, "b_noise": 50.0, "alpha": 0.7, "exponent": 0.5, "b_scale": 50.0, "r": 0.1}
    parameters = {each: named[each] for each in law.parameters}
    sizes = jnp.asarray([2.0, 200.0])
    direct = law.function(sizes, **parameters)
    mapped = jax.jit(jax.vmap(lambda size: law.function(size, **parameters)))(sizes)
    np.testing.assert_allclose(mapped, direct, rtol=1e-6)
    slopes = jax.grad(lambda values: law.function(sizes, **values).sum())(parameters)
    assert all(np.isfinite(each) for each in slopes.values())


def test_peaks_have_reasons():
    assert LAWS["surge"].peak(max_lr=1.0, b_noise=64.0) == (64.0, "")
    for name, values in {
        "sqrt": (1.0,),
        "constant": (1.0,),
        "power": (1.0, 0.5),
        "saturating_surge": (1.0, 9.0, 2.0),
    }.items():
        value, why = LAWS[name].peak(**dict(zip(LAWS[name].parameters, values, strict=True)))
        assert not np.isfinite(value) and why
