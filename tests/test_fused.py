"""A fused step against one with all gradients first, and against plain autodiff and optax."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from slowly import slow

from surge.optimizers import make_optimizer
from surge.tasks.gpt import GPT, Size, token_losses
from surge.tasks.gpt_stack import parts, split
from surge.training.fused import Parts, Stack, fused_step, init_state, plain_step

SIZE = Size(vocabulary=32, context=16, width=16, depth=3, heads=2)
MODEL = GPT(SIZE)
WHOLE = MODEL.init(jax.random.key(0), jnp.zeros(8, jnp.int32))
PARAMS = Parts(*split(WHOLE, SIZE.depth))
STACK = Stack(*parts(SIZE))


# AdaLomo divides by roots: where a gradient is nearly 0 its rounding is a step of 1e-5.
close = partial(np.testing.assert_allclose, rtol=1e-3, atol=5e-5)


def windows(step):
    return jax.random.randint(jax.random.key(step), (4, 9), 0, SIZE.vocabulary)


def trained(make, spec, steps=3):
    transform = make_optimizer(spec)(1e-2, 4, None)
    step = jax.jit(make(STACK, transform))
    params, state, losses = PARAMS, init_state(transform, PARAMS), []
    for index in range(steps):
        params, state, loss = step(params, state, windows(index))
        losses.append(float(loss))
    return params, state, losses


def whole_loss(params, batch):
    return jax.vmap(lambda one: token_losses(MODEL, params, one)[0].mean())(batch).mean()


@pytest.mark.parametrize("spec", ["adalomo", *slow("adalomo(inner_decay=0.1)", "adam")])
def test_fused_is_unfused_bit_for_bit(spec):
    ours, theirs = trained(fused_step, spec), trained(plain_step, spec)
    if jax.__version_info__ < (0, 11):
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    else:  # there the two programs round gradients differently
        jax.tree.map(close, ours, theirs)
    moved = jax.tree.map(lambda new, old: float(jnp.abs(new - old).max()), ours[0], PARAMS)
    assert min(jax.tree.leaves(moved)) > 0


def test_it_is_plain_optax_on_the_gradient_of_the_whole_model():
    """Each block's arrays are arrays of their own: a tree of blocks, not a stack."""
    transform = make_optimizer("adalomo")(1e-2, 4, None)
    params, state, losses = WHOLE, transform.init(WHOLE), []

    @jax.jit
    def step(params, state, batch):
        loss, gradient = jax.value_and_grad(whole_loss)(params, batch)
        updates, state = transform.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, loss

    for index in range(3):
        params, state, loss = step(params, state, windows(index))
        losses.append(float(loss))
    ours, _, found = trained(fused_step, "adalomo")
    np.testing.assert_allclose(found, losses, rtol=1e-5)
    wanted = Parts(*split(params, SIZE.depth))
    jax.tree.map(close, ours, wanted)


@pytest.mark.slow
def test_temporaries_are_a_third_of_a_plain_steps_and_less_than_the_gradients():
    """Of a stack of 48 blocks, from the compiler's account."""

    def repeated(leaf):
        return jax.ShapeDtypeStruct((48, *leaf.shape[1:]), leaf.dtype)

    params = PARAMS._replace(blocks=jax.tree.map(repeated, PARAMS.blocks))
    transform = make_optimizer("adalomo")(1e-2, 1, None)
    state = jax.eval_shape(lambda params: init_state(transform, params), params)
    batch = jax.ShapeDtypeStruct((1, 9), jnp.int32)

    def temporary(make):
        step = jax.jit(make(STACK, transform), donate_argnums=(0, 1))
        memory = step.lower(params, state, batch).compile().memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    gradients = sum(4 * leaf.size for leaf in jax.tree.leaves(params.blocks))
    fused, plain = temporary(fused_step), temporary(plain_step)
    assert fused < gradients < plain
    assert fused < plain / 3
