"""κ from one checkpoint: planted ones come back, and what follows from it follows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from slowly import slow

from surge.gradients.kappa import of_optimizer
from surge.gradients.steps import sample_steps
from surge.optimizers import make_optimizer
from surge.tasks import Task
from surge.theory import kappa

P, NOISE, SIZES = 40, 16.0, (4, 16, 64, 256, 1024, 4096)


def planted(ratio: float, correlation: float = 0.0) -> Task:
    """H = I + c·11ᵀ with μ = 1 and noise of one size: κ = tr(HC)/1ᵀH1, where C correlates signs."""
    shared = 2 / np.pi * np.arcsin(correlation)  # of the signs of correlated Gaussians
    # ratio · (P + cP²) = P(1 + c) + shared · cP(P − 1), solved for c
    c = (1 - ratio) / (ratio * P - 1 - shared * (P - 1))
    hessian = jnp.eye(P) + c * jnp.ones((P, P))
    start = jnp.linalg.solve(hessian, jnp.ones(P))

    def loss(theta, noise):
        return 0.5 * theta @ hessian @ theta + noise @ theta

    def draw(data, key):
        own, common = jax.random.split(key)
        apart = (1 - correlation) ** 0.5 * jax.random.normal(own, (P,))
        return NOISE * (apart + correlation**0.5 * jax.random.normal(common))

    return Task(lambda key: start, loss, jnp.zeros(1), draw, jnp.zeros((1, P)))


def measured(task, spec, layers=(), count=32):
    optimizer = make_optimizer(spec)
    params = task.init(jax.random.key(0))
    samples = sample_steps(
        task.loss, params, task.draw, task.data, task.evaluation, {spec: optimizer}, SIZES,
        jax.random.key(1), count=count, layers=layers,
    ).samples[spec]  # fmt: skip
    return of_optimizer(samples, SIZES, optimizer, NOISE**2)


@pytest.mark.parametrize(
    "spec, ratio",
    [
        ("sign_sgd", 0.41),
        ("adam", 0.12),
        *slow(("sign_sgd", 0.04), ("sign_sgd", 2.0), ("adam", 1.0)),
        ("sgd", 0.41),
    ],
)
def test_a_planted_kappa_comes_back(spec, ratio):
    found = measured(planted(ratio), spec)
    assert found.why == ""
    value, low, high = found.kappa[1]
    assert low / 1.1 < ratio < 1.1 * high and value == pytest.approx(ratio, rel=0.35)
    gain = 0.0531 if spec == "adam" else 1.0  # (1 − β1)/(1 + β1), less the tail of the weights
    assert found.momentum == pytest.approx(gain, rel=0.01)
    np.testing.assert_allclose(found.kappa[0], gain * found.kappa[1], rtol=0.01)


def test_correlated_noise_is_in_kappa():
    found = measured(planted(0.6, 0.2), "sign_sgd")
    assert found.kappa[0, 1] / 1.1 < 0.6 < 1.1 * found.kappa[0, 2]
    assert found.peak_over_plateau[0, 0] == 1.0 and np.isinf(found.b_peak[0, 0])


def test_only_what_shrinks_where_gradients_are_noise_is_expected_to_surge():
    task = planted(0.12)
    sign, sgd = measured(task, "sign_sgd"), measured(task, "sgd")
    height = 1 / (2 * (0.12 * 0.88) ** 0.5)
    assert sign.peak_over_plateau[0, 1] / 1.05 < height < 1.05 * sign.peak_over_plateau[0, 2]
    peak = kappa.peak_position(0.12, np.pi / 2 * NOISE**2, kappa.sign_share)
    assert sign.b_peak[0, 1] / 1.1 < peak < 1.1 * sign.b_peak[0, 2]
    np.testing.assert_array_equal(sgd.peak_over_plateau, 1)
    assert np.isinf(sgd.b_peak).all()


def test_layers_stepped_in_alone_have_a_kappa_each():
    halves = {"one": planted(0.1), "two": planted(1.0)}
    starts = {name: task.init(jax.random.key(0)) for name, task in halves.items()}

    def loss(params, example):
        losses = [task.loss(params[name], example[name]) for name, task in halves.items()]
        return sum(losses, start=jnp.zeros(()))

    def draw(data, key):
        keys = dict(zip(halves, jax.random.split(key), strict=True))
        return {name: task.draw(data, keys[name]) for name, task in halves.items()}

    evaluation = dict.fromkeys(halves, jnp.zeros((1, P)))
    both = Task(lambda key: starts, loss, jnp.zeros(1), draw, evaluation)
    found = measured(both, "sign_sgd", layers=(0, 1))
    np.testing.assert_allclose(found.layers[:, 0], [0.1, 1.0], rtol=0.2)


RATIO = st.floats(1e-3, 0.49)


@given(RATIO, st.floats(1.0, 1e6))
def test_the_expected_peak_is_that_of_the_one_law(ratio, turn):
    sizes = np.geomspace(1e-4 * turn, 1e4 * turn, 20_001)
    for share in kappa.SHARES:
        signal = share(sizes, turn)
        law = np.sqrt(signal) / (signal + ratio * (1 - signal))
        top = law.argmax()
        assert law[top] / law[-1] == pytest.approx(kappa.peak_over_plateau(ratio), rel=2e-2)
        at_peak = np.interp(kappa.peak_position(ratio, turn, share), sizes, law)
        assert at_peak == pytest.approx(law[top], rel=1e-4)


@given(st.floats(0.5, 1e3))
def test_above_a_half_there_is_no_peak(ratio):
    assert kappa.peak_over_plateau(ratio) == 1 and np.isinf(kappa.peak_position(ratio, 10.0))


def rows(drift, curvature):
    """Samples without noise, as rows with a part left out."""
    return np.tile(drift, (9, 1)), np.tile(curvature, (9, 1)), np.full(len(drift), 0.01)


SIZE = np.array([1.0, 10.0, 100.0, 1000.0])


@pytest.mark.parametrize(
    "drift, curvature, noise_scale, why",
    [
        (np.full(4, np.nan), np.ones(4), None, "not finite"),
        (np.array([1.0, 1.0, -1.0, -1.0]), np.ones(4), None, "too few batch sizes"),
        (np.sqrt(SIZE), np.ones(4), None, "all noise"),
        (np.ones(4), np.ones(4), None, "all signal"),
        (np.ones(4), np.ones(4), np.nan, "noise scale is unknown"),
    ],
)
def test_an_unknown_kappa_says_why(drift, curvature, noise_scale, why):
    split = kappa.split(SIZE, *rows(drift, curvature), noise_scale)
    assert np.isnan(split.ratio).all() and why in split.why


@given(st.floats(0.02, 3.0), st.floats(5.0, 500.0), st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_scales_of_drift_and_curvature_do_not_matter(ratio, turn, drift_unit, curvature_unit):
    signal = kappa.mean_field_share(SIZE, turn)
    drift = np.sqrt(signal)
    curvature = signal + ratio * (1 - signal)
    split = kappa.split(SIZE, *rows(drift_unit * drift, curvature_unit * curvature), None)
    assert split.share is kappa.mean_field_share
    np.testing.assert_allclose(split.ratio, ratio, rtol=0.02)
    np.testing.assert_allclose(split.turn, turn, rtol=0.02)
