"""Published optimizers where their answer is known without running them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_zoo_equations import BATCH, RATE, SHAPES, STEPS, moments_of, ours, singles, starts

from surge.optimizers import make_optimizer, update
from surge.optimizers.maxva import inflation, scale_by_lamadam, scale_by_madam
from surge.optimizers.tom import scale_by_tom


def directions(transform, gradients, params=None):
    """u at each step on a sequence of gradients [step, ...], and the last state."""
    params = gradients[0] if params is None else params
    state = transform.init(params)
    taken = []
    for gradient in gradients:
        u, state = transform.update(gradient, state, params)
        taken.append(u)
    return jnp.stack(taken), state


def same(one, other, rtol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-12), one, other)


def ends(spec, examples, norm_batch=1):
    """Parameters after a run on gradients of single examples [step, n, ...] of each array."""
    with jax.enable_x64(True):
        transform = make_optimizer(spec)(RATE, BATCH, None)
        params = jax.tree.map(jnp.asarray, starts())
        state = transform.init(params)
        steps = len(examples["kernel"])

        @jax.jit
        def step(params, state, batch):
            grads = jax.tree.map(lambda leaf: leaf.mean(0), batch)
            moments = moments_of(batch, norm_batch)
            updates, state = update(transform, grads, state, params, moments=moments)
            return optax.apply_updates(params, updates), state

        for index in range(steps):
            batch = jax.tree.map(lambda leaf, index=index: jnp.asarray(leaf[index]), examples)
            params, state = step(params, state, batch)
        return jax.tree.map(np.asarray, params)


def test_eve_on_single_examples_is_adam():
    one = {name: leaf[:, :1] for name, leaf in singles().items()}
    same(ends("eve", one), ends("adam", one), 1e-12)


def test_eve_on_equal_and_constant_examples_is_the_sign():
    rng = np.random.default_rng(3)
    constant = {
        name: np.tile(rng.normal(size=shape), (5, BATCH, *[1] * len(shape)))
        for name, shape in SHAPES.items()
    }
    same(ends("eve(eps=0.0)", constant), ends("sign_sgd", constant), 1e-9)
    assert np.abs(ends("examplewise_adam", constant)["bias"] - starts()["bias"]).max() > 0.04


@pytest.mark.parametrize("b1", [0.0, 0.9])
def test_eve_divides_by_the_second_moment_of_a_batch_and_the_noise_of_its_own_mean(b1):
    """E[u's divisor²] = μ² + (1 + k (1 − 1/B)) σ²/B with k = (1 − β1)/(1 + β1)."""
    mean, spread, batch, lanes = 0.3, 1.0, 4, 20_000
    transform = make_optimizer(f"eve(b1={b1}, b2=0.99)")(1.0, batch, None)
    optimizer = make_optimizer(f"eve(b1={b1}, b2=0.99)")
    lane = jnp.zeros(lanes)
    second = lane + mean**2 + spread**2 / batch
    state = optimizer.settle(transform.init(lane), lane + mean, second, lane, batch)

    def step(state, key):
        examples = mean + spread * jax.random.normal(key, (batch, lanes))
        moments = moments_of(examples)
        updates, state = update(transform, examples.mean(0), state, lane, moments=moments)
        return state, (state[0].mu / updates) ** 2

    _, divisors = jax.lax.scan(step, state, jax.random.split(jax.random.key(0), 80))
    gain = (1 - b1) / (1 + b1)
    expected = mean**2 + (1 + gain * (1 - 1 / batch)) * spread**2 / batch
    assert float(jnp.nanmean(divisors[-1])) == pytest.approx(expected, rel=0.03)


def test_tom_answers_an_impulse_as_published():
    weights = make_optimizer("tom").weights(8)
    np.testing.assert_allclose(weights[:4], [0.11, 0.0989, 0.0889, 0.0799], rtol=0.01)


@pytest.mark.parametrize(("b2", "gain"), [(0.99, 0.0628), (0.9, 0.137), (0.5, 0.467)])
def test_tom_has_its_noise_gain(b2, gain):
    weights = make_optimizer(f"tom(b2={b2})").weights(8)
    assert (weights**2).sum() == pytest.approx(gain, rel=0.02)


def test_tom_is_a_step_ahead_of_a_ramp():
    _, state = directions(scale_by_tom(), jnp.arange(1.0, 801.0)[:, None])
    assert float(state.level[0] + state.trend[0]) == pytest.approx(801, rel=1e-4)


def test_tom_warms_up_unless_corrected_and_without_trend_is_adam():
    gradients = jnp.asarray(np.random.default_rng(0).normal(size=(50, 7)))
    first = directions(scale_by_tom(), gradients[:1])[0][0]
    np.testing.assert_allclose(jnp.abs(first), 0.11, rtol=1e-5)
    with jax.enable_x64(True):
        gradients = jnp.asarray(gradients, jnp.float64)
        flat = directions(scale_by_tom(b2=1.0, corrected=True), gradients)[0]
        adam = directions(optax.scale_by_adam(0.9, 0.999), gradients)[0]
        np.testing.assert_allclose(flat, adam, rtol=1e-10)


def test_maxva_at_equal_bounds_is_adam_and_laprop():
    with jax.enable_x64(True):
        gradients = jnp.asarray(np.random.default_rng(0).normal(size=(50, 7)))
        madam = directions(scale_by_madam(0.9, 0.999, 0.999), gradients)[0]
        adam = directions(optax.scale_by_adam(0.9, 0.999), gradients)[0]
        np.testing.assert_allclose(madam, adam, rtol=1e-10)

        lamadam = directions(scale_by_lamadam(0.9, 0.98, 0.98), gradients)[0]
        m = v = np.zeros(7)
        for t, g in enumerate(np.asarray(gradients), 1):
            v = 0.98 * v + 0.02 * g**2
            m = 0.9 * m + 0.1 * g / np.sqrt(v / (1 - 0.98**t))
            np.testing.assert_allclose(lamadam[t - 1], m / (1 - 0.9**t), rtol=1e-10)


def test_maxva_takes_the_decay_of_the_largest_variance():
    """By a grid over β of the weighted variance after the newest gradient."""
    low, high, steps = 0.5, 0.999, 40
    gradients = np.random.default_rng(1).normal(size=(steps, 20))
    with jax.enable_x64(True):
        _, before = directions(scale_by_madam(), jnp.asarray(gradients[:-1]))
        _, after = directions(scale_by_madam(), jnp.asarray(gradients))
    total, squares, weight = (np.asarray(before[index]) for index in (2, 3, 4))
    grid = np.linspace(low, high, 20_001)[:, None]
    g = gradients[-1]
    w = grid * weight + 1 - grid
    variance = (grid * squares + (1 - grid) * g**2) / w
    variance = variance - ((grid * total + (1 - grid) * g) / w) ** 2
    best = grid[variance.argmax(0), 0]
    weights = np.asarray(after.weight)
    np.testing.assert_allclose(best * weight + 1 - best, weights, atol=1e-4)
    assert (weights > 0).all() and (weights <= 1).all()


def test_maxva_starts_as_adam_does_and_inflates_noise_by_the_known_factor():
    gradients = jnp.asarray(np.random.default_rng(0).normal(size=(1, 7)))
    first = directions(scale_by_madam(), gradients)[0]
    np.testing.assert_allclose(first, directions(optax.scale_by_adam(), gradients)[0], rtol=1e-5)
    assert inflation(0.5, 0.999) == pytest.approx(5.77, rel=0.02)
    assert inflation(0.5, 0.98) == pytest.approx(2.82, rel=0.02)


def test_maxva_on_gradients_that_never_vary_is_a_number():
    constant = jnp.ones((20, 3))
    np.testing.assert_allclose(directions(scale_by_madam(), constant)[0], 1.0, rtol=1e-5)
    assert jnp.isfinite(directions(scale_by_lamadam(), 0 * constant)[0]).all()


@pytest.mark.parametrize(
    ("spec", "examples", "norm_batch"),
    [
        ("clars(trust=1e-3, norm_batch=6)", singles(), BATCH),
        ("clars(trust=1e-3)", {name: leaf[:, :1] for name, leaf in singles().items()}, 1),
        ("clars(trust=1e-3)", {name: leaf[:, [0] * 6] for name, leaf in singles().items()}, 1),
    ],
    ids=["norms of whole batches", "batches of one", "equal examples"],
)
def test_clars_is_lars_where_examples_do_not_differ(spec, examples, norm_batch):
    same(ends(spec, examples, norm_batch), ends("lars", examples), 1e-10)


@pytest.mark.parametrize("spec", ["clars", "lars"])
def test_a_layer_written_in_other_units_takes_the_same_relative_steps(spec):
    """θ → aθ with the same function: gradients become g/a."""
    transform = make_optimizer(spec)(RATE, BATCH, None)
    examples = {"kernel": jnp.asarray(singles()["kernel"][0], jnp.float32)}
    params = {"kernel": jnp.asarray(starts()["kernel"], jnp.float32)}

    def relative(scale):
        moved = jax.tree.map(lambda leaf: scale * leaf, params)
        given = jax.tree.map(lambda leaf: leaf / scale, examples)
        grads = jax.tree.map(lambda leaf: leaf.mean(0), given)
        state = transform.init(moved)
        updates, _ = update(transform, grads, state, moved, moments=moments_of(given))
        return updates["kernel"] / moved["kernel"]

    np.testing.assert_allclose(relative(7.0), relative(1.0), rtol=1e-5)


def test_adalomo_is_adafactor_without_momentum():
    peer = optax.adafactor(RATE, min_dim_size_to_factor=2, momentum=None)
    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, starts())
        state = peer.init(params)
        for index in range(STEPS):
            grads = jax.tree.map(
                lambda leaf, index=index: jnp.asarray(leaf[index].mean(0)), singles()
            )
            updates, state = peer.update(grads, state, params)
            params = optax.apply_updates(params, updates)
    same(ours("adalomo"), params)


def multiplier(gradients, epoch, **keywords):
    """γ after a run on gradients [step, ...]."""
    spec = ", ".join(f"{name}={value}" for name, value in keywords.items())
    spec = f"active(epoch_examples={8 * epoch}, base='sgd', {spec})"
    return directions(make_optimizer(spec)(1.0, 8, None), gradients)[1][0].factor


def test_active_multipliers_are_those_of_the_signs_of_epochs():
    epochs, length = 5, 4
    ones = jnp.ones((epochs * length, 3))
    turns = jnp.repeat((-1.0) ** jnp.arange(epochs), length)[:, None] * ones
    np.testing.assert_allclose(multiplier(ones, length), 1 + 2.0 * (epochs - 1))
    np.testing.assert_allclose(multiplier(ones, length, high=0.25), 1 + 0.25 * (epochs - 1))
    np.testing.assert_allclose(multiplier(turns, length), 0.5 ** (epochs - 1))
    np.testing.assert_allclose(multiplier(0 * ones, length), 0.5 ** (epochs - 1))


def test_active_has_fewer_steps_an_epoch_at_a_larger_batch():
    optimizer = make_optimizer("active(epoch_examples=64, base='sgd')")
    chains = [optimizer(1.0, size, None) for size in (8, 16, 32)]
    factors = [directions(chain, jnp.ones((8, 3)))[1][0].factor for chain in chains]
    np.testing.assert_allclose([factor[0] for factor in factors], [1.0, 3.0, 7.0])


def test_active_that_changes_nothing_is_its_base():
    spec = "active(epoch_examples=24, base='adam(b1=0.5)', high=0.0, low=1.0, inner_decay=0.0)"
    same(ours(spec), ours("adam(b1=0.5)"), 1e-14)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("active", "active needs epoch_examples"),
        ("active(epoch_examples=8, base='adma')", "did you mean adam"),
        ("active(epoch_examples=8, base='adam(clip=1.0)')", "takes the keywords of adam alone"),
        ("active(epoch_examples=8, base=3)", "base must be a text, like 'adam'"),
        ("active(epoch_examples=8, batch_size=8)", "unknown keyword of active 'batch_size'"),
        ("active(epoch_examples=8, scaling='sde', base_batch_size=8)", "no scaling rule .* base"),
        ("extrap_sgd", "extrap_sgd needs extrapolation"),
        ("extrap_sgd(extrapolation=0.1, workers=1.5)", "workers must be a whole number"),
        ("madam(beta_high=1.0)", "beta_high must be a number of at least 0 and below 1"),
    ],
)
def test_a_wrong_spec_says_what_is_right(spec, words):
    with pytest.raises(ValueError, match=words):
        make_optimizer(spec)


def test_adagrad_norm_on_a_constant_gradient_falls_as_one_over_root_t():
    gradient = jnp.array([3.0, 4.0])
    transform = make_optimizer("adagrad_norm(start=0.0)")(1.0, 8, None)
    taken, _ = directions(transform, jnp.stack([gradient] * 9))
    expected = -gradient / 5 / np.sqrt(np.arange(1, 10))[:, None]
    np.testing.assert_allclose(taken, expected, rtol=1e-6)
    assert jnp.isfinite(directions(transform, jnp.zeros((2, 2)))[0]).all()


def test_adagrad_norm_of_one_parameter_is_adagrad():
    gradients = jnp.asarray(np.random.default_rng(0).normal(size=(20, 1)))
    one, other = (
        directions(make_optimizer(spec)(1.0, 8, None), gradients)[0]
        for spec in ("adagrad_norm(start=0.1)", "adagrad")
    )
    np.testing.assert_allclose(one, other, rtol=1e-5)


def extrapolated(spec, workers, steps=30):
    """The end of a run on a quadratic that all workers share, with noise of their own."""
    rng = np.random.default_rng(0)
    curvature = jnp.linspace(0.1, 1.5, 5)
    noise = rng.normal(size=(steps, 4, 5)).reshape(steps, workers, 4 // workers, 5).mean(2)
    transform = make_optimizer(spec)(0.05, 8, None)
    params = jnp.ones(5)
    state = transform.init(params)
    for one in jnp.asarray(noise):

        def gradient_fn(points, one=one):
            return curvature * points + one

        grads = gradient_fn(jnp.asarray(params)[None]).mean(0)
        updates, state = update(transform, grads, state, params, gradient_fn=gradient_fn)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize(("spec", "base"), [("extrap_sgd", "sgd"), ("extrap_adam", "adam")])
def test_extrapolation_by_nothing_is_its_base(spec, base):
    same(extrapolated(f"{spec}(extrapolation=0.0, workers=2)", 2), extrapolated(base, 1), 1e-5)


def test_on_one_quadratic_local_extrapolation_is_global():
    one, four = (
        extrapolated(f"extrap_sgd(extrapolation=0.4, workers={workers})", workers)
        for workers in (1, 4)
    )
    same(one, four, 1e-4)
