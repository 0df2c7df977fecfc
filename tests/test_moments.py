"""Gradient moments against a loop over examples in float64, and in the cases that are numerically
hard."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slowly import slow

from surge.gradients.batch import mean_gradient, weighted
from surge.gradients.moments import _stream, merge, minibatch_moments, per_example_moments
from surge.tasks import draw_from_arrays, gpt


class SmallCNN(nn.Module):
    @nn.compact
    def __call__(self, image):
        hidden = nn.relu(nn.GroupNorm(2)(nn.Conv(4, (3, 3))(image[None])))
        return nn.Dense(3)(hidden.reshape(-1))


class TiedText(nn.Module):
    """Embedding, norm, tied output: a weight that is used twice."""

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(7, 6)
        return embed.attend(nn.LayerNorm()(nn.Dense(6)(nn.relu(embed(tokens)))))


def problem(name, n=11, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 3)
    if name == "cnn":
        model, inputs, labels = (
            SmallCNN(),
            jax.random.normal(keys[0], (n, 5, 5, 1)),
            jnp.arange(n) % 3,
        )
    elif name == "tied":
        model, inputs = TiedText(), jax.random.randint(keys[0], (n, 4), 0, 7)
        labels = jnp.roll(inputs, 1, -1)
    else:
        model, inputs, labels = nn.Dense(3), jax.random.normal(keys[0], (n, 4)), jnp.arange(n) % 3
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), model.init(keys[1], inputs[0]))

    def loss(params, example):
        logits = jnp.asarray(model.apply(params, example[0]))
        return -jnp.take_along_axis(nn.log_softmax(logits), example[1][..., None], -1).mean()

    return loss, params, (inputs, labels)


def loop(loss, params, batch):
    """The second implementation: one example at a time, sums in float64."""
    n = len(jax.tree.leaves(batch)[0])
    rows = [
        jax.grad(loss)(params, jax.tree.map(lambda leaf, i=i: leaf[i], batch)) for i in range(n)
    ]
    return jax.tree.map(
        lambda *leaves: np.stack([np.asarray(leaf, np.float64) for leaf in leaves]), *rows
    )


def assert_equals_loop(moments, rows, rtol=1e-5):
    n = len(jax.tree.leaves(rows)[0])
    assert int(moments.n) == n

    def close(found, expected, scale):
        np.testing.assert_allclose(found, expected, rtol=rtol, atol=rtol * scale)

    for mean, variance, signs, zeros, norms, g in zip(
        *(
            jax.tree.leaves(each)
            for each in (
                moments.mean,
                moments.variance,
                moments.sign_sum,
                moments.zeros,
                moments.square_norms,
                rows,
            )
        ),
        strict=True,
    ):
        scale = np.abs(g).max() + 1e-300
        close(mean, g.mean(0), scale)
        close(variance, g.var(0, ddof=1), scale**2)
        close(norms, (g.reshape(n, -1) ** 2).sum(1), scale**2)
        # Gradients that are zero but for rounding, as of an attention's key bias, have no sign to
        # agree on.
        told = ((g == 0) | (np.abs(g) > 1e-6 * scale)).all(0)
        np.testing.assert_array_equal(np.asarray(signs)[told], np.sign(g).sum(0)[told])
        np.testing.assert_array_equal(np.asarray(zeros)[told], (g == 0).sum(0)[told])


@pytest.mark.parametrize("name", ["dense", "cnn", "tied"])
@pytest.mark.parametrize("size", [4, *slow(1, 11, None)])
def test_moments_equal_a_loop_over_examples(name, size):
    loss, params, batch = problem(name)
    assert_equals_loop(
        per_example_moments(loss, params, batch, microbatch_size=size), loop(loss, params, batch)
    )


def test_two_devices_merge_to_the_whole():
    loss, params, batch = problem("dense", n=12)
    halves = jax.tree.map(lambda leaf: leaf.reshape(2, 6, *leaf.shape[1:]), batch)
    both = jax.pmap(
        lambda half: per_example_moments(loss, params, half), devices=jax.devices()[:2]
    )(halves)
    one, other = (jax.tree.map(lambda leaf, i=i: np.asarray(leaf)[i], both) for i in (0, 1))
    assert_equals_loop(merge(one, other), loop(loss, params, batch))


def product(weights, row):
    return weights @ row


def linear(rows, **kwargs):
    return per_example_moments(product, jnp.zeros(rows.shape[1], rows.dtype), rows, **kwargs)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=5), st.randoms())
def test_merge_does_not_mind_split_or_order(sizes, random):
    """Of a linear model: the gradient of w·x is x itself."""
    n = sum(sizes)
    rows = np.random.default_rng(n).normal(3.0, 1.0, (n, 2)).astype(np.float32)
    cuts = np.cumsum(sizes)[:-1]
    parts = [linear(part) for part in np.split(rows, cuts)]
    random.shuffle(parts)
    total = parts[0]
    for part in parts[1:]:
        total = merge(total, part)
    np.testing.assert_allclose(total.mean, rows.mean(0), rtol=1e-5)
    np.testing.assert_allclose(total.square, ((rows - rows.mean(0)) ** 2).sum(0), rtol=1e-4)
    assert sorted(np.asarray(total.square_norms)) == pytest.approx(
        sorted((rows**2).sum(1)), rel=1e-5
    )


def test_a_mean_of_ten_thousand_standard_deviations_keeps_the_variance():
    rows = (1e4 + np.random.default_rng(0).normal(size=(512, 3))).astype(np.float32)
    moments = linear(jnp.asarray(rows), microbatch_size=32)
    np.testing.assert_allclose(moments.variance, rows.astype(np.float64).var(0, ddof=1), rtol=1e-4)


def test_tiny_gradients_keep_their_signs():
    rows = jnp.asarray([[1e-20], [-1e-20], [1e-20], [0.0]])
    moments = linear(rows)
    assert int(moments.sign_sum[0]) == 1 and int(moments.zeros[0]) == 1
    np.testing.assert_allclose(moments.mean, 2.5e-21, rtol=1e-5)


def test_bfloat16_is_accumulated_in_float32():
    rows = jnp.asarray(np.random.default_rng(0).normal(1.0, 0.01, (4096, 1)), jnp.bfloat16)
    moments = linear(rows, microbatch_size=8)
    assert moments.mean.dtype == jnp.float32
    np.testing.assert_allclose(moments.mean, np.asarray(rows, np.float64).mean(0), rtol=1e-5)


def test_one_example_has_no_variance():
    assert np.isnan(linear(jnp.ones((1, 2))).variance).all()


def test_all_zero_gradients():
    moments = linear(jnp.zeros((5, 2)))
    assert (
        (moments.variance == 0).all()
        and (moments.zero_share == 1).all()
        and (moments.sign_mean == 0).all()
    )


def test_a_nan_gradient_is_found_by_its_norm():
    rows = jnp.ones((6, 2)).at[4, 1].set(jnp.nan)
    assert np.flatnonzero(~np.isfinite(linear(rows, microbatch_size=4).square_norms)).tolist() == [
        4
    ]


def test_minibatch_moments_are_those_of_means():
    rows = np.random.default_rng(0).normal(size=(12, 2)).astype(np.float32)
    moments = minibatch_moments(lambda w, batch: (batch @ w).mean(), jnp.zeros(2), rows, 3)
    means = rows.reshape(4, 3, 2).mean(1)
    np.testing.assert_allclose(moments.variance, means.var(0, ddof=1), rtol=1e-5)
    np.testing.assert_allclose(moments.sign_mean, np.sign(means).mean(0))
    with pytest.raises(ValueError, match="do not split"):
        minibatch_moments(lambda w, batch: (batch @ w).mean(), jnp.zeros(2), rows, 5)


def test_bad_batches_are_refused():
    with pytest.raises(ValueError, match="common leading axis"):
        per_example_moments(lambda w, x: w @ x[0], jnp.zeros(2), (jnp.ones((3, 2)), jnp.ones(4)))
    with pytest.raises(ValueError, match="at least 1"):
        linear(jnp.ones((3, 2)), microbatch_size=0)


@pytest.mark.slow
def test_memory_grows_with_neither_examples_nor_micro_batches():
    model = gpt.GPT(gpt.SIZES["tiny"])
    params = model.init(jax.random.key(0), jnp.zeros(16, jnp.int32))

    def loss(params, row):
        return gpt.token_losses(model, params, row)[0].mean()

    def temporaries(n):
        rows = jnp.zeros((n, 17), jnp.uint8)
        memory = _stream.lower(loss, 4, params, rows).compile().memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    assert temporaries(64) <= 1.02 * temporaries(16)


@pytest.mark.parametrize("batch_size", [64, 65_536])
def test_a_batch_of_bfloat16_gradients_is_summed_in_float32(batch_size):
    data = jnp.ones((4, 3), jnp.float32)
    params = jnp.zeros(3, jnp.bfloat16)
    gradient = mean_gradient(
        weighted(lambda theta, example: theta.astype(jnp.float32) @ example),
        draw_from_arrays,
        params,
        data,
        jax.random.key(0),
        batch_size,
        8,
    )
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_array_equal(gradient, 1.0)
