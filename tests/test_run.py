"""One run as a pure function: equal to a plain loop, to its own branches, to itself under vmap and
in the engine."""

from functools import cache, partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from surge.optimizers import make_optimizer
from surge.tasks import Task, draw_from_arrays
from surge.tasks.mlp import mnist1d
from surge.training import engine, grid
from surge.training.lanes import Lanes
from surge.training.run import Cell, Shared, evaluate, make_advance, make_begin, make_train
from surge.training.step import batch_gradient

pytestmark = pytest.mark.usefixtures("no_rank_promotion")
KEY = jax.random.key(0)
CHAINS = {  # written out, so that names are checked too
    "sgd": lambda rate: optax.sgd(rate),
    "momentum": lambda rate: optax.sgd(rate, momentum=0.9),
    "sign_sgd": lambda rate: optax.sign_sgd(rate),
    "signum": lambda rate: optax.chain(optax.ema(0.9, debias=False), optax.sign_sgd(rate)),
    "adam": lambda rate: optax.adam(rate),
    "adamw": lambda rate: optax.adamw(rate, weight_decay=1e-4),
    "lion": lambda rate: optax.lion(rate, b1=0.9, b2=0.99, weight_decay=0.0),
    "adafactor": lambda rate: optax.chain(
        optax.scale_by_factored_rms(),
        optax.clip_by_block_rms(1.0),
        optax.scale_by_learning_rate(rate),
    ),
    "rmsprop": lambda rate: optax.rmsprop(rate, decay=0.9),
    "adagrad": lambda rate: optax.adagrad(rate, initial_accumulator_value=0.1),
    "muon": lambda rate: optax.contrib.muon(rate),
}
SPECS = {
    (
        "adam(clip=0.5, weight_decay=0.1, schedule='wsd', scaling='sde', base_batch_size=4)"
    ): lambda rate: optax.chain(
        optax.clip_by_global_norm(0.5),
        optax.scale_by_adam(b1=0.8, b2=0.998, eps=1e-8 / 2**0.5),
        optax.add_decayed_weights(0.1 * 2**0.5),
        optax.scale_by_schedule(lambda step: jnp.minimum((1 - step / 7) / 0.2, 1.0)),
        optax.scale_by_learning_rate(rate),
    ),
}
ALONE = Lanes("vmap", 1, 1)
STEPS, RATES, SIZE = (1, 3, 7), (0.01, 0.02, 0.03, 0.04), 8


def regression(examples=64):
    rng = np.random.default_rng(0)
    data = {"x": jnp.asarray(rng.normal(size=(examples, 4)), jnp.float32)}
    data["y"] = jnp.sin(data["x"].sum(1))

    def loss(params, example):
        return (jax.nn.silu(example["x"] @ params["w"]).sum() - example["y"]) ** 2

    def init(key):
        return {"w": jax.random.normal(key, (4, 6)) / 4}

    return Task(init, loss, data, draw_from_arrays, jax.tree.map(lambda leaf: leaf[:16], data))


TASK = regression()
SHARED = Shared(-np.inf, TASK.data, TASK.evaluation)


@cache
def task_named(name):
    return (
        TASK
        if name == "regression"
        else mnist1d(widths=(16,), examples=1_000, evaluation_examples=64)
    )


@cache
def start_and_loss(name):
    task = task_named(name)
    return jax.jit(task.init), jax.jit(lambda params: evaluate(task, params, task.evaluation))


@cache
def plain_loop(name, spec):
    """Losses and last parameters of seed 1 at the second rate, as a user would get them: a jitted
    step in a loop."""
    task, chain = task_named(name), (CHAINS | SPECS)[spec]
    init_key, data_key = jax.random.split(jax.random.fold_in(KEY, 1))

    @jax.jit
    def step(params, state, index, rate):
        grads = batch_gradient(
            task, params, task.data, jax.random.fold_in(data_key, index), SIZE, SIZE
        )
        updates, state = chain(rate).update(grads, state, params)
        return optax.apply_updates(params, updates), state

    init, loss = start_and_loss(name)
    params, losses = init(init_key), []
    state = chain(RATES[1]).init(params)
    for index in range(STEPS[-1]):
        params, state = step(params, state, index, jnp.float32(RATES[1]))
        losses += [loss(params)] if index + 1 in STEPS else []
    return np.array(losses), ravel_pytree(params)[0]


def in_engine(monkeypatch, name, spec, lanes, rates=RATES, seeds=(0, 1)):
    """The same of the same run, as the engine has it in blocks of some shape and among others."""
    run_block = engine.Engine._run_block

    def ending_in_parameters(*args):
        runs = run_block(*args)
        leaves = [
            np.reshape(leaf, (*runs.diverged.shape, -1))
            for leaf in jax.tree.leaves(runs.state.params)
        ]
        return runs._replace(diverged=jnp.asarray(np.concatenate(leaves, -1)))

    piece = grid.Piece(spec, spec, SIZE, rates, seeds, STEPS)
    with monkeypatch.context() as patch:
        patch.setattr(engine.Engine, "_run_block", ending_in_parameters)
        result = engine.Engine(task_named(name), KEY, lanes, stop_loss=-np.inf).run(piece)
    cell = rates.index(RATES[1]), seeds.index(1)
    return result.loss[cell], result.diverged[cell]


@pytest.mark.parametrize("spec", CHAINS)
def test_alone_in_the_engine_a_run_equals_a_plain_optax_loop(monkeypatch, spec):
    """To the last bit where XLA rounds both programs alike. From jax 0.11 on it fuses a program of
    several devices otherwise than a jitted step, and they differ by an ulp."""
    ours = in_engine(monkeypatch, "regression", spec, ALONE)
    theirs = plain_loop("regression", spec)
    if jax.__version_info__ < (0, 11):
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    few_ulps = partial(np.testing.assert_allclose, rtol=5e-7, atol=1.5e-7)
    jax.tree.map(few_ulps, ours, theirs)


@pytest.mark.parametrize("spec", ["adam", "muon"])
def test_alone_in_the_engine_a_run_has_the_same_bits_in_any_company(monkeypatch, spec):
    """Two engines compile the same program, of which one runs this cell only."""
    many = in_engine(monkeypatch, "regression", spec, ALONE)
    one = in_engine(monkeypatch, "regression", spec, ALONE, rates=RATES[1:2], seeds=(1,))
    jax.tree.map(np.testing.assert_array_equal, one, many)


QUICK = {"sgd", "adam", "lion", "muon", *SPECS}  # a row costs seconds: the others are slow


def lane_rows():
    rows = [("regression", spec) for spec in (*CHAINS, *SPECS)]
    rows += [("mlp", spec) for spec in ("sgd", "adam", "lion")]
    for name, spec in rows:
        quick = spec == "adam" if name == "mlp" else spec in QUICK
        yield pytest.param(name, spec, marks=() if quick else pytest.mark.slow)


@pytest.mark.parametrize(("name", "spec"), lane_rows())
def test_a_lane_equals_the_run_alone(monkeypatch, name, spec):
    lane, alone = in_engine(monkeypatch, name, spec, Lanes("vmap", 2, 2)), plain_loop(name, spec)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6), lane, alone)


def mean_gradient(params, batch_size):
    keys = [jax.random.fold_in(KEY, i) for i in range(batch_size)]
    grads = [jax.grad(TASK.loss)(params, draw_from_arrays(TASK.data, key)) for key in keys]
    return jax.tree.map(lambda *leaves: sum(leaves) / batch_size, *grads)


def test_micro_batches_add_up_to_the_batch():
    params = TASK.init(KEY)
    gradient = jax.jit(
        lambda batch_size: batch_gradient(TASK, params, TASK.data, KEY, batch_size, 4)
    )
    for batch_size in (1, 3, 4, 10, 12):
        got, want = gradient(batch_size), mean_gradient(params, batch_size)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), got, want)


def test_a_batch_loss_is_taken_of_whole_micro_batches():
    task = TASK._replace(
        batch_loss=lambda params, batch: jax.vmap(TASK.loss, (None, 0))(params, batch).mean()
    )
    params = TASK.init(KEY)
    got = batch_gradient(task, params, TASK.data, KEY, 8, 4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        got,
        mean_gradient(params, 8),
    )


@cache
def compiled(spec):
    train = make_train(TASK, make_optimizer(spec), microbatch_size=8)
    return jax.jit(train, compiler_options={"xla_backend_optimization_level": 1})


def run(spec, *, learning_rate=0.02, batch_size=8, steps=(1, 3, 7), stop=-np.inf, **options):
    cell = Cell(jnp.float32(learning_rate), KEY, batch_size, jnp.asarray(steps, jnp.int32))
    return compiled(spec)(cell, SHARED._replace(stop_loss=stop), **options)


def test_a_branch_goes_on_as_the_whole_run():
    whole, half = run("adam", steps=(3, 7)), run("adam", steps=(2, 3))
    rest = run("adam", steps=(5, 7), start=half.state)
    jax.tree.map(np.testing.assert_array_equal, rest.state, whole.state)
    assert int(half.state.step) == 3
    assert rest.loss[-1] == whole.loss[-1]


def test_a_run_may_be_cut_anywhere():
    """Between evals, at one, or before the last: its schedule counts to the end all the same."""
    optimizer = make_optimizer("adam(schedule='cosine')")
    begin, advance = make_begin(TASK, optimizer), make_advance(TASK, optimizer, microbatch_size=8)
    cell = Cell(jnp.float32(0.02), KEY, 8, jnp.asarray((1, 3, 7), jnp.int32))
    advance = jax.jit(advance)
    part = jax.jit(begin)(cell, SHARED)
    for since, until in pairwise((0, 2, 3, 6)):
        part = advance(part, cell, SHARED, since, until)
        assert int(part.state.step) == until and not part.ended
    assert np.isfinite(part.loss).tolist() == [True, True, False]
    whole = run("adam(schedule='cosine')")
    rest = advance(part, cell, SHARED, 6, 7)
    jax.tree.map(np.testing.assert_array_equal, rest, whole)


def test_stops_at_the_target_loss():
    free = run("sgd", learning_rate=0.05, steps=(1, 2, 4, 8, 16))
    target = float(free.loss[2])
    stopped = run("sgd", learning_rate=0.05, steps=(1, 2, 4, 8, 16), stop=target)
    np.testing.assert_array_equal(stopped.loss[:3], free.loss[:3])
    assert np.all(np.isnan(stopped.loss[3:]))
    assert stopped.examples.tolist() == [8, 8, 16, 0, 0]
    assert int(stopped.state.step) == 4
    assert not stopped.diverged


def test_divergence_is_data():
    result = run("sgd", learning_rate=1e6, steps=(1, 2, 4, 8, 16))
    assert result.diverged
    assert np.all(np.isnan(result.loss[2:]))


def test_a_lane_that_ended_keeps_its_state_while_others_go_on():
    begin = make_begin(TASK, make_optimizer("sgd"))
    advance = make_advance(TASK, make_optimizer("sgd"), microbatch_size=8, axis_name=("rate",))
    steps = jnp.asarray((1, 2, 4, 8), jnp.int32)

    def train(rate):
        cell = Cell(rate, KEY, 8, steps)
        return advance(begin(cell, SHARED), cell, SHARED, 0, 8)

    lanes = jax.vmap(train, axis_name="rate")(jnp.asarray([1e6, 0.01]))
    assert lanes.diverged.tolist() == [True, False]
    assert lanes.state.step[0] < lanes.state.step[1] == 8
    assert np.all(np.isfinite(lanes.loss[1]))
    assert lanes.examples[1].tolist() == [8, 8, 16, 32]
    ended = int(lanes.state.step[0])
    assert lanes.examples[0].sum() == 8 * ended


@pytest.mark.parametrize("spec", ["sgd", "adam(scaling='sde', base_batch_size=4)"])
def test_each_lane_may_have_its_own_batch_size(spec):
    begin = make_begin(TASK, make_optimizer(spec))
    advance = make_advance(TASK, make_optimizer(spec), microbatch_size=8, axis_name=("size",))
    steps = jnp.asarray((1, 3, 7), jnp.int32)

    def train(size):
        cell = Cell(jnp.float32(0.02), KEY, size, steps)
        return advance(begin(cell, SHARED), cell, SHARED, 0, 7)

    sizes = (3, 8, 20)
    lanes = jax.jit(jax.vmap(train, axis_name="size"))(jnp.asarray(sizes))
    assert lanes.examples.sum(-1).tolist() == [7 * size for size in sizes]
    for lane, size in enumerate(sizes):
        alone = run(spec, batch_size=size)
        np.testing.assert_allclose(lanes.loss[lane], alone.loss, rtol=1e-5)
        np.testing.assert_array_equal(lanes.examples[lane], alone.examples)


def test_the_batch_size_may_change_during_a_run():
    """After 3 steps, between two evaluations; the examples that were seen are recorded."""
    optimizer = make_optimizer("adam")
    advance = jax.jit(make_advance(TASK, optimizer, microbatch_size=8))
    cell = Cell(jnp.float32(0.02), KEY, 4, jnp.asarray((1, 4, 7), jnp.int32))
    part = jax.jit(make_begin(TASK, optimizer))(cell, SHARED)
    part = advance(part, cell, SHARED, 0, 3)
    whole = advance(part, cell._replace(batch_size=10), SHARED, 3, 7)
    assert whole.examples.tolist() == [4, 4 + 4 + 10, 30]

    _, data_key = jax.random.split(KEY)

    @jax.jit
    def step(params, state, index):
        key = jax.random.fold_in(data_key, index)
        gradient = batch_gradient(TASK, params, TASK.data, key, 10, 8)
        updates, state = optax.adam(0.02).update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    params, state, _ = part.state
    for index in range(3, 7):
        params, state = step(params, state, index)
    np.testing.assert_allclose(whole.state.params["w"], params["w"], rtol=1e-4, atol=1e-6)


def test_examples_have_room_for_a_long_run():
    """2^32 and more in all, where no gap between evaluations has as many."""
    trained = np.full((1, 3), 2**31 + 5, np.uint32)
    np.testing.assert_array_equal(engine._seen(trained), [[2**31 + 5, 2**32 + 10, 3 * (2**31 + 5)]])
