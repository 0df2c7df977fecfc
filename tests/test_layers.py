"""Moments by outer products against moments of per-example gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from surge.gradients import moments
from surge.gradients.layers import outer_layers
from surge.tasks.cnn import CNN
from surge.tasks.mlp import MLP


class Tied(nn.Module):
    """One dense layer used twice, one whose kernel is read again, and one that is neither."""

    @nn.compact
    def __call__(self, inputs):
        twice, again = nn.Dense(6, name="twice"), nn.Dense(6, name="again")
        hidden = again(nn.tanh(twice(nn.tanh(twice(inputs)))))
        penalty = (again.variables["params"]["kernel"] ** 2).sum()
        return nn.Dense(3, use_bias=False, name="free")(nn.relu(hidden)) + penalty


class Tokens(nn.Module):
    """A dense layer that sees every token."""

    @nn.compact
    def __call__(self, inputs):
        return nn.Dense(3, name="head")(nn.Dense(4, name="each")(inputs.reshape(-1, 2)).mean(0))


def problem(model, shape, n=37, scale=1.0):
    key = jax.random.key(0)
    batch = scale * jax.random.normal(jax.random.fold_in(key, 1), (n, *shape))
    params = model.init(key, batch[0])
    return (lambda params, example: (jnp.sin(model.apply(params, example)) ** 2).sum()), params, batch


def covered(model, shape):
    loss, params, batch = problem(model, shape)
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    return {names[layer.kernel].split("'")[-4] for layer in outer_layers(loss, params, batch[0])}


def test_layers_with_one_input_and_one_use_are_found():
    assert covered(MLP((8, 5)), (6,)) == {"Dense_0", "Dense_1", "Dense_2"}
    assert covered(CNN((4, 4), 8), (8, 8, 1)) == {"Dense_0", "Dense_1"}
    assert covered(Tied(), (6,)) == {"free"}
    assert covered(Tokens(), (6,)) == {"head"}


@pytest.mark.parametrize(("model", "shape"), [(MLP((8, 5)), (6,)), (CNN((4, 4), 8), (8, 8, 1)), (Tied(), (6,))])
@pytest.mark.parametrize("size", [None, 8])
def test_equals_the_general_path(model, shape, size, monkeypatch):
    loss, params, batch = problem(model, shape)
    fast = moments.per_example_moments(loss, params, batch, microbatch_size=size)
    monkeypatch.setattr(moments, "outer_layers", lambda *_: [])
    general = moments.per_example_moments(lambda *args: loss(*args), params, batch, microbatch_size=size)
    for field in ("sign_sum", "zeros", "n"):
        jax.tree.map(np.testing.assert_array_equal, getattr(fast, field), getattr(general, field))
    for field in ("mean", "square", "square_norms"):
        for one, other in zip(*(jax.tree.leaves(getattr(each, field)) for each in (fast, general)), strict=True):
            np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5 * float(jnp.abs(other).max()))


def test_where_digits_cancel_the_general_path_answers():
    """Every example nearly the same: the variance is 1e-8 of the squared mean."""
    loss, params, batch = problem(MLP((8,)), (6,))
    near = batch[:1] + 1e-4 * batch
    found = moments.per_example_moments(loss, params, near)
    slow = jax.vmap(jax.grad(loss), (None, 0))(params, near)
    for one, other in zip(jax.tree.leaves(found.variance), jax.tree.leaves(slow), strict=True):
        np.testing.assert_allclose(one, np.var(np.asarray(other, float), 0, ddof=1), rtol=1e-2, atol=1e-14)


def test_a_nan_example_is_named_by_its_norm():
    loss, params, batch = problem(MLP((8, 5)), (6,))
    found = moments.per_example_moments(loss, params, batch.at[7].set(jnp.nan))
    broken = sum(~np.isfinite(np.asarray(each)) for each in jax.tree.leaves(found.square_norms)) > 0
    assert np.flatnonzero(broken).tolist() == [7]
