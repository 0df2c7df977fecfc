"""The loss along directions, against dense Hessians."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from surge.gradients import curvature
from surge.gradients.curvature import alignments, along, hutchinson, hvp, mean_loss, quadratic_form

KEYS = jax.random.split(jax.random.key(0), 4)
BATCH = (
    jax.random.normal(KEYS[0], (300, 3)),
    jax.random.normal(KEYS[1], (300,)),
)  # more than one micro-batch
PARAMS = {"w": jax.random.normal(KEYS[2], (3, 2)), "v": jnp.ones(2)}
DIRECTION = {"w": jax.random.normal(KEYS[3], (3, 2)), "v": jnp.asarray([0.5, -1.0])}


def loss(params, example):
    return (jnp.tanh(example[0] @ params["w"]) @ params["v"] - example[1]) ** 2


def dense():
    flat, unravel = jax.flatten_util.ravel_pytree(PARAMS)
    mean = lambda vector: jax.vmap(loss, (None, 0))(unravel(vector), BATCH).mean()  # noqa: E731
    return (
        mean(flat),
        jax.grad(mean)(flat),
        jax.hessian(mean)(flat),
        jax.flatten_util.ravel_pytree(DIRECTION)[0],
    )


def test_derivatives_along_a_direction_equal_dense():
    value, gradient, hessian, u = dense()
    found = along(loss, PARAMS, BATCH, DIRECTION)
    np.testing.assert_allclose(found, (value, gradient @ u, u @ hessian @ u), rtol=1e-4)
    np.testing.assert_allclose(mean_loss(loss, BATCH)(PARAMS), value, rtol=1e-5)
    np.testing.assert_allclose(
        quadratic_form(loss, PARAMS, BATCH, DIRECTION), u @ hessian @ u, rtol=1e-4
    )
    product = jax.flatten_util.ravel_pytree(hvp(loss, PARAMS, BATCH, DIRECTION))[0]
    np.testing.assert_allclose(product, hessian @ u, rtol=1e-3, atol=1e-4)


def test_alignments_are_slopes_of_single_losses():
    rows = jax.vmap(jax.grad(loss), (None, 0))(PARAMS, BATCH)
    flat = np.concatenate([np.asarray(leaf).reshape(300, -1) for leaf in jax.tree.leaves(rows)], 1)
    u = np.asarray(jax.flatten_util.ravel_pytree(DIRECTION)[0])
    np.testing.assert_allclose(
        alignments(loss, PARAMS, BATCH, DIRECTION), flat @ u, rtol=1e-3, atol=1e-4
    )


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
    np.testing.assert_allclose(
        found.sum(0), curvature.alignments(loss, params, batch, params), rtol=1e-5
    )
