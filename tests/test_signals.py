"""Signals of a batch against one example after another."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from surge.gradients.batch import mean_gradient, weighted
from surge.gradients.signals import example_moments, gradients_elsewhere
from surge.optimizers import make_optimizer
from surge.tasks import Task, draw_from_arrays
from surge.training.step import Cell, make_step

KEY = jax.random.key(7)
RNG = np.random.default_rng(0)
DATA = {"x": jnp.asarray(RNG.normal(size=(50, 4)), jnp.float32), "y": jnp.arange(50.0)}
PARAMS = {
    "kernel": jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32),
    "bias": jnp.asarray(RNG.normal(size=3), jnp.float32),
}


def loss(params, example):
    hidden = jnp.tanh(example["x"] @ params["kernel"] + params["bias"])
    return (hidden.sum() - 0.1 * example["y"]) ** 2


def singles(size, key=KEY):
    """Gradients of the examples of a batch, one by one [n, ...]."""
    keys = [jax.random.fold_in(key, index) for index in range(size)]
    found = [jax.grad(loss)(PARAMS, draw_from_arrays(DATA, key)) for key in keys]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *found)


def close(ours, theirs):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=5e-6), ours, theirs)


@pytest.mark.parametrize("microbatch_size", [1, 4, 16])
@pytest.mark.parametrize(("size", "norm_batch"), [(1, 1), (7, 1), (12, 4), (7, 4), (3, 8)])
def test_moments_are_those_of_single_gradients(size, norm_batch, microbatch_size):
    batch = draw_from_arrays, PARAMS, DATA, KEY, jnp.asarray(size), microbatch_size
    gradient, moments = jax.jit(example_moments, static_argnums=(0, 1, 6, 7))(
        loss, *batch, norm_batch
    )
    examples = singles(size)
    close(gradient, jax.tree.map(lambda leaf: leaf.mean(0), examples))
    close(moments.square, jax.tree.map(lambda leaf: (leaf**2).mean(0), examples))
    assert moments.count == size

    def norm(leaf):
        groups = [leaf[start : start + norm_batch].mean(0) for start in range(0, size, norm_batch)]
        return np.mean([np.sqrt((group**2).sum()) for group in groups])

    close(moments.norm, jax.tree.map(norm, examples))


@pytest.mark.parametrize(("size", "workers"), [(8, 4), (7, 3), (3, 3), (5, 1)])
def test_shares_of_a_batch_have_gradients_at_points_of_their_own(size, workers):
    gradient_fn = gradients_elsewhere(loss, draw_from_arrays, DATA, KEY, size, 2)
    shift = jnp.arange(workers) / 10
    points = jax.tree.map(lambda leaf: leaf + shift.reshape(-1, *[1] * leaf.ndim), PARAMS)
    found = gradient_fn(points)
    for worker in range(workers):
        point = jax.tree.map(lambda leaf, worker=worker: leaf[worker], points)
        keys = [jax.random.fold_in(KEY, index) for index in range(worker, size, workers)]
        own = [jax.grad(loss)(point, draw_from_arrays(DATA, key)) for key in keys]
        mean = jax.tree.map(lambda *leaves: np.mean(leaves, 0), *own)
        close(jax.tree.map(lambda leaf, worker=worker: leaf[worker], found), mean)


def test_one_share_is_the_batch():
    whole = mean_gradient(weighted(loss), draw_from_arrays, PARAMS, DATA, KEY, 6, 4)
    points = jax.tree.map(lambda leaf: leaf[None], PARAMS)
    shares = gradients_elsewhere(loss, draw_from_arrays, DATA, KEY, 6, 4)(points)
    close(whole, jax.tree.map(lambda leaf: leaf[0], shares))


def step_of(spec, **changes):
    given: dict[str, Any] = {
        "init": None,
        "loss": loss,
        "data": DATA,
        "draw": draw_from_arrays,
        "evaluation": DATA,
    }
    task = Task(**given | changes)
    cell = Cell(0.01, KEY, 6, jnp.array([10]))
    step = make_step(task, make_optimizer(spec), cell, DATA, microbatch_size=4)
    state = make_optimizer(spec)(0.01, 6, 10).init(PARAMS)
    return step(jnp.asarray(0), (PARAMS, state))[0]


def test_a_step_hands_moments_to_those_that_ask():
    examples = singles(6, jax.random.fold_in(jax.random.split(KEY)[1], 0))
    mean, square = (
        jax.tree.map(lambda leaf, power=power: (leaf**power).mean(0), examples) for power in (1, 2)
    )
    divided = jax.tree.map(
        lambda leaf, mean, square: leaf - 0.01 * mean / np.sqrt(square), PARAMS, mean, square
    )
    close(step_of("examplewise_adam"), divided)


def test_a_step_may_need_both_signals():
    base = "active(epoch_examples=100, base='extrap_sgd(extrapolation=0.0)', inner_decay=0.0)"
    close(step_of(base), step_of("sgd"))


def test_coupled_examples_have_no_moments_in_one_sentence():
    with pytest.raises(ValueError, match="eve needs the loss of single examples"):
        step_of("eve", batch_loss=lambda params, batch: 0.0)
