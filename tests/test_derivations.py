"""Laws against simulation, known values and limits."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erfinv

from surge.theory import budget, derivations, momentum
from surge.theory.rivals import surge as surge_law
from surge.theory.second_order import Hessian

RNG = np.random.default_rng(0)
SIZE = 24
GROUPS = 50  # of draws, that a jackknife leaves out one by one
BATCHES = np.array([1, 30, 1e3, 1e5])
MU = RNG.normal(size=SIZE) + 0.5
SIGMA = RNG.uniform(2.0, 12.0, SIZE)
_RANDOM = RNG.normal(size=(SIZE, SIZE))
HESSIANS = {
    "diagonal": np.diag(RNG.uniform(0.5, 2.0, SIZE)),
    "rank_one": np.eye(SIZE) + 0.2 * np.ones((SIZE, SIZE)),
    "indefinite": np.eye(SIZE) + 0.1 * (_RANDOM + _RANDOM.T) * (1 - np.eye(SIZE)),
    "random": _RANDOM @ _RANDOM.T / SIZE,
}
_FACTOR = np.concatenate([RNG.normal(size=(SIZE, 2)), 0.5 * np.eye(SIZE)], 1)
_FACTOR /= np.linalg.norm(_FACTOR, axis=1, keepdims=True)
RHO = {
    "independent": np.eye(SIZE),
    "opposed": 1.04 * np.eye(SIZE) - 0.04,
    "shared": 0.6 * np.eye(SIZE) + 0.4,
    "near_one": 0.05 * np.eye(SIZE) + 0.95,
    "of_both_signs": _FACTOR @ _FACTOR.T,
}


def simulate(direction, batch_size, hessian, covariance, mu=MU, draws=10_000):
    """The second implementation: the loss itself at steps −εu along drawn mini-batch gradients.

    Returns the argmin over ε of its mean and the fall there [2], and their jackknife standard
    errors [2].
    """
    rng = np.random.default_rng(int(batch_size))
    gradients = mu + rng.normal(size=(draws, SIZE)) @ np.linalg.cholesky(covariance / batch_size).T
    u = direction(gradients)

    def change(rate):
        step = -rate * u
        return (step @ mu + (step @ hessian * step).sum(1) / 2).reshape(GROUPS, -1).mean(1)

    def lowest(near, far):
        """Of the parabola through 0 at ε = 0, near at 1 and far at 2."""
        square, slope = far / 2 - near, 2 * near - far / 2
        return np.array([-slope / (2 * square), slope**2 / (4 * square)])

    near, far = change(1.0), change(2.0)
    left_out = [(each.sum() - each) / (GROUPS - 1) for each in (near, far)]
    return lowest(near.mean(), far.mean()), np.sqrt(GROUPS - 1) * lowest(*left_out).std(1)


def agrees(law, direction, hessian, covariance, **kwargs):
    """The optimum and the gain of a law at BATCHES within 4 standard errors of the simulation;
    float32 adds 1e-5."""
    for batch_size, *values in zip(BATCHES, law.optimal_lr, law.gain, strict=True):
        means, errors = simulate(direction, batch_size, hessian, covariance, **kwargs)
        np.testing.assert_array_less(
            np.abs(values - means), 4 * errors + 1e-5 * np.abs(means), f"at {batch_size}"
        )


CORRELATED = jax.jit(derivations.sign_descent_correlated)


@pytest.mark.parametrize("noise", RHO)
@pytest.mark.parametrize("name", HESSIANS)
def test_one_step_equals_simulation(name, noise):
    matrix, covariance = HESSIANS[name], RHO[noise] * np.outer(SIGMA, SIGMA)
    correlated = CORRELATED(BATCHES, *map(jnp.asarray, (MU, SIGMA, matrix, RHO[noise])))
    agrees(correlated, np.sign, matrix, covariance)
    hessian = Hessian.dense(jnp.asarray(matrix))
    plain = derivations.sgd(BATCHES, jnp.asarray(MU), hessian, float((matrix * covariance).sum()))
    agrees(plain, lambda g: g, matrix, covariance)
    independent = derivations.sign_descent(BATCHES, jnp.asarray(MU), jnp.asarray(SIGMA), hessian)
    if noise == "independent":
        agrees(independent, np.sign, matrix, covariance)
    elif (name, noise) == ("rank_one", "shared"):
        assert (
            correlated.curvature[0] > 1.2 * independent.curvature[0]
        )  # noise that independence does not see


@pytest.mark.parametrize("name", ["diagonal", "rank_one", "indefinite"])
def test_homogeneous_law_equals_simulation(name):
    matrix, snr, mu = HESSIANS[name], 0.05, np.sign(MU) * SIGMA
    trace, signs = matrix.trace(), np.sign(mu)
    lr = derivations.homogeneous(
        BATCHES, np.abs(mu).sum(), trace, signs @ matrix @ signs - trace, snr
    )
    for value, batch_size in zip(lr, BATCHES, strict=True):
        means, errors = simulate(np.sign, batch_size, matrix, np.diag(mu / snr) ** 2, mu)
        assert abs(value - means[0]) < 4 * errors[0] + 1e-5 * means[0]


@pytest.mark.parametrize("batch_size", [1, 100])
def test_softened_sign_equals_simulation(batch_size):
    eps = 0.7
    mean = derivations.softened_sign_mean(batch_size, jnp.asarray(MU), jnp.asarray(SIGMA), eps)
    draws = MU + np.random.default_rng(0).normal(size=(100_000, SIZE)) * SIGMA / np.sqrt(batch_size)
    soft = draws / (np.abs(draws) + eps)
    np.testing.assert_array_less(np.abs(mean - soft.mean(0)), 4 * soft.std(0) / np.sqrt(len(draws)))


def test_softened_sign_reaches_its_limits_with_its_slopes():
    ends = itertools.product([-3.0, -1e-20, 0.0, 1e-3], [0.0, 1e-20, 1.0], [0.0, 0.5])
    mu, spread, eps = jnp.asarray(list(ends)).T
    slopes = jax.jit(jax.vmap(jax.value_and_grad(derivations.softened_sign_mean, (0, 1, 2, 3))))
    values, (_, in_mu, *_) = found = slopes(jnp.ones(len(mu)), mu, spread, eps)
    assert all(jnp.isfinite(each).all() for each in jax.tree.leaves(found))
    np.testing.assert_array_equal(jnp.sign(values), jnp.sign(mu))
    sign, still = eps == 0, (spread == 0) & (eps > 0)
    np.testing.assert_allclose(
        values[sign], derivations.sign_mean(1.0, mu, spread)[sign], rtol=1e-5
    )
    np.testing.assert_allclose(values[still], (mu / (jnp.abs(mu) + 0.5))[still], rtol=1e-5)
    np.testing.assert_allclose(in_mu[still], 0.5 / (jnp.abs(mu[still]) + 0.5) ** 2, rtol=1e-5)
    density = np.sqrt(2 / np.pi)  # of sign(G) at μ = 0, twice
    np.testing.assert_allclose(in_mu[(mu == 0) & (spread == 1) & sign], density, rtol=1e-5)


B1, B2, CHAINS, STEPS, HELD = 0.9, 0.995, 3000, 12_000, 16.0  # HELD: the batch size
RATIO = np.array([0.02, 0.2, 0.5, 1.0])  # |μ|√B/σ


@pytest.fixture(scope="module")
def adam():
    """Directions of Adam at held parameters with σ/√B = 1, and their mean over STEPS steps: {eps:
    [CHAINS, P]}."""
    rng, shape = np.random.default_rng(0), (CHAINS, len(RATIO))
    m, v = (
        np.tile(RATIO, (CHAINS, 1)).astype(np.float32),
        np.tile(RATIO**2 + 1, (CHAINS, 1)).astype(np.float32),
    )
    last, total = {}, {0.0: 0.0, 0.7: 0.0}
    for step in range(STEPS + 1000):
        g = rng.standard_normal(shape, np.float32) + RATIO.astype(np.float32)
        m, v = B1 * m + (1 - B1) * g, B2 * v + (1 - B2) * g**2
        if step >= 1000:
            for eps in total:
                last[eps] = m / (np.sqrt(v) + eps)
                total[eps] = total[eps] + last[eps] / STEPS
    return last, total


@pytest.mark.parametrize("eps", [0.0, 0.7])
@pytest.mark.parametrize("reading", ["instantaneous", "long_run"])
def test_adam_mean_field_equals_simulation(adam, reading, eps):
    """Within 4 standard errors and the error of the mean field, which is of the order of (1 −
    β2)/(1 − β1)."""
    last, mean = (each[eps] for each in adam)
    hessian = Hessian.dense(jnp.eye(1))

    def law(mu, sigma):
        return derivations.adam_mean_field(HELD, mu, sigma, hessian, B1, eps, reading)

    drift, curvature = jax.vmap(law)(
        jnp.asarray(RATIO)[:, None], jnp.full((len(RATIO), 1), np.sqrt(HELD))
    )
    d = np.asarray(drift) / RATIO
    np.testing.assert_array_less(
        np.abs(mean.mean(0) - d), 4 * mean.std(0) / CHAINS**0.5 + 2 * (1 - B2) * d
    )
    u = last if reading == "instantaneous" else mean * STEPS**0.5
    noise = curvature - d**2
    allowed = 4 * np.sqrt(2 / CHAINS) + (1 - B2) / (1 - B1)
    np.testing.assert_array_less(np.abs(u.var(0) / noise - 1), allowed)
    if (
        reading == "long_run"
    ):  # where noise rules, that of plain gradients: β1 takes none of it away
        plain = (1 / (np.sqrt(1 + RATIO**2) + eps)) ** 2
        np.testing.assert_allclose(noise[:1], plain[:1], rtol=0.01)


def test_adam_of_several_coordinates_is_the_sum_of_its_parts():
    mu, sigma, matrix = jnp.asarray(MU), jnp.asarray(SIGMA), HESSIANS["random"]
    law = derivations.adam_mean_field(50.0, mu, sigma, Hessian.dense(jnp.asarray(matrix)), 0.8, 0.3)
    root = np.sqrt(MU**2 + SIGMA**2 / 50) + 0.3
    mean, noise = MU / root, 0.2 / 1.8 * SIGMA**2 / 50 / root**2
    np.testing.assert_allclose(law.drift, mean @ MU, rtol=1e-5)
    np.testing.assert_allclose(
        law.curvature, mean @ matrix @ mean + (noise * np.diag(matrix)).sum(), rtol=1e-5
    )
    with pytest.raises(ValueError, match="instantaneous or long_run"):
        derivations.adam_mean_field(
            50.0, mu, sigma, Hessian.dense(jnp.asarray(matrix)), reading="forever"
        )


def test_every_form_of_a_hessian_gives_the_same_laws():
    diagonal, factor = jnp.asarray(RNG.uniform(size=SIZE)), jnp.asarray(RNG.normal(size=(SIZE, 2)))
    matrix = jnp.diag(diagonal) + factor @ factor.T

    def loss(step):
        return (diagonal * step**2).sum() / 2 + ((factor.T @ step) ** 2).sum() / 2

    def product(vector):
        return jax.jvp(jax.grad(loss), (jnp.zeros(SIZE),), (vector,))[1]

    mu, sigma = jnp.asarray(MU), jnp.asarray(SIGMA)
    for call in (
        lambda hessian: derivations.sign_descent(BATCHES, mu, sigma, hessian),
        lambda hessian: derivations.sgd(BATCHES, mu, hessian, 3.0),
        lambda hessian: derivations.adam_mean_field(BATCHES, mu, sigma, hessian),
        lambda hessian: derivations.surge_coefficients(mu, sigma, hessian),
        lambda hessian: derivations.large_batch_limit(mu, hessian),
    ):
        dense = call(Hessian.dense(matrix))
        for other in (Hessian.low_rank(diagonal, factor), Hessian(jnp.diagonal(matrix), product)):
            jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-4), call(other), dense)


@pytest.mark.parametrize(
    ("r", "plateau"), [(0.01, 0.198), (0.1, 0.575), (0.3, 0.843), (0.6, 0.968)]
)
def test_homogeneous_law_has_the_known_peak_and_plateau(r, plateau):
    snr = 0.05
    sizes = jnp.geomspace(1, 1e8, 200_001)
    curve = derivations.homogeneous(sizes, 3.0, r, 1.0, snr)
    assert float(sizes[curve.argmax()]) == pytest.approx(
        2 * erfinv(np.sqrt(r)) ** 2 / snr**2, rel=0.02
    )
    assert float(curve[-1] / curve.max()) == pytest.approx(plateau, abs=2e-3)


def test_small_batch_coefficients_are_the_limit_of_the_exact_law():
    """On both sides of the peak, all far below the validity bound: every one of T, K and A
    matters."""
    mu, sigma = jnp.ones(SIZE), jnp.full(SIZE, 1e4)
    hessian = Hessian.dense(0.05 * jnp.eye(SIZE) + (jnp.ones((SIZE, SIZE)) - jnp.eye(SIZE)))
    surge = derivations.surge_coefficients(mu, sigma, hessian)
    sizes = surge.b_noise * jnp.asarray([1 / 30, 1.0, 30.0])
    assert sizes.max() < derivations.validity(mu, sigma).min() / 10
    exact = derivations.sign_descent(sizes, mu, sigma, hessian)
    np.testing.assert_allclose(
        exact.optimal_lr, surge_law(sizes, surge.max_lr, surge.b_noise), rtol=0.03
    )
    np.testing.assert_allclose(
        exact.gain, budget.gain(sizes, surge.max_gain, surge.b_noise), rtol=0.03
    )


def test_diagonal_hessian_has_no_peak():
    hessian = Hessian.dense(jnp.asarray(HESSIANS["diagonal"]))
    coefficients = derivations.surge_coefficients(jnp.asarray(MU), jnp.asarray(SIGMA), hessian)
    assert np.isinf(coefficients).all()
    rates = derivations.sign_descent(
        jnp.geomspace(1, 1e8, 50), jnp.asarray(MU), jnp.asarray(SIGMA), hessian
    ).optimal_lr
    assert (jnp.diff(rates) >= -1e-6).all()


def test_coefficients_are_undefined_without_noise_or_trace():
    mu, sigma, matrix = jnp.asarray(MU), jnp.asarray(SIGMA), jnp.asarray(HESSIANS["rank_one"])

    def call(mu, noise, curvature):
        return derivations.surge_coefficients(mu, noise, Hessian.dense(curvature))

    for noise, curvature in ((sigma.at[3].set(0.0), matrix), (sigma, matrix - 2 * jnp.eye(SIZE))):
        assert np.isnan(call(mu, noise, curvature)).all()
        slopes = jax.jit(jax.jacrev(call, (0, 1, 2)))(mu, noise, curvature)
        assert all(jnp.isfinite(each).all() for each in jax.tree.leaves(slopes))


def test_no_minimum_is_nan():
    law = derivations.sign_descent(
        10.0, jnp.asarray(MU), jnp.asarray(SIGMA), Hessian.dense(-jnp.eye(SIZE))
    )
    assert np.isnan(law.optimal_lr) and np.isnan(law.gain)


def test_effective_batches_equal_simulation():
    """The variance of what momentum and Lion take the sign of, of unit noise in every gradient."""
    rng, steps, chains = np.random.default_rng(0), 400, 20_000
    average, slow, lion = (np.zeros(chains) for _ in range(3))
    for _ in range(steps):
        gradient = rng.normal(size=chains)
        average = 0.9 * average + 0.1 * gradient
        lion = 0.9 * slow + 0.1 * gradient
        slow = 0.99 * slow + 0.01 * gradient
    for values, batch in (
        (average, momentum.momentum_batch(1.0, 0.9)),
        (lion, momentum.lion_batch(1.0, 0.9, 0.99)),
    ):
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
    assert float(momentum.momentum_gain(0.9, "long_run")) == pytest.approx(ratio, rel=0.15)


def test_long_run_gain_of_momentum_is_the_sum_over_all_lags():
    decay = np.array([0.0, 0.5, 0.7, 0.9, 0.99, 0.999, 0.9999])
    lags = [np.arcsin(each ** np.arange(1, 300_000)).sum() for each in decay]
    expected = (1 + decay) / (1 - decay) / (1 + 4 / np.pi * np.array(lags))
    np.testing.assert_allclose(momentum.momentum_gain(decay, "long_run"), expected, rtol=1e-5)
    assert float(momentum.momentum_gain(1 - 1e-6, "long_run")) == pytest.approx(
        1 / np.log(2), rel=1e-4
    )
    slope = jax.jit(jax.vmap(jax.grad(partial(momentum.momentum_gain, reading="long_run"))))
    slopes = slope(
        jnp.concatenate([jnp.asarray(decay), jnp.linspace(0.6, 0.8, 500)])
    )  # where βⁿ leaves float32
    assert jnp.isfinite(slopes).all() and slopes[0] == pytest.approx(2 - 4 / np.pi)


def test_effective_batches_have_the_known_values():
    assert momentum.lion_batch(1.0) == pytest.approx(71, abs=0.5)
    assert momentum.momentum_batch(1.0, 0.9) == pytest.approx(19)
    assert float(momentum.momentum_gain(0.9)) == pytest.approx(19)
    with pytest.raises(ValueError, match="instantaneous or long_run"):
        momentum.momentum_gain(0.9, "forever")


def test_steps_and_examples_lie_on_the_hyperbola():
    sizes = np.geomspace(1, 1e5, 9)
    steps, examples = (
        budget.steps_to_target(sizes, 20.0, 300.0),
        budget.examples_to_target(sizes, 6000.0, 300.0),
    )
    np.testing.assert_allclose((steps / 20 - 1) * (examples / 6000 - 1), 1)
    np.testing.assert_allclose(examples, sizes * steps)
    assert budget.examples_to_target(
        budget.critical_batch_size(300.0), 1.0, 300.0
    ) == pytest.approx(1.2)


def test_rational_sign_mean_is_a_named_approximation():
    ratio = jnp.linspace(0.01, 5, 200)
    gap = jnp.abs(
        derivations.sign_mean_rational(4.0, ratio, 1.0) - derivations.sign_mean(4.0, ratio, 1.0)
    )
    assert 0.1 < float(gap.max()) < 0.11


@pytest.mark.parametrize("mean", [derivations.sign_mean, derivations.sign_mean_rational])
def test_sign_means_reach_their_limits_with_their_slopes(mean):
    mu, sigma = jnp.asarray([0.0, 1e-20, 1.0, -1.0]), jnp.asarray([0.0, 1e-25, 0.0, 1e-20])
    np.testing.assert_allclose(mean(BATCHES[:, None], mu, sigma), [[0, 1, 1, -1]] * 4)
    slopes = jax.jit(jax.vmap(jax.grad(mean, (0, 1, 2))))(jnp.full(4, 9.0), mu, sigma)
    assert all(jnp.isfinite(each).all() for each in slopes)
    # At μ = 0 the slope is the density of the noise there.
    assert jax.grad(mean, 1)(9.0, 0.0, 2.0) == pytest.approx(np.sqrt(2 * 9 / np.pi) / 2)


def test_correlated_signs_without_noise_or_at_the_ends_of_rho():
    rho = jnp.asarray([[1.0, 0.5, 1.0], [0.5, 1.0, 0.5], [1.0, 0.5, 1.0]])
    mu, sigma, matrix = (
        jnp.asarray([1.0, 2.0, -1.0]),
        jnp.asarray([2.0, 0.0, 2.0]),
        jnp.ones((3, 3)),
    )
    call = jax.jit(lambda *args: derivations.sign_descent_correlated(*args).curvature)
    # The first and third gradient are ±1 + z of one z, the second is its mean: E[u₁u₃] = 1 − 2P(|z|
    # < μ/σ).
    mean = float(derivations.sign_mean(1.0, 1.0, 2.0))
    assert call(1.0, mu, sigma, matrix, rho) == pytest.approx(3 + 2 * (1 - 2 * mean), abs=1e-5)
    assert call(1e12, 1e10 * mu, sigma, matrix, rho) == pytest.approx(1)  # (Σ sign μ)²
    grad = jax.jit(jax.grad(call, (0, 1, 2, 3, 4)))
    for scale in (1.0, 1e10):
        slopes = grad(1.0, scale * mu, sigma, matrix, rho)
        assert all(jnp.isfinite(each).all() for each in slopes)
    # At μ = 0 the covariance is (2/π) arcsin ρ, of slope (2/π)/√(1−ρ²).
    slope = grad(1.0, 0 * mu, sigma + 1, matrix, 0.5 * rho + 0.5 * jnp.eye(3))[4]
    expected = 2 / np.pi / np.sqrt(1 - (0.5 * rho) ** 2) * (1 - np.eye(3))
    np.testing.assert_allclose(slope, expected, rtol=1e-4, atol=1e-6)


MATRIX = np.array([[2, 0.3, 0.1], [0.3, 1, 0.2], [0.1, 0.2, 3]])
CORRELATION = np.array([[1, 0.5, -0.3], [0.5, 1, 0.2], [-0.3, 0.2, 1]])


def number(matrix):
    return jnp.asarray(matrix, jnp.result_type(float))


def dense():
    return Hessian.dense(number(MATRIX))


def both(law):
    return jnp.stack([law.drift, law.curvature, law.optimal_lr, law.gain])


OF_GRADIENTS = {  # (batch_size, mu [3], sigma [3]) -> array
    "sign_mean": derivations.sign_mean,
    "sign_mean_rational": derivations.sign_mean_rational,
    "softened_sign_mean": lambda b, mu, sigma: derivations.softened_sign_mean(b, mu, sigma, 0.0),
    "sign_descent": lambda b, mu, sigma: both(derivations.sign_descent(b, mu, sigma, dense())),
    "sign_descent_correlated": lambda b, mu, sigma: both(
        derivations.sign_descent_correlated(b, mu, sigma, number(MATRIX), number(CORRELATION))
    ),
    "sgd": lambda b, mu, sigma: both(derivations.sgd(b, mu, dense(), dense().diagonal @ sigma**2)),
    "adam_mean_field": lambda b, mu, sigma: both(
        derivations.adam_mean_field(b, mu, sigma, dense())
    ),
    "adam_long_run": lambda b, mu, sigma: both(
        derivations.adam_mean_field(b, mu, sigma, dense(), reading="long_run")
    ),
    "surge_coefficients": lambda b, mu, sigma: jnp.stack(
        derivations.surge_coefficients(mu, sigma, dense())
    ),
    "validity": lambda b, mu, sigma: derivations.validity(mu, sigma),
    "large_batch_limit": lambda b, mu, sigma: both(derivations.large_batch_limit(mu, dense())),
    "homogeneous": lambda b, mu, sigma: derivations.homogeneous(
        b, jnp.abs(mu).sum(), 3.0, 1.0, sigma.sum()
    ),
}
UNDEFINED = {  # where a value may be nan or inf: as documented, nowhere else
    "sgd": lambda mu, sigma: (mu < 1e-18) & (sigma < 1e-18),
    "adam_mean_field": lambda mu, sigma: (mu == 0) & (sigma == 0),
    "adam_long_run": lambda mu, sigma: (mu == 0) & (sigma == 0),
    "surge_coefficients": lambda mu, sigma: (mu == 0) | (sigma == 0) | (mu < 1e-18 * sigma),
    "validity": lambda mu, sigma: (mu == 0) | (mu < 1e-18 * sigma),
    "large_batch_limit": lambda mu, sigma: mu == 0,
}
OF_BATCH_SIZE = {  # (batch_size, noise scale) -> scalar
    "gain": lambda b, noise: budget.gain(b, 2.0, noise),
    "steps_to_target": lambda b, noise: budget.steps_to_target(b, 20.0, noise),
    "examples_to_target": lambda b, noise: budget.examples_to_target(b, 20.0, noise),
    "critical_batch_size": lambda b, noise: budget.critical_batch_size(noise),
    "momentum_batch": lambda b, noise: momentum.momentum_batch(b, 0.9),
    "lion_batch": lambda b, noise: momentum.lion_batch(b),
}
SIZES, SCALES = [1e-3, 1.0, 1e12], [0.0, 1e-25, 1.0, 1e10]


BASE, STEP = (
    np.array([7, 0.3, -0.2, 0.9, 1, 2, 0.5]),
    1e-4,
)  # where slopes are compared with differences


@pytest.mark.parametrize("name", [*OF_GRADIENTS, *OF_BATCH_SIZE])
def test_laws_transform_and_reach_the_ends_in_float32(name):
    """Under grad, jit and vmap: what float64 gives, nan and inf only where documented, and never a
    nan slope."""
    if name in OF_GRADIENTS:
        function, base = lambda row: OF_GRADIENTS[name](row[0], row[1:4], row[4:]), BASE
        ends = np.array(list(itertools.product(SIZES, SCALES, SCALES)))
        grid = ends @ np.array(
            [[1, 0, 0, 0, 0, 0, 0], [0, 1, -0.5, 2, 0, 0, 0], [0, 0, 0, 0, 1, 2, 0.5]]
        )
    else:
        function, base = lambda row: OF_BATCH_SIZE[name](*row), np.array([7.0, 30.0])
        grid = ends = np.array(list(itertools.product(SIZES, SIZES)))
    n, k = len(grid), len(base)
    rows = np.concatenate([grid, base + STEP * np.eye(k), base - STEP * np.eye(k), base[None]])
    values, slopes = jax.jit(jax.vmap(lambda row: (function(row), jax.jacrev(function)(row))))(
        number(rows)
    )
    with jax.enable_x64(True):
        exact = np.asarray(jax.jit(jax.vmap(function))(number(rows)))
    assert values.dtype == np.float32 and exact.dtype == np.float64
    np.testing.assert_allclose(values[-1], function(number(base)), rtol=2e-5)
    differences = (exact[n : n + k] - exact[n + k : n + 2 * k]) / (2 * STEP)
    np.testing.assert_allclose(np.moveaxis(slopes[-1], -1, 0), differences, rtol=1e-3, atol=1e-5)

    assert not jnp.isnan(slopes).any()
    undefined = UNDEFINED[name](*ends.T[1:]) if name in UNDEFINED else np.zeros(n, bool)
    values, exact = values[:n], exact[:n]
    assert jnp.isfinite(values[~undefined]).all()
    if name == "sgd":
        assert jnp.isnan(values[undefined, 2:]).all()  # the squares of both are 0 in float32
        values, exact = values[~undefined], exact[~undefined]
    with np.errstate(over="ignore", under="ignore"):
        np.testing.assert_allclose(values, exact.astype(np.float32), rtol=1e-4, atol=1e-36)


def test_large_batch_limit_is_reached():
    mu, hessian = jnp.asarray(MU), Hessian.dense(jnp.asarray(HESSIANS["random"]))
    limit, far = (
        derivations.large_batch_limit(mu, hessian),
        derivations.sign_descent(1e12, mu, jnp.asarray(SIGMA), hessian),
    )
    assert float(far.optimal_lr) == pytest.approx(float(limit.optimal_lr), rel=1e-5)


def test_validity_is_where_the_linear_sign_mean_fails():
    mu, sigma = jnp.asarray([0.0, 1e-25, 0.5]), jnp.asarray([1.0, 1e-25, 2.0])
    bound = derivations.validity(mu, sigma)
    np.testing.assert_allclose(bound, [np.inf, np.pi / 2, 8 * np.pi], rtol=1e-6)

    def linear(size):
        return jnp.sqrt(2 * size / jnp.pi) * 0.25

    assert float(linear(bound[2])) == pytest.approx(
        1
    )  # where erf x ≈ 2x/√π would say that the sign is certain
    assert float(
        derivations.sign_mean(bound[2] / 100, 0.5, 2.0) / linear(bound[2] / 100)
    ) == pytest.approx(1, abs=0.01)
