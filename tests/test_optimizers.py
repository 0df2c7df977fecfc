"""Optimizers by name: what a spec may say, and agreement with optax and PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from surge.optimizers import DIRECTIONS, gradient_weights, make_optimizer, parse

PARAMS = {"w": jnp.linspace(-1.0, 1.0, 12).reshape(4, 3), "b": jnp.linspace(0.5, 1.0, 3)}


def gradients(step):
    """A fixed gradient sequence with signs that change."""
    return jax.tree.map(lambda leaf: jnp.sin(3.0 * step + 7.0 * leaf) + 0.1 * leaf, PARAMS)


def descend(transform, steps=5):
    params, state = PARAMS, transform.init(PARAMS)
    for step in range(steps):
        updates, state = transform.update(gradients(step), state, params)
        params = optax.apply_updates(params, updates)
    return params


OPTAX = {
    "sgd": lambda lr: optax.sgd(lr),
    "momentum": lambda lr: optax.sgd(lr, momentum=0.9),
    "momentum(nesterov=True)": lambda lr: optax.sgd(lr, momentum=0.9, nesterov=True),
    "sign_sgd": lambda lr: optax.sign_sgd(lr),
    "adam(b1=0, b2=0)": lambda lr: optax.adam(lr, b1=0, b2=0),
    "adamw(weight_decay=0.1)": lambda lr: optax.adamw(lr, weight_decay=0.1),
    "lion(weight_decay=0.1)": lambda lr: optax.lion(lr, weight_decay=0.1),
    "rmsprop": lambda lr: optax.rmsprop(lr, decay=0.9),
    "adagrad": lambda lr: optax.adagrad(lr, initial_accumulator_value=0.1),
    "muon": lambda lr: optax.contrib.muon(lr),
    "adam(clip=0.5)": lambda lr: optax.chain(optax.clip_by_global_norm(0.5), optax.adam(lr)),
}


@pytest.mark.parametrize("spec", OPTAX)
def test_equals_the_optax_optimizer_of_that_name(spec):
    ours, theirs = descend(make_optimizer(spec)(0.05, 8, 5)), descend(OPTAX[spec](0.05))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7), ours, theirs)


def test_signum_is_the_sign_of_the_averaged_gradient():
    average, want = jax.tree.map(jnp.zeros_like, PARAMS), PARAMS
    for step in range(5):
        average = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, average, gradients(step))
        want = jax.tree.map(lambda p, m: p - 0.05 * jnp.sign(m), want, average)
    got = descend(make_optimizer("signum")(0.05, 8, 5))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, want)


@pytest.mark.parametrize("name", DIRECTIONS)
def test_descends_with_a_traced_learning_rate(name):
    def final(learning_rate):
        transform = make_optimizer(name)(learning_rate, 8, 20)

        def step(carry, _):
            params, state = carry
            grads = jax.grad(lambda p: sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(p)))(params)
            updates, state = transform.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(step, (PARAMS, transform.init(PARAMS)), length=20)
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))

    start = sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(PARAMS))
    losses = jax.jit(jax.vmap(final))(jnp.array([0.0, 0.01]))
    assert losses[0] == pytest.approx(start, rel=1e-6)
    assert losses[1] < losses[0]


TORCH = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adam(b1=0.5, b2=0.9, eps=1e-6)": lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.5, 0.9), eps=1e-6),
    "adamw(weight_decay=0.1)": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
}


@pytest.mark.parametrize("spec", TORCH)
def test_equals_pytorch_over_100_steps(spec):
    rng = np.random.default_rng(0)
    inputs, targets = rng.normal(size=(100, 8, 4)).astype(np.float32), rng.normal(size=(100, 8)).astype(np.float32)
    hidden, out = (rng.normal(size=shape).astype(np.float32) / 2 for shape in ((4, 5), (5,)))

    def loss(params, x, y):
        return jnp.mean((jnp.tanh(x @ params[0]) @ params[1] - y) ** 2)

    transform = make_optimizer(spec)(0.01, 8, 100)

    def step(carry, batch):
        params, state = carry
        updates, state = transform.update(jax.grad(loss)(params, *batch), state, params)
        return (optax.apply_updates(params, updates), state), None

    start = [jnp.asarray(hidden), jnp.asarray(out)]
    (ours, _), _ = jax.lax.scan(step, (start, transform.init(start)), (inputs, targets))

    theirs = [torch.tensor(hidden, requires_grad=True), torch.tensor(out, requires_grad=True)]
    optimizer = TORCH[spec](theirs)
    for x, y in zip(torch.tensor(inputs), torch.tensor(targets), strict=True):
        optimizer.zero_grad()
        torch.mean((torch.tanh(x @ theirs[0]) @ theirs[1] - y) ** 2).backward()
        optimizer.step()
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other.detach().numpy(), rtol=1e-5, atol=1e-5)


def learning_rates(spec, steps=10):
    """The size of each SGD step on a gradient of 1."""
    transform = make_optimizer(spec)(1.0, 8, steps)
    state, sizes = transform.init(jnp.zeros(())), []
    for _ in range(steps):
        update, state = transform.update(jnp.ones(()), state, jnp.zeros(()))
        sizes.append(-float(update))
    return np.array(sizes)


def test_schedules():
    assert np.all(learning_rates("sgd") == 1)
    cosine = learning_rates("sgd(schedule='cosine')")
    np.testing.assert_allclose(cosine, 0.5 * (1 + np.cos(np.pi * np.arange(1, 11) / 10)), atol=1e-6)
    np.testing.assert_allclose(learning_rates("sgd(warmup=0.4)")[:5], [0.25, 0.5, 0.75, 1, 1], rtol=1e-6)
    np.testing.assert_allclose(learning_rates("sgd(schedule='wsd')")[6:], [1, 1, 0.5, 0], atol=1e-5)


def test_co_scaling_moves_the_hyperparameters():
    moved = make_optimizer("adam(scaling='half_life', base_batch_size=8)")(0.05, 16, 5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        descend(moved),
        descend(optax.adam(0.05, b1=0.81, b2=0.999**2)),
    )
    same = descend(make_optimizer("adam(scaling='sde', base_batch_size=8)")(0.05, 8, 5))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), same, descend(optax.adam(0.05)))


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("adma", "did you mean adam"),
        ("adam(beta1=0.9)", "did you mean b1"),
        ("adam(0.9)", "must read"),
        ("adam(b1=", "must read"),
        ("__import__('os')", "must read"),
        ("sgd(schedule='linear')", "schedule must be one of"),
        ("sgd(warmup=2)", "share of the run"),
        ("adam(scaling='sde')", "base_batch_size"),
        ("adam(scaling='sd', base_batch_size=8)", "did you mean sde"),
    ],
)
def test_a_wrong_spec_says_what_is_right(spec, words):
    with pytest.raises(ValueError, match=words):
        make_optimizer(spec)


def test_parse():
    assert parse("adam(b1=0, eps=1e-6)") == ("adam", {"b1": 0, "eps": 1e-6})


@pytest.mark.parametrize("spec", ["momentum", "momentum(decay=0.5, nesterov=True)"])
def test_gradient_weights_are_the_impulse_response(spec):
    weights = gradient_weights(spec, 1)
    transform = make_optimizer(spec)(-1.0, 1, None)
    state, response = transform.init(jnp.zeros(())), []
    for step in range(len(weights)):
        update, state = transform.update(jnp.asarray(float(step == 0)), state, jnp.zeros(()))
        response.append(float(update))
    np.testing.assert_allclose(weights, np.array(response) / np.sum(response), rtol=1e-5)


@pytest.mark.parametrize(
    ("spec", "batches"),
    [("sign_sgd", 1), ("rmsprop", 1), ("adam", 19), ("adam(b1=0)", 1), ("signum", 19), ("lion", 71.1)],
)
def test_gradient_weights_average_the_known_number_of_batches(spec, batches):
    assert 1 / (gradient_weights(spec, 1) ** 2).sum() == pytest.approx(batches, rel=0.01)


def test_gradient_weights_follow_the_co_scaling():
    spec = "adam(scaling='sde', base_batch_size=64)"
    assert len(gradient_weights(spec, 256)) < len(gradient_weights(spec, 64))


def test_without_total_steps_the_rate_is_full():
    transform = make_optimizer("sgd(schedule='cosine', warmup=0.5)")(1.0, 1, None)
    assert float(transform.update(jnp.ones(()), transform.init(jnp.zeros(())), jnp.zeros(()))[0]) == -1.0
