"""Batch sizes that move: controllers against their equations, runs against plain loops.

A new controller is a function in surge/training/controllers.py and a row of TABLE.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

from surge.config import check, default
from surge.fields import ConfigError
from surge.optimizers import make_optimizer
from surge.tasks import Task, draw_from_arrays
from surge.theory.rules import RULES, Known
from surge.training import grid
from surge.training.arm import FOLLOW, Controlled, make_arm
from surge.training.controllers import CONTROLLERS, Statistics, cheapest, step_size
from surge.training.engine import Engine
from surge.training.lanes import Lanes
from surge.training.run import Shared, make_advance, make_begin
from surge.training.step import Cell

SEEN = Statistics(
    batch_size=32.0,
    first=16.0,
    progress=0.5,
    square=2.0,
    noise=100.0,
    along=50.0,
    example_square=102.0,
    noise_scale=400.0,
)
TABLE = [  # spec, batch size that SEEN leads to (nan: the same again), rate
    ("constant(follow='sqrt')", 16, 1),
    ("doubling(every=0.2)", 64, 1),
    ("ramp(shares=(0.1, 0.5, 0.7), batch_sizes=(20, 200, 400))", 200, 1),
    ("ramp(shares=(0.5, 0.7), batch_sizes=(200, 400), rates=(2.0, 3.0))", 200, 2),
    ("ramp(shares=(0.6, 0.7), batch_sizes=(200, 400), rates=(2.0, 3.0))", 16, 1),
    ("norm_test(eta=0.5)", 200, 1),
    ("norm_test(eta=2.0)", 32, 1),
    ("norm_test(eta=0.5, unbiased=True)", 1600, 1),
    ("inner_product_test(theta=0.25)", 200, 1),
    ("inner_product_test(theta=2.0)", 32, 1),
    ("augmented(theta=0.25, nu=2.0)", 200, 1),
    ("augmented(theta=2.0, nu=0.5)", (100 - 25) / (0.25 * 2), 1),
    ("noise_scale", 400, 1),
    ("noise_scale(share=0.01)", 16, 1),
    ("optimal_batch(rows=300, smoothness=1, largest=4, convexity=1, accuracy=102)", 1, 1),
    ("optimal_batch(rows=300, smoothness=1, largest=4, convexity=1, accuracy=1)", 120.6, 1),
]


def choice(spec, seen):
    arm = make_arm(spec)
    assert arm is not None
    return arm.controller.choose(seen)


@pytest.mark.parametrize(("spec", "size", "rate"), TABLE)
def test_choices_are_those_of_the_equations(spec, size, rate):
    chosen = choice(spec, SEEN)
    assert float(chosen.batch_size) == pytest.approx(size, rel=1e-3)
    assert float(chosen.rate) == rate


def test_every_controller_has_a_row():
    assert {spec.partition("(")[0] for spec, _, _ in TABLE} == CONTROLLERS.keys()


@pytest.mark.parametrize("eta", [0.1, 0.5])
def test_the_published_norm_test_rests_at_its_known_point(eta):
    """(1 − η²)/η² noise scales; far below the noise scale it asks for B/η² whatever that is."""

    def after(size, signal, noise=80.0):
        seen = SEEN._replace(batch_size=size, square=signal + noise / size, noise=noise)
        return float(choice(f"norm_test(eta={eta})", seen).batch_size)

    size = 2.0
    for _ in range(500):
        size = after(size, 1.0)
    assert size == pytest.approx(80 * (1 - eta**2) / eta**2, rel=0.05)
    assert after(16.0, 1e-6) == pytest.approx(16 / eta**2, rel=1e-3)


@settings(deadline=None, max_examples=30)
@given(
    st.integers(2, 500),
    st.floats(0.1, 10),
    st.floats(1, 20),
    st.floats(0, 1e4),
)
def test_the_optimal_batch_has_the_fewest_examples(rows, smoothness, spread, ratio):
    """The bound on examples, by brute force over every batch size."""
    largest = smoothness * min(spread, rows)
    sizes = np.arange(1, rows + 1)
    scale = sizes * (rows - 1)
    expected = (rows * (sizes - 1) * smoothness + (rows - sizes) * largest) / scale
    noise = (rows - sizes) / scale
    examples = sizes * np.maximum(expected, ratio * noise)
    found = float(cheapest(rows, smoothness, largest, ratio))
    assert 1 <= found <= rows + 1e-3
    at = examples[[max(0, math.floor(found) - 1), min(rows, math.ceil(found)) - 1]].min()
    assert at <= examples.min() * (1 + 1e-4)
    if ratio > 0:
        rates = step_size(rows, smoothness, largest, jnp.asarray(sizes), ratio / 2, 1.0, 1.0)
        with np.errstate(divide="ignore"):
            np.testing.assert_allclose(rates, 0.5 / np.maximum(expected, ratio * noise), rtol=1e-4)


@pytest.mark.parametrize(
    ("follow", "rule", "kind"),
    [
        ("sqrt", "sqrt", ""),
        ("linear", "linear", ""),
        ("surge", "surge with B_simple", "adam"),
        ("saturating", "saturating with B_simple", "sgd"),
    ],
)
def test_rates_follow_the_rules_of_the_theory(follow, rule, kind):
    ours = FOLLOW[follow](512.0, 16.0, 90.0)
    assert float(ours) == pytest.approx(math.exp(RULES[rule](512, 16, Known(kind, b_simple=90.0))))


def regression(noise=1.0):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(256, 4)) if noise else np.ones((256, 4))
    data = {"x": jnp.asarray(inputs, jnp.float32)}
    data["y"] = jnp.asarray(data["x"].sum(1) + noise * rng.normal(size=256), jnp.float32)

    def loss(params, example):
        hidden = jnp.tanh(example["x"] @ params["w"]) + params["b"]
        return (hidden.sum() - example["y"]) ** 2

    def init(key):
        return {"w": jax.random.normal(key, (4, 3)) / 4, "b": jnp.zeros(3)}

    return Task(init, loss, data, draw_from_arrays, jax.tree.map(lambda leaf: leaf[:32], data))


TASK, KEY = regression(), jax.random.key(3)
SHARED = Shared(-np.inf, TASK.data, TASK.evaluation)


def trained(spec, cell, task=TASK, cuts=(), optimizer="adam(b2=0.9)", micro=8):
    arm = make_arm(spec)
    rule = make_optimizer(optimizer)
    advance = jax.jit(make_advance(task, rule, microbatch_size=micro, arm=arm))
    run = jax.jit(make_begin(task, rule, arm))(cell, SHARED._replace(data=task.data))
    ends = (*cuts, int(cell.eval_steps[-1]))
    for since, until in zip((0, *cuts), ends, strict=True):
        run = advance(run, cell, SHARED._replace(data=task.data), since, until)
    return run


def cell(rate=0.05, first=8, steps=(1, 2, 4, 8, 16), budget=4000):
    evals = jnp.asarray(steps, jnp.int32)
    return Cell(jnp.float32(rate), KEY, jnp.int32(first), evals, jnp.uint32(budget))


def singles(params, key, size):
    """Gradients of the examples of a batch, one after another, flat [n, P]."""
    keys = [jax.random.fold_in(key, index) for index in range(size)]
    gradient = jax.jit(jax.grad(TASK.loss))
    found = [gradient(params, draw_from_arrays(TASK.data, key)) for key in keys]
    return np.stack([ravel_pytree(one)[0] for one in found]).astype(float)


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ("norm_test(eta=0.5)", lambda g, n, along: n / (0.25 * g)),
        ("inner_product_test(theta=0.3)", lambda g, n, along: along / (0.09 * g**2)),
        (
            "augmented(theta=0.4, nu=1.5)",
            lambda g, n, along: max(along / (0.16 * g**2), (n - along / g) / (2.25 * g)),
        ),
    ],
)
def test_a_run_equals_a_plain_loop(spec, wanted):
    """Batch sizes and parameters, with numpy's variances of gradients taken one by one."""
    steps, data_key = 5, jax.random.split(KEY)[1]
    params, unravel = ravel_pytree(TASK.init(jax.random.split(KEY)[0]))
    chain = optax.adam(0.05, b2=0.9)
    state, size, sizes = chain.init(params), 8, []
    for step in range(steps):
        sizes.append(size)
        grads = singles(unravel(params), jax.random.fold_in(data_key, step), size)
        mean = grads.mean(0)
        updates, state = chain.update(jnp.asarray(mean, jnp.float32), state, params)
        params = jnp.asarray(optax.apply_updates(params, updates))
        noise, along = grads.var(0, ddof=1).sum(), (grads @ mean).var(ddof=1)
        size = min(4096, max(size, math.ceil(wanted(mean @ mean, noise, along) - 1e-4)))
    assert len(set(sizes)) > 1
    run = trained(spec, cell(steps=(1, 2, 3, 4, 5), budget=100_000))
    assert run.examples.tolist() == sizes
    ours = ravel_pytree(run.state.params)[0]
    np.testing.assert_allclose(np.asarray(ours), np.asarray(params), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("spec", ["norm_test(eta=0.5)", "inner_product_test", "noise_scale"])
def test_examples_that_are_all_alike_never_make_a_batch_grow(spec):
    run = trained(spec, cell(), regression(noise=0.0))
    assert run.examples.tolist() == [8, 8, 16, 32, 64]


def test_a_constant_arm_is_a_run_without_one():
    ours = trained("constant(follow='linear')", cell(budget=128))
    theirs = trained("constant", cell()._replace(max_examples=None))
    np.testing.assert_array_equal(ours.loss, theirs.loss)
    np.testing.assert_array_equal(ours.examples, theirs.examples)
    jax.tree.map(np.testing.assert_array_equal, ours.state.params, theirs.state.params)


@pytest.mark.parametrize("budget", [128, 300])
def test_a_run_ends_within_one_batch_of_its_examples(budget):
    run = trained("doubling(every=0.2, most=256)", cell(steps=(1, 2, 4, 8, 16, 32), budget=budget))
    control = run.state.opt_state.control
    assert run.ended and not run.diverged and control.spent
    assert budget - int(control.batch_size) < int(run.examples.sum()) <= budget
    seen = np.isfinite(run.loss)
    assert seen[0] and not seen[-1]
    assert (run.examples[~seen] == 0).all()


def test_a_run_may_be_cut_anywhere():
    spec = "norm_test(eta=0.7, follow='surge')"
    whole = trained(spec, cell())
    parts = trained(spec, cell(), cuts=(1, 3, 7))
    jax.tree.map(np.testing.assert_array_equal, whole, parts)


def test_the_rate_follows_what_the_noise_scale_says():
    """Without momentum a step shows its rate: a run at the rates that the arm chose is the same."""
    spec, at = "norm_test(eta=0.7, follow='surge')", cell(rate=0.01, steps=(1, 2, 3, 4))
    run = trained(spec, at, optimizer="sgd")
    sizes = run.examples.tolist()
    control = run.state.opt_state.control
    scale = float(control.noise / control.signal)
    expected = FOLLOW["surge"](float(control.batch_size), 8.0, scale)
    assert sizes[-1] > 8
    assert float(control.rate) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.slow
def test_lanes_have_batch_sizes_of_their_own():
    """Side by side in the engine, and each alone."""
    arm = "norm_test(eta=0.7)"
    budget, steps = 2000, (1, 2, 4, 8, 12)
    piece = grid.Piece("a", "sgd", 8, (0.01, 0.1), (0, 1), steps, batches=arm, max_examples=budget)
    ours = Engine(TASK, KEY, Lanes("vmap", 2, 2), stop_loss=-np.inf).run(piece)
    theirs = Engine(TASK, KEY, Lanes("map", 1, 1), stop_loss=-np.inf).run(piece)
    assert len(np.unique(ours.examples[..., -1])) > 2
    np.testing.assert_array_equal(ours.examples, theirs.examples)
    np.testing.assert_allclose(ours.loss, theirs.loss, rtol=1e-4)


def test_equal_specs_share_a_program():
    assert make_arm("norm_test(eta=0.5)") == make_arm("norm_test(eta=0.5)")
    assert make_arm("constant") is None


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("norm_tst", "unknown controller 'norm_tst': did you mean norm_test"),
        ("norm_test(0.5)", "must read name"),
        ("norm_test(etta=0.5)", "unknown keyword of norm_test 'etta': did you mean eta"),
        ("norm_test(eta=0)", "eta must be above 0"),
        ("norm_test(most=0)", "most must be a whole number"),
        ("norm_test(follow='sqr')", "unknown follow 'sqr': did you mean sqrt"),
        ("ramp(shares=(0.5,))", "ramp needs batch_sizes"),
        ("ramp(shares=(0.5, 0.1), batch_sizes=(8, 16))", "shares, which rise"),
        (
            "optimal_batch(rows=3, smoothness=1, largest=4, convexity=1, accuracy=1)",
            "lies between smoothness and rows times it",
        ),
    ],
)
def test_a_mistaken_arm_ends_in_one_sentence(spec, sentence):
    with pytest.raises(ValueError, match=sentence.replace("(", r"\(")):
        make_arm(spec)


def config(**fields):
    config = default()
    config.task = "surge.tasks.quadratic:quadratic"
    arm = {"spec": "adam", "learning_rates": (1e-3, 1e-1), "batches": "norm_test"}
    config.optimizers = {"adam": arm | fields.pop("arm", {})}
    config.fit.objective = "loss"
    config.update(fields)
    return config


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"arm": {"batches": "norm"}}, "config.optimizers.adam.batches: unknown controller"),
        ({"arm": {"spec": "adam(schedule='cosine')"}}, "take schedule out"),
        ({"batch_sizes": (1, 4)}, "must be at least 2"),
        ({"batch_sizes": (4, 8192)}, "at most 4096"),
        ({"max_examples": 2**32}, "32 bits"),
    ],
)
def test_what_an_arm_cannot_have_is_said(fields, sentence):
    check(config())
    with pytest.raises(ConfigError, match=sentence):
        check(config(**fields))


def test_no_arm_leaves_a_state_as_it_was():
    begin = partial(make_begin(TASK, make_optimizer("adam")), cell(), SHARED)
    assert not isinstance(jax.eval_shape(begin).state.opt_state, Controlled)
