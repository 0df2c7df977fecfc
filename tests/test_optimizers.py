"""One table of all optimizers: what a Rule says of each is what happens when it is run.

A new optimizer is a file of its own in surge/optimizers and a row here.
"""

from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_zoo_equations import moments_of

import surge
from surge.optimizers import ENTRIES, make_optimizer, update
from surge.optimizers.rule import HISTORY
from surge.suggest import suggest
from surge.tasks import Task, draw_from_arrays
from surge.training import grid
from surge.training.engine import Engine
from surge.training.lanes import Lanes


class Row(NamedTuple):
    """A spec whose state settles within HISTORY steps, and what is special about the optimizer.

    Attributes:
      spec: what is run.
      impulse: spec of the test of weights, where a normaliser that moves would hide them.
      around: the gradient that an answer to an impulse is taken around; an orthogonal matrix of 0
        is undefined.
      slack: relative, of a settled average of what is itself normalised by noisy gradients.
    """

    spec: str
    impulse: str | None = None
    around: float = 0.0
    slack: float = 0.01


TABLE = [
    Row("sgd"),
    Row("momentum"),
    Row("momentum(decay=0.5, nesterov=True)"),
    Row("sign_sgd"),
    Row("signum"),
    Row("adam(b2=0.98)"),
    Row("adamw(b1=0.5, b2=0.98)"),
    Row("adabelief(b2=0.98)"),
    Row("adabelief(b1=0.5, b2=0.9)"),
    Row("lion"),
    Row("adafactor"),
    Row("adafactor(momentum=0.9)", slack=0.2),
    Row("rmsprop"),
    Row("adagrad"),
    Row("muon(b2=0.98)", around=1.0),
    Row("eve(b2=0.98)"),
    Row("examplewise_adam(b1=0.5, b2=0.98)"),
    Row("lars(l2=0.1)", impulse="lars", slack=0.1),
    Row("clars", slack=0.1),
    Row("clars(l2=0.1, norm_batch=2)", impulse="clars", slack=0.1),
    Row("adalomo"),
    Row("active(epoch_examples=100_000, base='adam(b2=0.98)')"),
    Row("active(epoch_examples=100_000, base='eve(b2=0.98)')"),
    Row("tom(b3=0.98)"),
    Row("tom(b1=0.5, b2=0.7, b3=0.98)"),
    Row("madam(beta_high=0.98)"),
    Row("lamadam", impulse="lamadam(beta_low=0.9999, beta_high=0.9999)", slack=0.1),
    Row("extrap_sgd(extrapolation=0.1)"),
    Row("extrap_adam(extrapolation=0.1, workers=2, b2=0.98)"),
    Row("adagrad_norm"),
]
SPECS = [row.spec for row in TABLE]
PARAMS = {"kernel": jnp.linspace(-1.0, 1.0, 12).reshape(4, 3), "bias": jnp.linspace(0.5, 1.0, 3)}
MEAN = jax.tree.map(lambda leaf: 0.3 + 0.2 * jnp.sin(5 * leaf), PARAMS)
SPREAD = jax.tree.map(lambda leaf: 1 + 0.5 * jnp.cos(3 * leaf), PARAMS)
LANES, BATCH = 128, 4


def direction(optimizer, examples, state):
    """u, with which the step is −εu, and the next state, from single gradients [n, ...]."""
    transform = optimizer(1.0, BATCH, None)
    grads = jax.tree.map(lambda leaf: leaf.mean(0), examples)

    def at_any_points(points):
        workers = len(jax.tree.leaves(points)[0])
        return jax.tree.map(
            lambda leaf: leaf.reshape(workers, -1, *leaf.shape[1:]).mean(1), examples
        )

    signals = {"moments": moments_of(examples, optimizer.norm_batch), "gradient_fn": at_any_points}
    updates, state = update(transform, grads, state, PARAMS, **signals)
    return jax.tree.map(jnp.negative, updates), state


@cache
def long_run():
    """Gradients of the examples of batches around MEAN [step, lane, example, ...]."""
    rng = np.random.default_rng(0)

    def noisy(mean, spread):
        normal = rng.standard_normal((HISTORY, LANES, BATCH, *mean.shape), np.float32)
        return mean + spread * normal

    return jax.tree.map(noisy, MEAN, SPREAD)


def second():
    return jax.tree.map(lambda mean, spread: mean**2 + spread**2 / BATCH, MEAN, SPREAD)


def test_every_optimizer_has_a_row():
    assert {row.spec.partition("(")[0] for row in TABLE} == ENTRIES.keys()


@pytest.mark.parametrize("row", TABLE, ids=SPECS)
def test_a_settled_state_is_that_of_a_long_run_at_fixed_parameters(row):
    optimizer = make_optimizer(row.spec)
    start = optimizer(1.0, BATCH, None).init(PARAMS)
    settled = optimizer.settle(start, MEAN, second(), PARAMS, BATCH)
    step = jax.vmap(lambda state, examples: direction(optimizer, examples, state)[1])
    lanes = jax.tree.map(lambda leaf: jnp.stack([leaf] * LANES), start)
    after, _ = jax.lax.scan(lambda *pair: (step(*pair), None), lanes, long_run())
    assert jax.tree.structure(settled) == jax.tree.structure(after)
    for ours, lanes in zip(jax.tree.leaves(settled), jax.tree.leaves(after), strict=True):
        assert ours.dtype == lanes.dtype and ours.shape == lanes.shape[1:]
        if jnp.issubdtype(ours.dtype, jnp.floating):  # a counter is late, however late
            error = lanes.std(0) / np.sqrt(LANES)  # of independent runs
            allowed = 4.5 * error + row.slack * np.abs(ours)
            assert np.all(np.abs(lanes.mean(0) - ours) <= allowed)


def of_a_sign(row):
    """Whether an optimizer takes the sign of an average, which has no answer to one impulse."""
    optimizer = make_optimizer(row.spec)
    return optimizer.bends and optimizer.sign_like


LINEAR = [row for row in TABLE if not of_a_sign(row)]
SIGNS = [row for row in TABLE if of_a_sign(row)]


@pytest.mark.parametrize("row", LINEAR, ids=[row.spec for row in LINEAR])
def test_weights_are_the_answer_to_an_impulse(row):
    optimizer = make_optimizer(row.impulse or row.spec)
    transform = optimizer(1.0, BATCH, None)
    weights = optimizer.weights(BATCH)
    around = jax.tree.map(lambda leaf: row.around * jnp.sin(1 + 7 * leaf), PARAMS)
    squares = jax.tree.map(lambda leaf: 1 + leaf**2, around)
    settled = optimizer.settle(transform.init(PARAMS), around, squares, PARAMS, BATCH)
    spread = 2 * jnp.asarray([1.0, -1.0, 1.0, -1.0])  # of examples, so that batches have none
    steps = len(weights) + 12

    @jax.jit
    @jax.vmap
    def answer(time):
        """To an impulse at one time: the last direction, which has the same v however late."""

        def step(state, now):
            mean = jax.tree.map(lambda leaf: leaf + 0.01 * (now == time), around)
            examples = jax.tree.map(lambda leaf: jnp.add.outer(spread, leaf), mean)
            return direction(optimizer, examples, state)[::-1]

        _, directions = jax.lax.scan(step, settled, jnp.arange(steps))
        return directions["kernel"][-1]

    answers = np.asarray(answer(jnp.arange(-1, steps)), float)  # -1: no impulse at all
    response = (answers[1:] - answers[0]).reshape(steps, -1)[::-1].sum(1)
    assert weights.sum() == pytest.approx(1)
    padded = np.pad(weights, (0, 12))
    np.testing.assert_allclose(response / response.sum(), padded, atol=0.015 * np.abs(padded).max())


@pytest.mark.parametrize("row", SIGNS, ids=[row.spec for row in SIGNS])
def test_weights_foretell_the_sign_of_an_average(row):
    optimizer = make_optimizer(row.spec)
    transform = optimizer(1.0, BATCH, None)
    weights = optimizer.weights(BATCH)
    gradients = jax.random.normal(jax.random.key(0), (len(weights) + 12, 4000))
    nothing = jnp.zeros(4000)
    start = transform.init(nothing)
    settled = optimizer.settle(start, nothing, nothing + 1, nothing, BATCH)

    def step(state, grads):
        return update(transform, grads, state, grads)[::-1]

    _, updates = jax.lax.scan(step, settled, gradients)
    average = np.tensordot(weights[::-1], gradients[-len(weights) :], 1)
    assert np.mean(np.sign(average) == -np.asarray(updates[-1])) > 0.98


@pytest.mark.parametrize(
    ("spec", "batches"),
    [
        ("sign_sgd", 1),
        ("rmsprop", 1),
        ("adam", 19),
        ("adam(b1=0)", 1),
        ("signum", 19),
        ("lion", 71.1),
    ],
)
def test_weights_average_the_known_number_of_batches(spec, batches):
    weights = make_optimizer(spec).weights(1)
    assert 1 / (weights**2).sum() == pytest.approx(batches, rel=0.01)


def test_weights_and_settled_states_follow_the_co_scaling():
    optimizer = make_optimizer("adabelief(scaling='sde', base_batch_size=64)")
    assert len(optimizer.weights(256)) < len(optimizer.weights(64))
    moments = jnp.zeros(2), jnp.ones(2), jnp.ones(2)
    state = optimizer(1.0, 256, None).init(jnp.ones(2))
    moved = optimizer.settle(state, *moments, 256)[0]
    scaled = make_optimizer("adabelief(b1=0.6)").settle(state, *moments, 1)[0]
    np.testing.assert_allclose(moved.nu, scaled.nu, rtol=1e-6)


def test_ghost_batches_count_examples():
    optimizer = make_optimizer("adam(scaling='sde', base_batch_size=64)")
    assert optimizer.weights(64).tolist() == optimizer.counted_in(16).weights(4).tolist()
    assert optimizer.counted_in(16).held(3).unit == 16


@pytest.mark.parametrize("spec", SPECS)
def test_descends_at_any_traced_rate_side_by_side(spec):
    optimizer = make_optimizer(spec)

    def loss(params):
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))

    def final(learning_rate):
        transform = optimizer(learning_rate, BATCH, 20)

        def step(carry, _):
            params, state = carry
            grads = jax.grad(loss)(params)
            same = jax.tree.map(lambda leaf: jnp.stack([leaf] * BATCH), grads)
            signals = {"moments": moments_of(same), "gradient_fn": jax.vmap(jax.grad(loss))}
            updates, state = update(transform, grads, state, params, **signals)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(step, (PARAMS, transform.init(PARAMS)), length=20)
        return loss(params)

    losses = jax.jit(jax.vmap(final))(jnp.array([0.0, 0.01]))
    assert losses[0] == pytest.approx(float(loss(PARAMS)), rel=1e-6)
    assert losses[1] < losses[0]


def regression():
    """A linear layer with a bias."""
    rng = np.random.default_rng(0)
    inputs = jnp.asarray(rng.normal(size=(64, 4)), jnp.float32)
    data = {"x": inputs, "y": jnp.stack([inputs.sum(1), inputs[:, 0]], 1) + 0.5}

    def loss(params, example):
        return ((example["x"] @ params["kernel"] + params["bias"] - example["y"]) ** 2).sum()

    def init(key):
        return {"kernel": jax.random.normal(key, (4, 2)) / 4, "bias": jnp.zeros(2)}

    return Task(init, loss, data, draw_from_arrays, jax.tree.map(lambda leaf: leaf[:16], data))


@pytest.mark.parametrize("spec", SPECS)
def test_bfloat16_parameters_have_directions_and_states_that_keep_their_types(spec):
    """As a loop over steps asks; only shapes are computed."""
    optimizer = make_optimizer(spec)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)
    transform = optimizer(0.01, BATCH, None)
    state = transform.init(params)

    def step(params, state):
        same = jax.tree.map(lambda leaf: jnp.stack([leaf] * BATCH), params)
        signals = {"moments": moments_of(same), "gradient_fn": lambda points: points}
        return update(transform, params, state, params, **signals)

    updates, after = jax.eval_shape(step, params, state)
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(jnp.bfloat16)}
    types = [[leaf.dtype for leaf in jax.tree.leaves(tree)] for tree in (state, after)]
    assert types[0] == types[1]


@pytest.mark.parametrize("spec", SPECS)
def test_a_suggestion_knows_every_spec(spec):
    asked = {"from_batch_size": 64, "from_lr": 1e-3, "to_batch_size": 256}
    found = suggest(**asked, optimizer=spec)
    assert 0 < found.low <= found.lr <= found.high


QUICK = ("muon(b2=0.98)", "adabelief(b2=0.98)", "clars")


def some(specs):
    """All rows in the slow suite, of which some also in the quick one: a row costs seconds."""
    slow = [pytest.param(spec, marks=pytest.mark.slow) for spec in specs if spec not in QUICK]
    return pytest.mark.parametrize("spec", [*QUICK, *slow])


@some([spec for spec in SPECS if "gradient_fn" not in make_optimizer(spec).needs])
def test_measures_on_a_model_with_biases(spec):
    task = regression()
    asked = {"optimizers": {spec: spec}, "batch_sizes": (4,), "directions": 16}
    law = surge.measure(task.loss, task.init(jax.random.key(0)), [task.data], **asked).measured[
        spec
    ]
    assert np.isfinite(law.lr).all() and (law.lr > 0).all(), law.why


def test_gradients_at_points_of_their_own_are_not_measured_in_one_sentence():
    task = regression()
    asked = {"optimizers": {"far": "extrap_sgd(extrapolation=0.1)"}}
    with pytest.raises(ValueError, match=r"^far .* takes gradients at points of its own"):
        surge.measure(task.loss, task.init(jax.random.key(0)), [task.data], **asked)


@some(SPECS)
def test_sweeps_two_cells(spec):
    alone = Lanes("vmap", 1, 1)
    engine = Engine(regression(), jax.random.key(0), alone, stop_loss=-np.inf)
    result = engine.run(grid.Piece(spec, spec, 4, (0.003, 0.01), (0,), (5, 20)))
    assert np.isfinite(result.loss).all() and not result.diverged.any()
    assert (result.loss[..., 1] < result.loss[..., 0]).all()
