"""Runs that branch from a point, on quadratics whose one-step optimum is known."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from slowly import slow
from test_one_step import KIND, exact

from surge.optimizers import make_optimizer
from surge.tasks.quadratic import problem, quadratic
from surge.training.branch import BranchOracle

TASK = quadratic(**KIND, correlation=0.3)
START = TASK.init(jax.random.key(0))


def oracle(budget):
    return BranchOracle(TASK, jax.random.key(5), budget)


@pytest.mark.parametrize("spec", ["sign_sgd", "adam", *slow("momentum", "lion")])
def test_one_step_from_a_settled_state_finds_the_exact_optimum(spec):
    truth = exact(KIND, 0.3, (256,))[spec][0]
    found = oracle(10**8)(spec, START, 256, 1.5 * truth, (1,)).optima[1]
    assert found.lr == pytest.approx(truth, rel=0.1)
    assert found.low <= 1.05 * truth and 0.95 * truth <= found.high
    assert not found.at_edge


def test_the_optimum_after_many_steps_is_that_of_the_loss_they_end_at():
    """SGD without noise to speak of: after K steps an eigenvalue h leaves a share (1 − εh)^2K of
    its loss."""
    task = quadratic(**KIND | {"noise": 1e-3})
    found = BranchOracle(task, jax.random.key(0), 10**7)("sgd", START, 64, 0.2, (10,)).optima[10]
    known = problem(**KIND)
    values, vectors = np.linalg.eigh(known.hessian)
    energy = values * (vectors.T @ known.start) ** 2
    rates = np.geomspace(1e-2, 1.0, 4000)
    best = rates[(energy[:, None] * (1 - values[:, None] * rates) ** 20).sum(0).argmin()]
    assert found.lr == pytest.approx(best, rel=0.25)


def test_the_budget_bounds_the_cost_and_leaves_out_horizons():
    found = oracle(50_000)("sign_sgd", START, 64, 0.1, (1, 10, 1000))
    assert set(found.optima) == {1, 10}
    assert 0 < found.examples <= 50_000
    assert oracle(100)("sign_sgd", START, 64, 0.1, (1,)).optima == {}


def test_an_undefined_centre_leaves_nothing_to_run():
    assert oracle(10**6)("sign_sgd", START, 8, np.nan, (1,)) == ({}, 0)


def test_a_settled_spec_holds_the_parameters_while_moments_move():
    held = make_optimizer("adam(b1=0.5, schedule='cosine')").held(3)
    assert held == make_optimizer("adam(b1=0.5, hold=3)")
    transform = held(0.1, 8, 100)
    params, state = jnp.ones(4), transform.init(jnp.ones(4))
    for step in range(5):
        updates, state = transform.update(jnp.arange(1.0, 5.0), state, params)
        params = optax.apply_updates(params, updates)
        assert bool(np.all(np.asarray(params) == 1)) == (step < 3)
