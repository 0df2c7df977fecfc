"""The noise scale of a running training: known answers, a naive second way, and the examples in
docs as they are printed."""

import importlib.util
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from surge.gradients import observation
from surge.gradients.moments import per_example_moments
from surge.noise import logged
from surge.suggest import suggest
from surge.tasks.mlp import mnist1d
from surge.theory import smoothing
from surge.tracker import Tracker

ROOT = Path(__file__).parent.parent
PARAMS = {"a": {"w": jnp.zeros((12, 20))}, "b": {"w": jnp.zeros((6,))}}
MEAN = jax.tree.map(
    lambda leaf: jnp.asarray(np.random.default_rng(leaf.size).normal(size=leaf.shape), jnp.float32),
    PARAMS,
)
STD = {"a": {"w": 3.0}, "b": {"w": 1.5}}
NU = jax.tree.map(lambda leaf: 0.1 + leaf**2, MEAN)


def linear(params, example):
    """Its gradient is the example."""
    terms = jax.tree.map(lambda p, x: (p * x).sum(), params, example)
    return jnp.stack(jax.tree.leaves(terms)).sum()


def draw(key, *axes):
    """Gradients about MEAN with the standard deviations STD."""
    leaves, tree = jax.tree.flatten(MEAN)
    keys = tree.unflatten([*jax.random.split(key, len(leaves))])
    return jax.tree.map(
        lambda mean, std, key: mean + std * jax.random.normal(key, (*axes, *mean.shape)),
        MEAN,
        STD,
        keys,
    )


def truth():
    """Of all parameters, by the definitions."""
    mean = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(MEAN)]).astype(float)
    std = np.concatenate(
        [
            np.full(leaf.size, std)
            for leaf, std in zip(*map(jax.tree.leaves, (MEAN, STD)), strict=True)
        ]
    )
    weight = 1 / np.sqrt(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(NU)]))
    matrix = np.asarray(MEAN["a"]["w"], float)
    return {
        "b_simple": (std @ std) / (mean @ mean),
        "adam": (weight @ std**2) / (weight @ mean**2),
        "sign": (std.sum() / np.abs(mean).sum()) ** 2,
        # E D Dᵀ of 12 x 20 independent entries is 20 · 9 times the identity.
        "nuclear": (12 * math.sqrt(20) * 3.0 / np.linalg.norm(matrix, "nuc")) ** 2,
    }


@pytest.fixture(scope="module")
def followed():
    """40 readings of 16 examples and of 8 batches of 4, by every scale."""
    tracker = Tracker.of(PARAMS, observation.SCALES)

    @jax.jit
    def both(key):
        singles = tracker.from_examples(linear, PARAMS, draw(key, 16), NU)
        batches = jax.tree.map(lambda leaf: leaf.mean(1), draw(key, 8, 4))
        return singles, tracker.from_gradients(batches, 4, NU)

    def readings(carry, key):
        seen = both(key)
        return jax.tree.map(tracker.update, carry, seen, is_leaf=_state), seen[0]

    start = tracker.init(), tracker.init()
    keys = jax.random.split(jax.random.key(7), 40)
    states, seen = jax.jit(lambda start: jax.lax.scan(readings, start, keys))(start)
    return tracker, seen, states


def _state(node):
    return hasattr(node, "scatter")


def test_every_scale_is_the_planted_one_within_its_interval(followed):
    tracker, _, states = followed
    for state in states:
        reading = tracker.reading(state)
        assert (reading.readings, reading.skipped) == (40, 0)
        for scale, exact in truth().items():
            found = reading.scales[scale]
            print(scale, found[:3], exact)
            assert found.low < exact < found.high
            assert found.value == pytest.approx(exact, rel=0.3)
        small = reading.layers["b_simple"]["b"]
        norm = float((MEAN["b"]["w"] ** 2).sum())
        assert small.low < 6 * 1.5**2 / norm < small.high
        assert "no matrix" in reading.layers["nuclear"]["b"].why


def test_running_sums_are_those_over_all_readings(followed):
    tracker, seen, states = followed
    parts = np.asarray(seen.parts["b_simple"], float).sum(1)
    rows = np.column_stack([parts[:, :2], np.arange(40)])
    found = smoothing.noise_scale(smoothing.smoothed(rows, 10.0), 16)
    assert tracker.reading(states[0]).scales["b_simple"][:4] == pytest.approx(found[:4], rel=1e-3)


def test_one_reading_of_examples_is_the_unbiased_estimate():
    """By sums over single gradients, in float64."""
    examples = draw(jax.random.key(1), 8)
    parts = observation.of_examples(linear, PARAMS, examples, ("b_simple", "adam"), NU).parts
    mean = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(NU)]).mean()
    adam = 1 / np.sqrt(NU["a"]["w"])
    for scale, weight, factor in (("b_simple", 1.0, 1.0), ("adam", adam, math.sqrt(mean))):
        rows = np.asarray(examples["a"]["w"] * np.sqrt(weight), float).reshape(8, -1)
        trace = rows.var(0, ddof=1).sum()
        pairs = (rows @ rows.T)[~np.eye(8, dtype=bool)]
        exact = factor * np.array([trace, pairs.mean(), 0])
        np.testing.assert_allclose(parts[scale][0], exact, rtol=1e-4)


def test_micro_batches_of_multi_steps_read_as_their_stacked_gradients():
    tracker = Tracker.of(PARAMS, ("b_simple", "adam"))
    plain = optax.MultiSteps(optax.adam(0.1), 4)
    watched = tracker.around(optax.MultiSteps(optax.adam(0.1), 4), 3)
    gradients = jax.jit(lambda key: draw(key, 8))(jax.random.key(2))
    state: Any = watched.init(PARAMS)
    bare = plain.init(PARAMS)
    noise, update = tracker.init(), jax.jit(watched.update)
    moment = optax.tree_utils.tree_get(bare.inner_opt_state, "nu")
    for index in range(8):
        one = jax.tree.map(lambda leaf, index=index: leaf[index], gradients)
        step, state = update(one, state, PARAMS)
        same, bare = plain.update(one, bare, PARAMS)
        jax.tree.map(np.testing.assert_allclose, step, same)
        if index % 4 == 3:
            four = jax.tree.map(lambda leaf, end=index: leaf[end - 3 : end + 1], gradients)
            noise = tracker.update(noise, tracker.from_gradients(four, 3, moment))
            moment = optax.tree_utils.tree_get(bare.inner_opt_state, "nu")
    assert int(state.noise.count) == 2
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4), state.noise, noise)


def test_devices_read_as_their_stacked_gradients():
    mesh = jax.make_mesh((2,), ("data",))
    spec = jax.sharding.PartitionSpec("data")
    placed = jax.sharding.NamedSharding(mesh, spec)
    gradients = jax.device_put(draw(jax.random.key(3), 2), placed)

    def local(gradient):
        gradient = jax.tree.map(lambda leaf: leaf[0], gradient)
        mean = jax.lax.pmean(gradient, "data")
        return observation.of_devices(gradient, mean, 4, "data")

    found = jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=jax.sharding.PartitionSpec())(
        gradients
    )
    same = observation.of_gradients(draw(jax.random.key(3), 2), 4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, same)


def test_a_broken_reading_is_counted_and_left_out(followed):
    tracker, readings, states = followed
    seen = jax.tree.map(lambda leaf: leaf[0], readings)
    broken = seen._replace(parts=seen.parts | {"b_simple": seen.parts["b_simple"] * math.nan})
    after = tracker.update(states[0], broken)
    assert int(after.skipped) == 1
    jax.tree.map(
        np.testing.assert_array_equal, after._replace(skipped=0), states[0]._replace(skipped=0)
    )


def test_a_checkpoint_goes_on_bit_for_bit(followed, tmp_path):
    import orbax.checkpoint as ocp

    tracker, readings, states = followed
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "noise", states[0])
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "noise", tracker.init())
    update = jax.jit(tracker.update)
    seen = jax.tree.map(lambda leaf: leaf[0], readings)
    jax.tree.map(np.testing.assert_array_equal, restored, states[0])
    jax.tree.map(np.testing.assert_array_equal, update(restored, seen), update(states[0], seen))


def test_a_reading_is_evidence_for_suggest(followed):
    tracker, _, states = followed
    reading = tracker.reading(states[0])
    told = suggest(from_batch_size=4, from_lr=1e-3, to_batch_size=16, noise=reading)
    assert "40 readings of a training, B_simple" in told.rests_on[0]
    assert told.rises_to.value == reading.scales["b_simple"].value


def test_each_mistake_is_one_sentence():
    examples = draw(jax.random.key(1), 10)
    for match, call in (
        ("scales must be of", lambda: Tracker.of(PARAMS, ("b_simpl",))),
        ("half_life", lambda: Tracker.of(PARAMS, half_life=0.5)),
        ("multiple of 4 examples", lambda: observation.of_examples(linear, PARAMS, examples)),
        ("second_moment", lambda: observation.of_gradients(examples, 4, ("adam",))),
        ("even number", lambda: observation.of_gradients(draw(jax.random.key(1), 5), 4, ("sign",))),
        ("alone", lambda: Tracker.of(PARAMS).around(optax.MultiSteps(optax.sgd(1.0), 2), 4)),
    ):
        with pytest.raises(ValueError, match=match):
            call()
    fresh = Tracker.of(PARAMS)
    assert "0 readings are too few" in fresh.reading(fresh.init()).scales["sign"].why


def block(name):
    text = (ROOT / "docs" / "tracker.md").read_text()
    return dict(re.findall(r"```python (\S+)\n(.*?)```", text, re.DOTALL))[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flax", "equinox", "nnx"])
def test_the_documented_loops_run(name, tmp_path):
    if name == "equinox" and not importlib.util.find_spec("equinox"):
        pytest.skip("equinox is not installed: pip install -e '.[test]'")
    path = tmp_path / "loop.py"
    path.write_text(block(name))
    said = subprocess.run(
        [sys.executable, path],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    print(said)
    assert "Estimate(value=" in said and "why=''" in said


@pytest.mark.slow
def test_readings_of_a_real_training_are_the_offline_ones():
    """An MLP on MNIST-1D by Adam; offline over all examples, and smoothed as readings are."""
    task = mnist1d(examples=2_500, evaluation_examples=256)
    data = jax.tree.map(jnp.asarray, task.data)
    optimizer = optax.adam(2e-3)
    params = task.init(jax.random.key(0))
    state = optimizer.init(params)
    tracker = Tracker.of(params, ("b_simple",))
    noise = tracker.init()

    def rows(key, count):
        picked = jax.random.randint(key, (count,), 0, len(data["y"]))
        return jax.tree.map(lambda leaf: leaf[picked], data)

    @jax.jit
    def steps(params, state, keys):
        def one(carry, key):
            params, state = carry
            batch = rows(key, 64)

            def mean(params):
                return jax.vmap(task.loss, (None, 0))(params, batch).mean()

            updates, state = optimizer.update(jax.grad(mean)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(one, (params, state), keys)[0]

    @jax.jit
    def look(noise, params, key):
        return tracker.update(noise, tracker.from_examples(task.loss, params, rows(key, 128)))

    exact, inside, at_once = [], [], []
    offline = np.zeros(2)
    for index in range(60):
        params, state = steps(params, state, jax.random.split(jax.random.key(index), 20))
        noise = look(noise, params, jax.random.key(1_000 + index))
        moments = per_example_moments(task.loss, params, data)
        trace = sum(float(leaf.sum()) for leaf in jax.tree.leaves(moments.square)) / moments.n
        signal = sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(moments.mean))
        exact.append([float(trace), signal, index])
        found = tracker.reading(noise).scales["b_simple"]
        if not found.why:
            offline = smoothing.parts(smoothing.smoothed(np.array(exact), 10.0)).value
            inside.append(found.low <= offline[0] / offline[1] <= found.high)
            at_once.append(found.low <= trace / signal <= found.high)
    print(
        f"{len(inside)} readings: smoothed alike {np.mean(inside):.3f}, at the very step "
        f"{np.mean(at_once):.3f}; the last {found[:3]}, exact {offline[0] / offline[1]:.4g}"
    )
    assert len(inside) >= 50 and np.mean(inside) >= 0.95 and np.mean(at_once) >= 0.9


RANKS = """
import sys, torch, torch.distributed as dist
rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
model = torch.nn.Linear(20, 1, bias=False)
generator = torch.Generator().manual_seed(rank)
with open(f"{folder}/log{rank}.csv", "w") as log:
    log.write("small,big\\n")
    for _ in range(300):
        model.zero_grad()
        x = 0.3 + torch.randn(16, 20, generator=generator)  # the gradient of an example is x
        model(x).mean().backward()
        average_gradients(model, log)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_the_documented_torch_function_logs_the_exact_scale(tmp_path):
    """On two processes: tr Σ is 20, |μ|² is 20 · 0.09."""
    code = block("torch")
    assert len(code.strip().splitlines()) <= 15
    (tmp_path / "rank.py").write_text(code + RANKS)
    ranks = [
        subprocess.Popen([sys.executable, tmp_path / "rank.py", str(rank), tmp_path])
        for rank in range(2)
    ]
    assert [rank.wait(300) for rank in ranks] == [0, 0]
    found = logged(tmp_path / "log0.csv", 16, 32).b_simple
    print(found)
    assert found.low < 1 / 0.09 < found.high < 2 * found.low
