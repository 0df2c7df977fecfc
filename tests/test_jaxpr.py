"""The walker of traced programs: what it is given back, it returns."""

import jax
import jax.numpy as jnp
import numpy as np

from surge.gradients import jaxpr


def function(x, y):
    """Calls, a branch, a loop, a literal, and an input handed through."""

    @jax.jit
    def inner(z):
        return jnp.sin(z) * 2.0

    def body(carry, row):
        return carry + inner(row), carry.sum()

    total, sums = jax.lax.scan(body, y, x)
    return jax.lax.cond(total.sum() > 0, jnp.sin, jnp.cos, total), sums, y


ARGS = jnp.arange(6.0).reshape(3, 2) / 7, jnp.ones(2)


def leaves_of(program, visit):
    return jaxpr.walk(program, ARGS, visit)


def test_evaluating_each_equation_is_evaluating_the_program():
    program = jax.make_jaxpr(function)(*ARGS)
    expected = jax.tree.leaves(function(*ARGS))
    for ours, theirs in zip(leaves_of(program, jaxpr.evaluate), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def cosines(program):
    """The program with each sine as a cosine, wherever it stands."""

    def visit(equation, inputs):
        if equation.primitive.name == "sin":
            return [jnp.cos(inputs[0])]
        return jaxpr.evaluate(jaxpr.with_inner(equation, cosines), inputs)

    return jax.make_jaxpr(lambda *args: jaxpr.walk(program, args, visit))(*program.in_avals)


def test_a_change_reaches_calls_loops_and_branches():
    program = cosines(jax.make_jaxpr(function)(*ARGS))
    assert "sin" not in str(program).split()
    total = ARGS[1] + 2 * np.cos(ARGS[0]).sum(0)
    first, _, given = leaves_of(program, jaxpr.evaluate)
    np.testing.assert_allclose(first, np.cos(total), rtol=1e-6)
    np.testing.assert_array_equal(given, ARGS[1])


def test_inner_programs_are_those_of_calls_and_loops():
    program = jax.make_jaxpr(function)(*ARGS)
    inside = {
        equation.primitive.name: len(list(jaxpr.inner_programs(equation)))
        for equation in program.jaxpr.eqns
    }
    assert inside["scan"] == 1 and inside["cond"] == 0
