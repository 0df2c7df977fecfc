"""The chain of a spec: schedules, weight decay, co-scaling, agreement with optax and PyTorch."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from surge.optimizers import ENTRIES, make_optimizer
from surge.optimizers.chain import schedule as share_of
from surge.optimizers.spec import SCHEDULES
from surge.theory.scaling import RULES

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


TORCH = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adam(b1=0.5, b2=0.9, eps=1e-6)": lambda p: torch.optim.Adam(
        p, lr=0.01, betas=(0.5, 0.9), eps=1e-6
    ),
    "adamw(weight_decay=0.1)": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
}


@pytest.mark.parametrize("spec", TORCH)
def test_equals_pytorch_over_100_steps(spec):
    rng = np.random.default_rng(0)
    inputs, targets = (
        rng.normal(size=(100, 8, 4)).astype(np.float32),
        rng.normal(size=(100, 8)).astype(np.float32),
    )
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
        sizes.append(-np.asarray(update).item())
    return np.array(sizes)


def test_schedules():
    assert np.all(learning_rates("sgd") == 1)
    cosine = learning_rates("sgd(schedule='cosine')")
    np.testing.assert_allclose(cosine, 0.5 * (1 + np.cos(np.pi * np.arange(10) / 10)), atol=1e-6)
    rising = [0.25, 0.5, 0.75, 1]
    np.testing.assert_allclose(learning_rates("sgd(warmup=0.4)")[:5], [*rising, 1], rtol=1e-6)
    warm = learning_rates("sgd(schedule='cosine', warmup=0.4)")
    np.testing.assert_allclose(
        warm, [*rising, *0.5 * (1 + np.cos(np.pi * np.arange(6) / 6))], atol=1e-6
    )
    np.testing.assert_allclose(
        learning_rates("sgd(schedule='wsd')", 15)[10:], [1, 1, 1, 2 / 3, 1 / 3], rtol=1e-5
    )


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_step_of_a_schedule_trains(schedule):
    assert learning_rates(f"sgd(schedule={schedule!r})", 1) == [1]
    assert learning_rates(f"sgd(schedule={schedule!r}, warmup=0.5)", 1) == [1]
    for steps in (2, 3, 11):
        assert np.all(learning_rates(f"sgd(schedule={schedule!r}, warmup=0.3)", steps) > 0)
    last = share_of(schedule, 0, jnp.int32(10**6))(jnp.int32(10**6 - 1))
    assert 0 < last <= 1


def test_warmup_is_a_share_of_the_run_or_a_number_of_steps_that_follows_the_batch():
    np.testing.assert_allclose(
        learning_rates("sgd(warmup_steps=4)"), learning_rates("sgd(warmup=0.4)")
    )
    for rule in RULES:  # learning_rates are those at batch size 8
        spec = f"sgd(warmup_steps=8, schedule='cosine', scaling={rule!r}, base_batch_size=4)"
        np.testing.assert_allclose(
            learning_rates(spec), learning_rates("sgd(warmup=0.4, schedule='cosine')")
        )
    np.testing.assert_allclose(
        learning_rates("sgd(warmup_steps=20, schedule='cosine')"), np.arange(1, 11) / 20
    )


# Each with the values that a rule is to move them to at four times the batch size.
CO_SCALED = {
    "momentum": lambda d: optax.trace(d(0.9)),
    "momentum(decay=0.95, nesterov=True)": lambda d: optax.trace(d(0.95), nesterov=True),
    "signum": lambda d: optax.chain(optax.ema(d(0.9), debias=False), optax.scale_by_sign()),
    "adam": lambda d, e: optax.scale_by_adam(d(0.9), d(0.999), e(1e-8)),
    "adam(b1=0.8, eps=1e-2)": lambda d, e: optax.scale_by_adam(d(0.8), d(0.999), e(1e-2)),
    "adamw": lambda d, e: optax.scale_by_adam(d(0.9), d(0.999), e(1e-8)),
    "lion": lambda d: optax.scale_by_lion(d(0.9), d(0.99)),
    "rmsprop(eps=1e-2)": lambda d, e: optax.scale_by_rms(d(0.9), e(1e-2)),
    "adagrad(eps=1e-2)": lambda d, e: optax.scale_by_rss(eps=e(1e-2)),
    "muon": lambda d: optax.chain(
        optax.contrib.muon(1.0, beta=d(0.95), adam_b1=d(0.9), adam_b2=d(0.999)), optax.scale(-1.0)
    ),
    "sgd": lambda: optax.identity(),
    "adafactor": lambda: ENTRIES["adafactor"]().transform,  # its decay rate is a power of the step
}
DECAY = {
    "sde": lambda b: max(0.0, 1 - 4 * (1 - b)),
    "half_life": lambda b: b**4,
    "timescale": lambda b: b,
}
EPS = {"sde": lambda eps: eps / 2, "half_life": lambda eps: eps, "timescale": lambda eps: eps}
WEIGHTS = {"sde": 2, "half_life": 1, "timescale": 4}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("spec", CO_SCALED)
def test_co_scaling_moves_every_hyperparameter_of_every_optimizer(spec, rule):
    name, _, rest = spec.partition("(")
    text = f"{name}({rest.removesuffix(')') + ', ' if rest else ''}weight_decay=0.1"
    ours = make_optimizer(f"{text}, scaling={rule!r}, base_batch_size=2)")(0.05, 8, 5)
    count = len(inspect.signature(CO_SCALED[spec]).parameters)
    direction = CO_SCALED[spec](*(DECAY[rule], EPS[rule])[:count])
    decayed = optax.add_decayed_weights(0.1 * WEIGHTS[rule])
    theirs = optax.chain(direction, decayed, optax.scale(-0.05))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        *(descend(chain, 3) for chain in (ours, theirs)),
    )


def test_co_scaling_leaves_the_base_batch_size_as_it_is():
    same = descend(make_optimizer("adam(scaling='sde', base_batch_size=8)")(0.05, 8, 5))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), same, descend(optax.adam(0.05))
    )


def test_without_total_steps_the_rate_is_full():
    transform = make_optimizer("sgd(schedule='cosine', warmup=0.5)")(1.0, 1, None)
    state = transform.init(jnp.zeros(()))
    update, _ = transform.update(jnp.ones(()), state, jnp.zeros(()))
    assert np.asarray(update).item() == -1.0


DECAYED = {"kernel": jnp.full((2, 3), 2.0), "bias": jnp.full(3, 2.0)}


def one_step(spec, learning_rate, total_steps=10):
    transform = make_optimizer(spec)(learning_rate, 8, total_steps)
    zeros = jax.tree.map(jnp.zeros_like, DECAYED)
    return transform.update(zeros, transform.init(DECAYED), DECAYED)[0]


@pytest.mark.parametrize("rate", [0.5, 0.05])
def test_weight_decay_follows_the_rate_unless_independent(rate):
    coupled = one_step("adam(weight_decay=0.1)", rate)
    np.testing.assert_allclose(coupled["kernel"], -0.2 * rate, rtol=1e-6)
    apart = one_step("adam(weight_decay=0.1, decay_independent=True)", rate)
    np.testing.assert_allclose(apart["kernel"], -0.2, rtol=1e-6)
    warm = one_step("adam(weight_decay=0.1, decay_independent=True, warmup_steps=4)", rate)
    np.testing.assert_allclose(warm["kernel"], -0.05, rtol=1e-6)


@pytest.mark.parametrize(
    "spec", ["adamw(decay_mask=True)", "sgd(weight_decay=1e-4, decay_mask=True)"]
)
def test_masked_weight_decay_spares_biases(spec):
    updates = one_step(spec, 1.0)
    np.testing.assert_allclose(updates["kernel"], -2e-4, rtol=1e-6)
    assert not updates["bias"].any()


def test_muon_gives_adam_a_rate_of_its_own():
    both = [
        descend(make_optimizer(f"muon(adam_ratio={ratio})")(0.05, 8, 5)) for ratio in (1.0, 0.5)
    ]
    alone = descend(optax.contrib.muon(0.05, adam_learning_rate=0.025))
    np.testing.assert_allclose(both[0]["w"], both[1]["w"])
    np.testing.assert_allclose(both[1]["b"], alone["b"], rtol=1e-6)


def test_adafactor_with_momentum_averages_the_scaled_gradients():
    ours = descend(make_optimizer("adafactor(momentum=0.9)")(0.05, 8, 5))
    chain = optax.chain(
        optax.scale_by_factored_rms(),
        optax.clip_by_block_rms(1.0),
        optax.ema(0.9, debias=False),
        optax.scale(-0.05),
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours, descend(chain))
