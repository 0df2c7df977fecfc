import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from jax.extend.core import ClosedJaxpr

from surge.tasks import gpt
from surge.training.rewriting import rewritten


def products(jaxpr):
    """Every product in a program, as its equation, also inside loops and branches."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        for parameter in equation.params.values():
            for inner in parameter if isinstance(parameter, tuple) else (parameter,):
                if isinstance(inner, ClosedJaxpr):
                    yield from products(inner.jaxpr)


def sums_over_last(equation):
    (summed, _), _ = equation.params["dimension_numbers"]
    axes = equation.invars[0].aval.ndim
    return tuple(summed) == tuple(range(axes - len(summed), axes))


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_product_stays_what_it_is(data):
    # Labels of axes: a, b in both and kept, i, j summed over, m, n of the left and o, p of the
    # right alone.
    kinds = [
        data.draw(st.integers(0, 2), label=kind) for kind in ("batch", "summed", "left", "right")
    ]
    batch, summed, left, right = (
        names[:count] for names, count in zip(("ab", "ij", "mn", "op"), kinds, strict=True)
    )
    sizes = {name: data.draw(st.integers(1, 5), label=name) for name in "abijmnop"}
    first, second, out = (
        data.draw(st.permutations(names))
        for names in (batch + summed + left, batch + summed + right, batch)
    )
    rule = f"{''.join(first)},{''.join(second)}->{''.join(out)}{left}{right}"
    x, y = (
        normal(*[sizes[name] for name in names], seed=seed)
        for seed, names in enumerate((first, second))
    )
    np.testing.assert_allclose(
        rewritten(lambda x, y: jnp.einsum(rule, x, y))(x, y),
        jnp.einsum(rule, x, y),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize("widths", [(12, 5), (5, 12)])
def test_a_gradient_of_many_rows_multiplies_a_transpose(widths):
    x, w = normal(8, 16, widths[0]), normal(*widths, seed=1)
    gradient = jax.grad(lambda w: (jnp.tanh(x @ w) ** 2).sum())
    assert not all(map(sums_over_last, products(jax.make_jaxpr(gradient)(w).jaxpr)))
    assert all(map(sums_over_last, products(jax.make_jaxpr(rewritten(gradient))(w).jaxpr)))
    np.testing.assert_allclose(rewritten(gradient)(w), gradient(w), rtol=1e-5, atol=1e-5)


def test_a_gradient_of_few_rows_is_left_alone():
    x, w = normal(3, 12), normal(12, 5, seed=1)
    gradient = jax.grad(lambda w: ((x @ w) ** 2).sum())
    assert str(jax.make_jaxpr(rewritten(gradient))(w)) == str(jax.make_jaxpr(gradient)(w))


def test_an_array_is_divided_by_one_number_as_by_its_reciprocal():
    x, number, row = normal(5, 3), jnp.float32(3.0), normal(3, seed=1)

    def divided(x, number, row):
        return x / number, number / x, x / row, number / number, jnp.arange(5) // 2

    program = str(jax.make_jaxpr(rewritten(divided))(x, number, row))
    assert program.count(" div ") == str(jax.make_jaxpr(divided)(x, number, row)).count(" div ")
    assert "f32[] = div 1.0" in program
    for ours, plain in zip(
        rewritten(divided)(x, number, row), divided(x, number, row), strict=True
    ):
        np.testing.assert_allclose(ours, plain, rtol=3e-7)


def test_products_inside_loops_branches_and_calls_are_rewritten():
    x, w = normal(64, 6), normal(6, 4, seed=1)
    gradient = jax.grad(lambda w, x: (jnp.tanh(x @ w) ** 2).sum())

    def trained(w, x):
        def step(carry, rate):
            index, w = carry
            moved = jax.lax.cond(
                index % 2 == 0, lambda: gradient(w, x), lambda: -jax.jit(gradient)(w, -x)
            )
            return (index + 1, w - rate * moved), jnp.abs(w).sum()

        (_, w), sizes = jax.lax.scan(step, (0, w), jnp.full(3, 1e-3))
        w = jax.lax.fori_loop(0, 4, lambda _, w: w - 1e-3 * gradient(w, x), w)
        ws = jax.lax.map(lambda scale: gradient(w * scale, x), jnp.arange(3.0))
        lanes = jax.vmap(gradient, (0, None))(ws, x)
        return {"w": w, "sizes": sizes, "lanes": lanes}

    def count(function):
        return sum(
            not sums_over_last(each) for each in products(jax.make_jaxpr(function)(w, x).jaxpr)
        )

    assert count(trained) >= 4 and count(rewritten(trained)) == 0
    jax.tree.map(
        lambda ours, plain: np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-5),
        jax.jit(rewritten(trained))(w, x),
        trained(w, x),
    )


def test_a_gpt_has_the_same_gradient_in_any_order():
    model = gpt.GPT(gpt.SIZES["tiny"])
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 256, (4, 65)))
    params = model.init(jax.random.key(0), tokens[0, :-1])

    def loss(params, row):
        return gpt.token_losses(model, params, row)[0].mean()

    gradient = jax.grad(lambda params: jax.vmap(loss, (None, 0))(params, tokens).mean())
    jax.tree.map(
        lambda ours, plain: np.testing.assert_allclose(ours, plain, rtol=2e-3, atol=1e-6),
        jax.jit(rewritten(gradient))(params),
        jax.jit(gradient)(params),
    )


@pytest.mark.parametrize("length", [1, 2, 7, 16])
def test_attention_in_halves_is_causal_attention(length):
    query, key, value = (normal(length, 2, 4, seed=seed) for seed in range(3))
    np.testing.assert_allclose(
        gpt.causal_attention(query, key, value),
        jax.nn.dot_product_attention(query, key, value, is_causal=True),
        rtol=1e-5,
        atol=1e-5,
    )
