"""One law for all: ε_opt(B) = ε_∞ (1 + c y)^p / (1 + k κ y), y = σ²/(μ²B), on quadratics.

The measured one-step law of each published optimizer against its exponent p, inflation c and noise
gain k, where κ = tr H / s'Hs' says whether there is a surge (k κ < c/2).
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from surge.gradients import one_step
from surge.gradients.steps import sample_steps
from surge.optimizers import make_optimizer, update
from surge.tasks import Task
from surge.tasks.quadratic import problem, quadratic

SIZES = (4, 16, 256, 4096)
MOMENTUM = 0.1 / 1.9  # (1 − β1)/(1 + β1)
# spec: (p, c, k)
LAW = {
    "sgd": (0, 0, 1),
    "adam": (0.5, 1, MOMENTUM),
    "adam(b1=0)": (0.5, 1, 1),
    "eve": (0.5, 1 + MOMENTUM, MOMENTUM),
    "examplewise_adam": (0, 0, MOMENTUM),
    "madam": (0.5, 5.77, MOMENTUM),
    "tom": (0.5, 1, 0.0628),
    "adagrad_norm": (0.5, 1, 1),
    "lars": (0.5, 1, MOMENTUM),
    "lars(decay=0.0)": (0.5, 1, 1),
    "clars(decay=0.0)": (0, 0, 1),
}


def as_matrix(**kind):
    """A quadratic whose parameters are one layer [10, 4]."""
    flat = quadratic(**kind)
    return Task(
        init=lambda key: {"kernel": flat.init(key).reshape(10, 4)},
        loss=lambda params, example: flat.loss(params["kernel"].ravel(), example),
        data=flat.data,
        draw=flat.draw,
        evaluation=flat.evaluation,
    )


@cache
def measured(hessian, specs):
    task = as_matrix(hessian=hessian, size=40, noise=8.0)
    point = task.loss, task.init(jax.random.key(0)), task.draw, task.data, task.evaluation
    made = {spec: make_optimizer(spec) for spec in specs}
    steps = sample_steps(*point, made, SIZES, jax.random.key(0), count=512)
    return {spec: one_step.measured_law(samples) for spec, samples in steps.samples.items()}


def foretold(hessian, spec):
    """The law but for its level [b]."""
    known = problem(hessian=hessian, size=40, noise=8.0)
    sign = np.sign(known.mu)
    kappa = np.trace(known.hessian) / (sign @ known.hessian @ sign)
    y = 64.0 / np.array(SIZES)
    p, c, k = LAW[spec]
    return (1 + c * y) ** p / (1 + k * kappa * y), k * kappa < c / 2


@pytest.mark.slow
@pytest.mark.parametrize("hessian", ["rank_one", "diagonal"])  # κ = 0.16 and 1
@pytest.mark.parametrize("spec", LAW)
def test_measured_optima_follow_the_one_law(hessian, spec):
    law, surges = foretold(hessian, spec)
    found = measured(hessian, tuple(LAW))[spec]
    error = np.log(found.high / found.low) / (2 * 1.96)
    apart = np.log(found.lr / law)
    weight = 1 / (error**2 + 0.01**2)
    apart -= (weight * apart).sum() / weight.sum()
    assert np.all(np.abs(apart) < np.log(1.05) + 3 * error), (np.exp(apart), error)
    rises = found.lr.max() / found.lr[-1]
    assert rises > 1.02 if surges else rises < 1.02 + 3 * error.max()


def test_the_two_quadratics_lie_on_both_sides_of_the_surge_condition():
    surges = {
        (hessian, spec): foretold(hessian, spec)[1]
        for hessian in ("rank_one", "diagonal")
        for spec in LAW
    }
    assert surges["rank_one", "adagrad_norm"] and not surges["diagonal", "adagrad_norm"]
    assert surges["rank_one", "lars(decay=0.0)"] and not surges["diagonal", "lars(decay=0.0)"]
    assert surges["diagonal", "madam"] and not any(
        surges[hessian, "clars(decay=0.0)"] for hessian in ("rank_one", "diagonal")
    )


def test_the_measured_law_of_adabelief_is_that_of_a_long_run():
    """Whose state was settled wrongly while nobody had to say how: 0.0995 for 0.1132 once."""
    size, spec = 64, "adabelief(b2=0.99)"
    kind = {"hessian": "rank_one", "size": 40, "noise": 8.0}
    task, known = quadratic(**kind), problem(**kind)
    theta = task.init(jax.random.key(0))
    point = task.loss, theta, task.draw, task.data, task.evaluation
    made = {spec: make_optimizer(spec)}
    samples = sample_steps(*point, made, (size,), jax.random.key(1), count=256).samples
    law = one_step.measured_law(samples[spec])

    transform = made[spec](1.0, size, None)
    mu, root = jnp.asarray(known.mu, jnp.float32), jnp.asarray(known.noise_root, jnp.float32)

    def step(state, key):
        noise = root @ jax.random.normal(key, mu.shape) / size**0.5
        updates, state = update(transform, mu + noise, state, theta)
        return state, -updates

    keys = jax.random.split(jax.random.key(2), 20_000)
    _, directions = jax.lax.scan(step, transform.init(theta), keys)
    late = np.asarray(directions[2_000:], float)
    drift = (late @ known.mu).mean()
    curvature = np.einsum("ki,ij,kj->k", late, known.hessian, late).mean()
    assert law.lr[0] == pytest.approx(drift / curvature, rel=0.03)
