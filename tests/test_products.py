"""Moments by products against moments of stacked per-example gradients, for every way a weight is
used."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slowly import slow

from surge.gradients.moments import merge, per_example_moments
from surge.gradients.products import plan
from surge.tasks import gpt, resnet
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


class Attends(nn.Module):
    """Projections with several axes, an embedding tied to the output, a convolution of the
    library's own."""

    @nn.compact
    def __call__(self, inputs):
        tokens = jnp.clip(jnp.round(3 * inputs[:5] + 4).astype(jnp.int32), 0, 8)
        embed = nn.Embed(9, 8, name="embed")
        states = embed(tokens)[None]
        attention = nn.MultiHeadDotProductAttention(2, name="attention")
        states = states + jnp.asarray(attention(nn.LayerNorm(name="norm")(states)))
        return embed.attend(nn.Conv(8, (3,), name="conv")(states)[0]).mean(0)


class Scanned(nn.Module):
    """Two dense layers as one, run by a scan over their stacked kernels, and one that is
    recomputed."""

    @nn.compact
    def __call__(self, inputs):
        layer = nn.scan(
            lambda module, carry, _: (nn.tanh(module(carry)), None),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=2,
        )
        hidden, _ = layer(nn.Dense(6, name="stack"), inputs, None)
        return nn.remat(nn.Dense)(3, name="again")(hidden)


def left(params, example):
    """A weight on the left, one that two axes of the input meet, and one through a reshape and a
    transpose."""
    hidden = jnp.tanh(params["left"] @ example.reshape(3, 2))  # [5, 2]
    folded = params["folded"].reshape(2, 3, 4).transpose(2, 1, 0).reshape(4, 6)
    both = jnp.einsum("ab,abc->c", hidden, params["both"])
    return (folded @ example).sum() ** 2 + jnp.sin(both).sum() + (params["unused"] * 0).sum()


def looped(params, example):
    """A weight that all turns of a scan share, one with a slice for each, in another layout, and a
    scan in it, backwards and recomputed, whose turns each have a slice or share the outer one's."""

    def inner(state, weight):
        return jnp.tanh(params["turns"][0, 0, 0] * state @ weight @ params["shared"].T), state[:2]

    def outer(state, row):
        weights, own = row
        state, seen = jax.lax.scan(jax.checkpoint(inner), state, weights, reverse=True)
        return own.T @ jnp.tanh(own @ state), seen @ params["free"]

    rows = params["turns"], params["own"].reshape(2, 4, 6)
    state, seen = jax.lax.scan(outer, example, rows)
    return (state**2).sum() + jnp.sin(seen).sum()


def module_problem(model, shape, n=37, scale=1.0):
    key = jax.random.key(0)
    batch = scale * jax.random.normal(jax.random.fold_in(key, 1), (n, *shape))
    params = model.init(key, batch[0])
    return (
        (lambda params, example: (jnp.sin(model.apply(params, example)) ** 2).sum()),
        params,
        batch,
    )


SHAPES = {
    "left": {"left": (5, 3), "folded": (6, 4), "both": (5, 2, 3), "unused": (2,)},
    "looped": {"turns": (2, 3, 6, 6), "shared": (6, 6), "own": (8, 6), "free": (2, 3)},
}


def problem(name, n=37):
    keys = jax.random.split(jax.random.key(0), 5)
    if name in SHAPES:
        shapes = SHAPES[name]
        params = {
            each: jax.random.normal(key, shape)
            for (each, shape), key in zip(shapes.items(), keys[:4], strict=True)
        }
        loss = {"left": left, "looped": looped}[name]
        return loss, params, jax.random.normal(keys[4], (n, 6))
    if name == "gpt":
        model = gpt.GPT(gpt.SIZES["tiny"])
        rows = jax.random.randint(keys[0], (n, 9), 0, 256).astype(jnp.uint8)
        params = model.init(keys[1], jnp.zeros(8, jnp.int32))
        return (lambda params, row: gpt.token_losses(model, params, row)[0].mean()), params, rows
    models = {
        "mlp": (MLP((8, 5)), (6,)),
        "cnn": (CNN((4, 4), 8), (8, 8, 1)),
        "resnet": (resnet.ResNet((4, 8), (1, 1), 3, 2), (8, 8, 3)),
        "tied": (Tied(), (6,)),
        "attends": (Attends(), (6,)),
        "scanned": (Scanned(), (6,)),
    }
    return module_problem(*models[name], n)


def stacked(loss, params, batch):
    return jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(params, batch)


def assert_equals_stacked(moments, gradients, rtol=2e-5):
    largest = max(float(jnp.abs(each).max()) for each in jax.tree.leaves(gradients))
    for mean, square, sign_sum, zeros, norms, rows in zip(
        *(jax.tree.leaves(each) for each in (*moments[1:], gradients)), strict=True
    ):
        rows, n = np.asarray(rows, np.float64), len(rows)
        # What is zero but for rounding, like the gradient of an attention's key bias, has no digits
        # to agree on.
        scale = max(np.abs(rows).max(), 1e-2 * largest)
        np.testing.assert_allclose(mean, rows.mean(0), rtol=rtol, atol=rtol * scale)
        np.testing.assert_allclose(square, n * rows.var(0), rtol=rtol, atol=n * rtol * scale**2)
        np.testing.assert_allclose(
            norms, (rows.reshape(n, -1) ** 2).sum(1), rtol=rtol, atol=rtol * scale**2
        )
        told = ((rows == 0) | (np.abs(rows) > 1e-6 * scale)).all(0)
        np.testing.assert_array_equal(np.asarray(sign_sum)[told], np.sign(rows).sum(0)[told])
        np.testing.assert_array_equal(np.asarray(zeros)[told], (rows == 0).sum(0)[told])


@pytest.mark.parametrize(
    "name",
    ["mlp", "gpt", "scanned", "tied", *slow("cnn", "resnet", "attends", "left", "looped")],
)
def test_equals_stacked_gradients_on_one_device_and_two(name):
    loss, params, batch = problem(name, n=16)
    gradients = stacked(loss, params, batch)
    assert_equals_stacked(per_example_moments(loss, params, batch, microbatch_size=8), gradients)
    halves = batch.reshape(2, 8, *batch.shape[1:])
    parts = jax.pmap(
        lambda half: per_example_moments(loss, params, half), devices=jax.devices()[:2]
    )(halves)
    both = merge(*(jax.tree.map(lambda leaf, i=i: np.asarray(leaf)[i], parts) for i in (0, 1)))
    assert_equals_stacked(both, gradients)


@pytest.mark.parametrize("size", [2, 5, 64, *slow(1, 3, 7)])
def test_every_microbatch_size_gives_the_same(size):
    loss, params, batch = problem("tied", n=11)
    found = per_example_moments(loss, params, batch, microbatch_size=size)
    assert_equals_stacked(found, stacked(loss, params, batch))


def found_in(name):
    """Leaves in products alone, and those read elsewhere too or only."""
    loss, params, batch = problem(name)
    found = plan(loss, params, batch[0])
    names = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(params)
    ]
    names = [each.removeprefix("params/") for each in names]
    alone = {
        names[index] for index in range(len(names)) if found.of(index) and index not in found.read
    }
    return alone, {names[index] for index in found.read}


@pytest.mark.slow
def test_weights_are_found_where_they_meet_activations():
    def kernels(names):
        return {each for each in names if not each.endswith(("bias", "scale"))}

    assert kernels(found_in("mlp")[0]) == {f"Dense_{index}/kernel" for index in range(3)}
    assert kernels(found_in("cnn")[0]) == {
        f"{each}_{index}/kernel" for each in ("Conv", "Dense") for index in (0, 1)
    }
    assert not kernels(found_in("resnet")[1])
    assert kernels(found_in("gpt")[1]) == {"wte/embedding", "wpe"}
    alone, read = found_in("tied")
    assert kernels(alone) == {"twice/kernel", "free/kernel"} and "again/kernel" in read
    alone, read = found_in("attends")
    assert kernels(alone) == {
        f"attention/{each}/kernel" for each in ("query", "key", "value", "out")
    }
    assert kernels(read) == {"embed/embedding", "conv/kernel"}
    assert kernels(found_in("scanned")[0]) == {"stack/kernel", "again/kernel"}
    assert found_in("left") == ({"left", "folded", "both"}, {"unused"})
    assert found_in("looped") == ({"shared", "own", "free"}, {"turns"})


def test_turns_that_share_a_weight_are_rows_of_one_product():
    loss, params, batch = problem("looped")
    found = plan(loss, params, batch[0])
    names = sorted(params)
    counts = {
        (names[product.view.leaf], product.turns, product.slices, product.meetings)
        for product in found.products
    }
    assert counts == {
        ("turns", (2, 3), (2, 3), 1),
        ("shared", (2, 3), (), 6),
        ("own", (2,), (2,), 1),
        ("free", (2,), (), 6),
    }


@pytest.mark.parametrize("signs", ["signed", "positive", "sparse both"])
def test_outer_products_count_signs_exactly(signs):
    """Inputs without zeros, without negatives, and with both."""
    inputs = np.random.default_rng(0).integers(-2, 3, (300, 7)).astype(np.float32)
    inputs = {"signed": inputs + 0.5, "positive": np.maximum(inputs, 0), "sparse both": inputs}[
        signs
    ]
    cotangents = np.random.default_rng(1).integers(-1, 2, (300, 4)).astype(np.float32)

    def loss(weight, row):
        return (row[0] @ weight) @ row[1]

    found = per_example_moments(loss, jnp.zeros((7, 4)), (inputs, cotangents))
    rows = np.einsum("ni,no->nio", inputs, cotangents)
    np.testing.assert_array_equal(found.sign_sum, np.sign(rows).sum(0))
    np.testing.assert_array_equal(found.zeros, (rows == 0).sum(0))


def test_a_micro_batch_of_any_size_counts_signs_exactly():
    rows = np.tile(np.array([1, 0, -1], np.float32), (40_000, 2, 1))

    def loss(weight, row):
        return (row @ weight).sum()

    found = per_example_moments(loss, jnp.ones((3, 1)), rows, microbatch_size=len(rows))
    assert found.sign_sum.ravel().tolist() == [40_000, 0, -40_000]
    assert found.zeros.ravel().tolist() == [0, 40_000, 0]


@pytest.mark.parametrize("name", ["mlp", *slow("cnn", "gpt")])
def test_where_digits_cancel_variances_keep_theirs(name):
    """Every example nearly the same: the variance is 1e-8 of the squared mean."""
    if name == "gpt":  # the same tokens, weighted nearly alike
        plain, params, rows = problem(name)
        weights = 1 + 1e-4 * jax.random.normal(jax.random.key(3), (len(rows),))
        batch = (jnp.broadcast_to(rows[0], rows.shape), weights)

        def loss(params, example):
            return example[1] * plain(params, example[0])
    else:
        loss, params, rows = problem(name)
        batch = rows[:1] + 1e-4 * rows
    found = per_example_moments(loss, params, batch)
    for one, other in zip(
        jax.tree.leaves(found.variance), jax.tree.leaves(stacked(loss, params, batch)), strict=True
    ):
        other = np.asarray(other, float)
        atol = 1e-12 * max(1.0, np.abs(other).max() ** 2)
        np.testing.assert_allclose(one, np.var(other, 0, ddof=1), rtol=3e-2, atol=atol)


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_a_nan_example_is_named_by_its_norm(name):
    loss, params, batch = problem(name)
    found = per_example_moments(loss, params, batch.at[7].set(jnp.nan))
    broken = sum(~np.isfinite(np.asarray(each)) for each in jax.tree.leaves(found.square_norms)) > 0
    assert np.flatnonzero(broken).tolist() == [7]


def test_half_precision_is_summed_in_single():
    model = nn.Dense(4, dtype=jnp.bfloat16)
    batch = jax.random.normal(jax.random.key(1), (4_096, 3, 8))
    params = model.init(jax.random.key(0), batch[0])

    def loss(params, example):
        return jnp.asarray(model.apply(params, example)).astype(jnp.float32).sum()

    found = per_example_moments(loss, params, batch)
    # gradient of each column of the kernel
    truth = np.asarray(batch.astype(jnp.bfloat16), np.float64).sum(1)
    np.testing.assert_allclose(
        found.mean["params"]["kernel"][:, 0], truth.mean(0), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        found.variance["params"]["kernel"][:, 0], truth.var(0, ddof=1), rtol=1e-4
    )
