"""The loss along directions, against dense Hessians."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from surge.gradients import curvature
from surge.gradients.curvature import hutchinson, hvp, mean_loss, second_difference

KEYS = jax.random.split(jax.random.key(0), 4)
# more than one micro-batch
BATCH = (
    jax.random.normal(KEYS[0], (300, 3)),
    jax.random.normal(KEYS[1], (300,)),
)
PARAMS = {"w": jax.random.normal(KEYS[2], (3, 2)), "v": jnp.ones(2)}
DIRECTION = {"w": jax.random.normal(KEYS[3], (3, 2)), "v": jnp.asarray([0.5, -1.0])}


def loss(params, example):
    return (jnp.tanh(example[0] @ params["w"]) @ params["v"] - example[1]) ** 2


def dense():
    flat, unravel = jax.flatten_util.ravel_pytree(PARAMS)

    def mean(vector):
        return jax.vmap(loss, (None, 0))(unravel(vector), BATCH).mean()

    return (
        mean(flat),
        jax.grad(mean)(flat),
        jax.hessian(mean)(flat),
        jax.flatten_util.ravel_pytree(DIRECTION)[0],
    )


def test_bends_and_hessian_products_equal_dense():
    value, _, hessian, u = dense()
    np.testing.assert_allclose(mean_loss(loss, BATCH)(PARAMS), value, rtol=1e-5)
    bend = second_difference(loss, PARAMS, BATCH, DIRECTION, jnp.float32(0.02))
    np.testing.assert_allclose(bend, u @ hessian @ u, rtol=5e-3)
    product = jax.flatten_util.ravel_pytree(hvp(loss, PARAMS, BATCH, DIRECTION))[0]
    np.testing.assert_allclose(product, hessian @ u, rtol=1e-3, atol=1e-4)


def test_the_bend_of_a_kink_is_that_of_the_step_across_it():
    """|x| has no second derivative anywhere, and bends by 2/h over a step of h across 0."""
    bend = second_difference(
        lambda theta, _: jnp.abs(theta),
        jnp.float32(0.1),
        jnp.zeros(3),
        jnp.float32(1.0),
        jnp.float32(0.4),
    )
    np.testing.assert_allclose(bend, 2 * 0.3 / 0.4**2, rtol=1e-5)


def test_bfloat16_parameters_bend_as_their_values_in_float32():
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), narrow)
    of_narrow, of_wide = (
        second_difference(loss, params, BATCH, DIRECTION, jnp.float32(1e-2))
        for params in (narrow, wide)
    )
    np.testing.assert_array_equal(of_narrow, of_wide)


def test_hutchinson_covers_the_diagonal_and_the_trace():
    _, _, hessian, _ = dense()
    found = hutchinson(loss, PARAMS, BATCH, jax.random.key(1), 400)
    diagonal = jax.flatten_util.ravel_pytree(found.diagonal)[0]
    error = jax.flatten_util.ravel_pytree(found.diagonal_error)[0]
    np.testing.assert_array_less(jnp.abs(diagonal - jnp.diagonal(hessian)), 4.5 * error + 1e-6)
    assert abs(found.trace - jnp.trace(hessian)) < 4 * found.trace_error
    with pytest.raises(ValueError, match="at least 2"):
        hutchinson(loss, PARAMS, BATCH, jax.random.key(1), 1)


def test_layer_alignments_sum_to_the_whole_and_are_those_of_the_layer():
    params = {"a": jnp.arange(3.0), "b": jnp.ones((3, 2)), "c": jnp.ones(2)}
    batch = jax.random.normal(jax.random.key(0), (5, 3))

    def loss(params, x):
        return jnp.sum(jnp.tanh((x + params["a"]) @ params["b"] + params["c"]) ** 2)

    found = curvature.layer_alignments(loss, params, batch, params, [0, 1, 1])
    gradients = jax.vmap(jax.grad(loss), (None, 0))(params, batch)
    inner = {
        name: jnp.sum(gradients[name] * params[name], tuple(range(1, gradients[name].ndim)))
        for name in params
    }
    np.testing.assert_allclose(found, jnp.stack([inner["a"], inner["b"] + inner["c"]]), rtol=1e-5)
    rows = jnp.concatenate([leaf.reshape(5, -1) for leaf in jax.tree.leaves(gradients)], 1)
    flat = jax.flatten_util.ravel_pytree(params)[0]
    np.testing.assert_allclose(found.sum(0), rows @ flat, rtol=1e-4)
