"""One run as a pure function: equal to a plain loop, to its own branches, to itself under vmap."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from surge.optimizers import make_optimizer
from surge.tasks import Task, draw_from_arrays
from surge.training.run import batch_gradient, make_train

KEY = jax.random.key(0)
OPTIMIZERS = [
    "sgd",
    "momentum",
    "sign_sgd",
    "signum",
    "adam",
    "adamw(weight_decay=0.1)",
    "lion",
    "adafactor",
    "rmsprop",
    "adagrad",
    "muon",
    "adam(clip=0.5,schedule='cosine',warmup=0.2)",
    "adam(scaling='sde',base_batch_size=4)",
]


def regression(examples=64):
    rng = np.random.default_rng(0)
    data = {"x": jnp.asarray(rng.normal(size=(examples, 4)), jnp.float32)}
    data["y"] = jnp.sin(data["x"].sum(1))

    def init(key):
        hidden, out = jax.random.split(key)
        return {"w": jax.random.normal(hidden, (4, 6)) / 2, "v": jax.random.normal(out, (6,)) / 2}

    def loss(params, example):
        return (jnp.tanh(example["x"] @ params["w"]) @ params["v"] - example["y"]) ** 2

    return Task(init, loss, data, draw_from_arrays, jax.tree.map(lambda leaf: leaf[:16], data))


TASK = regression()


def compiled(function):
    """jit with the options that the sweep compiles with."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 1})


def run(spec, *, learning_rate=0.02, batch_size=8, steps=(1, 3, 7), stop=-np.inf, **options):
    train = compiled(make_train(TASK, make_optimizer(spec), microbatch_size=8))
    steps = jnp.asarray(steps, jnp.int32)
    return train(jnp.float32(learning_rate), KEY, batch_size, steps, stop, TASK.data, TASK.evaluation, **options)


def plain_loop(spec, learning_rate, batch_size, steps):
    """The same run as a user would write it: one jitted step, a Python loop."""
    init_key, data_key = jax.random.split(KEY)

    @compiled
    def step(params, state, index, learning_rate, batch_size, steps):
        grads = batch_gradient(TASK, params, TASK.data, jax.random.fold_in(data_key, index), batch_size, 8)
        updates, state = make_optimizer(spec)(learning_rate, batch_size, steps).update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params = jax.jit(TASK.init)(init_key)
    state = make_optimizer(spec)(learning_rate, batch_size, steps).init(params)
    for index in range(steps):
        params, state = step(params, state, index, jnp.float32(learning_rate), batch_size, steps)
    return params


@pytest.mark.parametrize("spec", OPTIMIZERS)
def test_equals_a_plain_optax_loop_bit_for_bit(spec):
    ours, theirs = run(spec).state.params, plain_loop(spec, 0.02, 8, 7)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize(
    "spec",
    [spec if spec in ("sgd", "adam", "muon") else pytest.param(spec, marks=pytest.mark.slow) for spec in OPTIMIZERS],
)
def test_a_lane_equals_the_run_alone(spec):
    train = make_train(TASK, make_optimizer(spec), microbatch_size=8, axis_name=("rate",))
    steps, rates = jnp.asarray((1, 3, 7), jnp.int32), jnp.asarray([0.01, 0.02, 0.03])
    shared = (KEY, 8, steps, -jnp.inf, TASK.data, TASK.evaluation)
    lanes = compiled(jax.vmap(lambda rate: train(rate, *shared), axis_name="rate"))(rates)
    alone = plain_loop(spec, 0.02, 8, 7)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b, rtol=1e-4, atol=2e-6), lanes.state.params, alone)


def mean_gradient(params, batch_size):
    keys = [jax.random.fold_in(KEY, i) for i in range(batch_size)]
    grads = [jax.grad(TASK.loss)(params, draw_from_arrays(TASK.data, key)) for key in keys]
    return jax.tree.map(lambda *leaves: sum(leaves) / batch_size, *grads)


@pytest.mark.parametrize(("batch_size", "size"), [(1, 4), (3, 4), (4, 4), (10, 4), (12, 4)])
def test_micro_batches_add_up_to_the_batch(batch_size, size):
    params = TASK.init(KEY)
    got = jax.jit(lambda b: batch_gradient(TASK, params, TASK.data, KEY, b, size))(batch_size)
    want = mean_gradient(params, batch_size)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), got, want)


def test_a_batch_loss_is_taken_of_whole_micro_batches():
    task = TASK._replace(batch_loss=lambda params, batch: jax.vmap(TASK.loss, (None, 0))(params, batch).mean())
    params = TASK.init(KEY)
    got = batch_gradient(task, params, TASK.data, KEY, 8, 4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), got, mean_gradient(params, 8))


def test_a_branch_goes_on_as_the_whole_run():
    whole, half = run("adam", steps=(3, 7)), run("adam", steps=(2, 3))
    rest = run("adam", steps=(5, 7), start=half.state)
    jax.tree.map(np.testing.assert_array_equal, rest.state, whole.state)
    assert int(half.state.step) == 3
    assert rest.loss[-1] == whole.loss[-1]


def test_limit_ends_a_run_and_leaves_its_schedule():
    whole, part = run("sgd(schedule='cosine')"), run("sgd(schedule='cosine')", limit=2)
    np.testing.assert_array_equal(part.loss[:2], whole.loss[:2])
    assert np.isnan(part.loss[2])
    assert int(part.state.step) == 3


def test_stops_at_the_target_loss():
    free = run("sgd", learning_rate=0.05, steps=(1, 2, 4, 8, 16))
    target = float(free.loss[2])
    stopped = run("sgd", learning_rate=0.05, steps=(1, 2, 4, 8, 16), stop=target)
    np.testing.assert_array_equal(stopped.loss[:3], free.loss[:3])
    assert np.all(np.isnan(stopped.loss[3:]))
    assert int(stopped.state.step) == 4
    assert not stopped.diverged


def test_divergence_is_data():
    result = run("sgd", learning_rate=1e6, steps=(1, 2, 4, 8))
    assert result.diverged
    assert np.all(np.isnan(result.loss[2:]))


def test_a_lane_that_ended_keeps_its_state_while_others_go_on():
    train = make_train(TASK, make_optimizer("sgd"), microbatch_size=8, axis_name=("rate",))
    steps = jnp.asarray((1, 2, 4, 8), jnp.int32)
    shared = (KEY, 8, steps, -jnp.inf, TASK.data, TASK.evaluation)
    lanes = jax.vmap(lambda rate: train(rate, *shared), axis_name="rate")(jnp.asarray([1e6, 0.01]))
    assert lanes.diverged.tolist() == [True, False]
    assert lanes.state.step[0] < lanes.state.step[1] == 8
    assert np.all(np.isfinite(lanes.loss[1]))
