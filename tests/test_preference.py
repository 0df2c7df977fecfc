"""Adaptive preference scaling against its definition, a minimum over temperatures."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slowly import slow

from surge.tasks import preference
from surge.tasks.check import check_task
from surge.training import grid
from surge.training.engine import Engine
from surge.training.lanes import Lanes

DELTA = np.linspace(-12, 12, 241)


def by_search(delta, rho, low, high):
    """The minimum over a fine grid of temperatures."""
    tau = np.geomspace(low, high, 20_001)[:, None]
    return (tau * (np.log1p(np.exp(-delta / tau)) - math.log(2)) + rho * tau).min(0)


@pytest.mark.parametrize(("rho", "p", "kappa"), [(0.1, 0.7198, 0.943), (0.2, 0.805, 1.419)])
def test_the_scale_is_the_known_one(rho, p, kappa):
    found = preference.scale_of(rho)
    assert found == pytest.approx(kappa, rel=1e-3)
    assert 1 / (1 + math.exp(-found)) == pytest.approx(p, rel=1e-3)
    assert preference.scale_of(0.7) == math.inf


@pytest.mark.parametrize("rho", [0.05, 0.2, 0.6, 0.9])
@pytest.mark.parametrize(("low", "high"), [(0.1, 5.0), (0.5, 1.0)])
def test_the_loss_is_the_minimum_over_temperatures(rho, low, high):
    ours = preference.adaptive(rho, low, high)(jnp.asarray(DELTA))
    np.testing.assert_allclose(ours, by_search(DELTA, rho, low, high), rtol=1e-4, atol=2e-5)


def test_derivatives_are_those_of_the_loss_itself():
    """The first by differences; the second is 0 where the loss is linear, logistic elsewhere."""
    rho, low, high = 0.1, 0.5, 2.0
    loss, kappa = preference.adaptive(rho, low, high), preference.scale_of(rho)
    away = np.abs(np.abs(DELTA)[:, None] - kappa * np.array([low, high])).min(1) > 0.06
    delta = jnp.asarray(DELTA[away])
    slope = jax.vmap(jax.grad(loss))(delta)
    ahead, behind = (by_search(DELTA[away] + step, rho, low, high) for step in (0.05, -0.05))
    np.testing.assert_allclose(slope, (ahead - behind) / 0.1, atol=2e-3)
    bend = np.asarray(jax.vmap(jax.grad(jax.grad(loss)))(delta))
    size = np.abs(DELTA[away])
    linear = (size > low * kappa) & (size < high * kappa)
    assert (bend[linear] == 0).all() and (bend[~linear] > 0).all()
    tau = np.where(size < low * kappa, low, high)
    logistic = 1 / (tau * (2 * np.cosh(DELTA[away] / (2 * tau))) ** 2)
    np.testing.assert_allclose(bend[~linear], logistic[~linear], rtol=1e-4)
    assert (np.diff(slope) > -1e-6).all()  # convex


def test_one_temperature_is_bradley_terry_at_it():
    ours = preference.adaptive(0.1, 2.0, 2.0)(jnp.asarray(DELTA))
    theirs = 2 * preference.bradley_terry(jnp.asarray(DELTA) / 2) + 2 * (0.1 - math.log(2))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def task(name, objective):
    small = {"synthetic": {"pairs": 600, "widths": (8,)}, "text": {"width": 8}}[name]
    make = getattr(preference, name)
    return make(objective=objective, evaluation_examples=128, **small)


@pytest.mark.parametrize("objective", ["adaptive", "bradley_terry"])
@pytest.mark.parametrize("name", ["synthetic", *slow("text")])
def test_pairs_are_learnt_in_a_sweep(name, objective):
    made = task(name, objective)
    check_task(made)
    engine = Engine(made, jax.random.key(0), Lanes("vmap", 1, 1), stop_loss=-np.inf)
    result = engine.run(grid.Piece("a", "adam", 16, (0.01,), (0,), (1, 150)))
    assert result.loss[0, 0, 1] < result.loss[0, 0, 0] - 0.01


def test_examples_are_pairs_in_their_order():
    made = preference.synthetic(
        objective="bradley_terry", widths=(), sharpness=50.0, pairs=300, evaluation_examples=100
    )
    point = jax.tree.map(lambda leaf: leaf[0], made.data)
    turned = {"chosen": point["rejected"], "rejected": point["chosen"]}
    params = made.init(jax.random.key(0))
    delta = float(np.log(np.expm1(float(made.loss(params, turned)))))
    assert float(made.loss(params, point)) == pytest.approx(math.log1p(math.exp(-delta)), rel=1e-4)


@pytest.mark.parametrize(
    ("make", "keywords", "sentence"),
    [
        (preference.synthetic, {"objective": "dpo"}, "adaptive or bradley_terry"),
        (preference.synthetic, {"rho": 0.0}, "rho must be above 0"),
        (preference.synthetic, {"low": 2.0, "high": 1.0}, "low <= high"),
        (preference.text, {"context": 30}, "multiples of 4"),
    ],
)
def test_bad_input_is_said(make, keywords, sentence):
    with pytest.raises(ValueError, match=sentence):
        make(**keywords)
