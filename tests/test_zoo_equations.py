"""Each published optimizer against a plain loop over its equations, in double precision."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from surge.optimizers import make_optimizer, update
from surge.optimizers.step import ExampleMoments

STEPS, BATCH, RATE = 50, 6, 0.01
SHAPES = {"kernel": (4, 3), "bias": (3,)}


def starts():
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape) for name, shape in SHAPES.items()}


def singles():
    """Gradients of single examples [step, example, ...] of each array, with a drift."""
    rng = np.random.default_rng(1)
    return {
        name: 0.3 + rng.normal(size=(STEPS, BATCH, *shape)) * rng.uniform(0.1, 2, size=shape)
        for name, shape in SHAPES.items()
    }


def moments_of(examples, norm_batch=1):
    """What a training step would say of gradients of single examples [n, ...] of each array."""

    def norm(leaf):
        means = leaf.reshape(-1, norm_batch, *leaf.shape[1:]).mean(1)
        return jnp.sqrt((means**2).sum(tuple(range(1, means.ndim)))).mean()

    return ExampleMoments(
        square=jax.tree.map(lambda leaf: (leaf**2).mean(0), examples),
        norm=jax.tree.map(norm, examples),
        inner=None,
        count=len(jax.tree.leaves(examples)[0]),
    )


def ours(spec, norm_batch=1):
    """Parameters after STEPS steps on the fixed gradients."""
    with jax.enable_x64(True):
        transform = make_optimizer(spec)(RATE, BATCH, None)

        def step(carry, examples):
            params, state = carry
            grads = jax.tree.map(lambda leaf: leaf.mean(0), examples)
            moments = moments_of(examples, norm_batch)
            updates, state = update(transform, grads, state, params, moments=moments)
            return (optax.apply_updates(params, updates), state), None

        start = jax.tree.map(jnp.asarray, starts())
        examples = jax.tree.map(jnp.asarray, singles())
        (params, _), _ = jax.lax.scan(step, (start, transform.init(start)), examples)
        return jax.tree.map(np.asarray, params)


def by_array(loop):
    """Runs a loop (start, gradients of single examples [step, example, ...]) -> end on each."""
    gradients = singles()
    return {name: loop(start, gradients[name]) for name, start in starts().items()}


def eve(theta, gradients, examplewise=False):
    m = e = np.zeros_like(theta)
    for t, g in enumerate(gradients, 1):
        m = 0.9 * m + 0.1 * g.mean(0)
        e = 0.999 * e + 0.001 * (g**2).mean(0)
        mean, square = m / (1 - 0.9**t), e / (1 - 0.999**t)
        root = np.sqrt(square if examplewise else square / BATCH + (1 - 1 / BATCH) * mean**2)
        theta = theta - RATE * mean / (root + 1e-8)
    return theta


def clars(theta, gradients, norm_batch, l2):
    trace = np.zeros_like(theta)
    for g in gradients:
        parts = g.reshape(-1, norm_batch, *theta.shape).mean(1)
        norm = np.mean([np.sqrt((part**2).sum()) for part in parts])
        scale = 0.01 * np.sqrt((theta**2).sum()) / norm if theta.ndim > 1 else 1.0
        trace = 0.9 * trace + scale * (g.mean(0) + l2 * theta)
        theta = theta - RATE * trace
    return theta


def lars(theta, gradients, l2):
    trace = np.zeros_like(theta)
    for g in gradients:
        mean, length = g.mean(0), np.sqrt((theta**2).sum())
        scale = 0.001 * length / (np.sqrt((mean**2).sum()) + l2 * length) if theta.ndim > 1 else 1.0
        trace = 0.9 * trace + scale * (mean + l2 * theta)
        theta = theta - RATE * trace
    return theta


def adalomo(theta, gradients, inner_decay):
    v = rows = columns = 0.0
    for t, g in enumerate(gradients, 1):
        mean, beta = g.mean(0), 1 - t**-0.8
        s = mean**2 + 1e-30
        if theta.ndim == 2:
            rows = beta * rows + (1 - beta) * s.mean(1)
            columns = beta * columns + (1 - beta) * s.mean(0)
            v = np.outer(rows / rows.mean(), columns)
        else:
            v = beta * v + (1 - beta) * s
        u = mean / np.sqrt(v)
        u = u / max(1.0, np.sqrt((u**2).mean()))
        rate = RATE * max(1e-3, np.sqrt((theta**2).mean()))
        theta = theta * (1 - rate * inner_decay) - rate * u
    return theta


def active(theta, gradients, high, low, epoch, decay):
    m = v = total = before = np.zeros_like(theta)
    factor = np.ones_like(theta)
    for t, g in enumerate(gradients, 1):
        mean = g.mean(0)
        total = total + mean
        m, v = 0.9 * m + 0.1 * mean, 0.999 * v + 0.001 * mean**2
        u = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        theta = theta * (1 - RATE * factor * decay) - RATE * factor * u
        if t % epoch == 0:
            if t > epoch:
                factor = np.where(before * total <= 0, factor * low, factor + high)
            before, total = total, np.zeros_like(total)
    return theta


def tom(theta, gradients, b1, b2, corrected):
    level = trend = v = before = np.zeros_like(theta)
    for t, g in enumerate(gradients, 1):
        mean = g.mean(0)
        level, trend = (
            b1 * (level + trend) + (1 - b1) * mean,
            b2 * trend + (1 - b2) * (mean - before),
        )
        v, before = 0.999 * v + 0.001 * mean**2, mean
        share = 1 - (b1 * b2) ** t if corrected else 1.0
        u = (level + trend) / share / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        theta = theta - RATE * u
    return theta


def maxva(theta, gradients, low, high, eps, last):
    m, total, squares, weight = (np.zeros_like(theta) for _ in range(4))
    for t, g in enumerate(gradients, 1):
        mean = g.mean(0)
        beta = np.full_like(theta, high)
        if t > 1:
            middle = total / weight
            s2 = squares / weight - middle**2
            d2 = (mean - middle) ** 2
            beta = np.clip((d2 + s2) / (weight * (d2 - s2) + d2 + s2), low, high)
        total = beta * total + (1 - beta) * mean
        squares = beta * squares + (1 - beta) * mean**2
        weight = beta * weight + (1 - beta)
        root = np.sqrt(squares / weight) + eps
        m = 0.9 * m + 0.1 * (mean / root if last else mean)
        u = m / (1 - 0.9**t) / (1.0 if last else root)
        theta = theta - RATE * u
    return theta


LOOPS = {
    "eve": eve,
    "examplewise_adam": partial(eve, examplewise=True),
    "clars": partial(clars, norm_batch=1, l2=0.0),
    "clars(l2=0.1, norm_batch=3)": partial(clars, norm_batch=3, l2=0.1),
    "lars(l2=0.1)": partial(lars, l2=0.1),
    "adalomo": partial(adalomo, inner_decay=0.0),
    "adalomo(inner_decay=0.1)": partial(adalomo, inner_decay=0.1),
    "active(epoch_examples=24)": partial(active, high=2.0, low=0.5, epoch=4, decay=1e-2),
    "active(epoch_examples=40, high=0.05, low=0.95, inner_decay=0.0)": partial(
        active, high=0.05, low=0.95, epoch=6, decay=0.0
    ),
    "tom": partial(tom, b1=0.9, b2=0.99, corrected=False),
    "tom(b1=0.8, b2=0.7, corrected=True)": partial(tom, b1=0.8, b2=0.7, corrected=True),
    "madam": partial(maxva, low=0.5, high=0.999, eps=1e-8, last=False),
    "lamadam": partial(maxva, low=0.5, high=0.98, eps=1e-15, last=True),
}


@pytest.mark.parametrize("spec", LOOPS)
def test_equals_a_plain_loop(spec):
    norm_batch = 3 if "norm_batch=3" in spec else 1
    end = ours(spec, norm_batch)
    for name, theirs in by_array(LOOPS[spec]).items():
        np.testing.assert_allclose(end[name], theirs, rtol=1e-6, atol=1e-9)


def test_adagrad_norm_equals_a_plain_loop_over_all_arrays_together():
    theta, gradients, total = starts(), singles(), 1e-2
    for t in range(STEPS):
        means = {name: leaf[t].mean(0) for name, leaf in gradients.items()}
        total += sum((mean**2).sum() for mean in means.values())
        theta = {name: theta[name] - RATE * mean / np.sqrt(total) for name, mean in means.items()}
    end = ours("adagrad_norm")
    for name, theirs in theta.items():
        np.testing.assert_allclose(end[name], theirs, rtol=1e-6)


@pytest.mark.parametrize("spec", ["extrap_sgd", "extrap_sgd_momentum", "extrap_adam"])
def test_extrapolation_equals_a_plain_loop(spec):
    """Workers with a quadratic each, whose gradients differ."""
    workers, steps, size, reach = 3, 50, 5, 0.4
    rng = np.random.default_rng(2)
    curvature = rng.uniform(0.1, 1.5, size=(workers, size))
    noise = rng.normal(size=(steps, workers, size))
    start = rng.normal(size=size)

    theta, past = start, np.zeros((workers, size))
    m = v = trace = np.zeros(size)
    for t in range(1, steps + 1):
        points = theta - reach * past
        past = curvature * points + noise[t - 1]
        mean = past.mean(0)
        m, v = 0.9 * m + 0.1 * mean, 0.999 * v + 0.001 * mean**2
        trace = 0.9 * trace + mean
        u = {
            "extrap_sgd": mean,
            "extrap_sgd_momentum": mean + 0.9 * trace,
            "extrap_adam": m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8),
        }[spec]
        theta = theta - RATE * u

    name, _, momentum = spec.partition("_momentum")
    own = ", decay=0.9" if spec != name else ""
    del momentum
    with jax.enable_x64(True):
        transform = make_optimizer(f"{name}(extrapolation={reach}, workers={workers}{own})")(
            RATE, 8, None
        )

        def step(carry, noise):
            params, state = carry

            def gradient_fn(points):
                return curvature * points + noise

            updates, state = update(transform, params, state, params, gradient_fn=gradient_fn)
            return (optax.apply_updates(params, updates), state), None

        params = jnp.asarray(start)
        (params, _), _ = jax.lax.scan(step, (params, transform.init(params)), jnp.asarray(noise))
        np.testing.assert_allclose(params, theta, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("spec", ["eve", "examplewise_adam", "clars"])
def test_without_moments_one_sentence_says_what_is_missing(spec):
    transform = make_optimizer(spec)(RATE, BATCH, None)
    start = jax.tree.map(jnp.float32, starts())
    with pytest.raises(ValueError, match=rf"^{spec} needs moments .* call update\(..., moments="):
        update(transform, start, transform.init(start), start)


def test_without_gradient_fn_one_sentence_says_what_is_missing():
    transform = make_optimizer("extrap_sgd(extrapolation=0.1)")(RATE, BATCH, None)
    start = jax.tree.map(jnp.float32, starts())
    with pytest.raises(ValueError, match="needs gradient_fn beside the mean gradient"):
        update(transform, start, transform.init(start), start)
