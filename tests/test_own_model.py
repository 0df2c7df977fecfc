"""A user's own model: what the page in docs/ shows runs as printed, and surge.measure knows the
known answers."""

import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from slowly import slow

import surge
from surge.optimizers import make_optimizer
from surge.optimizers.step import update
from surge.tasks import make_task
from surge.tasks.check import check_task
from surge.tasks.quadratic import problem, quadratic

ROOT = Path(__file__).parent.parent


@pytest.fixture
def page(tmp_path):
    """The page's blocks as files, and its notebook."""
    text = (ROOT / "docs" / "own_model.md").read_text()
    blocks = dict(re.findall(r"```python (\S+)\n(.*?)```", text, re.DOTALL))
    for name in ("my_task.py", "my_config.py", "my_lora.py", "my_optimizers.py"):
        (tmp_path / name).write_text(blocks[name])
    return tmp_path, blocks["notebook"]


@pytest.mark.slow
def test_the_documented_config_runs_from_the_command_line(page):
    directory, _ = page
    command = [sys.executable, "-m", "surge.main", "--config=my_config.py"]
    tiny = [
        "--config.max_steps=40",
        "--config.max_examples=2000",
        "--config.batch_sizes=(4,16)",
        "--config.evals=4",
    ]
    tiny += [
        "--config.measure.losses=()",
        "--config.measure.examples=64",
        "--config.measure.directions=8",
    ]
    tiny += ["--config.measure.horizons=(1,)", "--config.measure.branch_examples=20000"]
    environment = os.environ | {"PYTHONPATH": f"{directory}:{ROOT}"}
    subprocess.run(
        [*command, *tiny],
        cwd=directory,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in ("measure.nc", "fit.json", "report.html"):
        assert (directory / "runs" / "my_config" / name).exists()


def test_the_documented_notebook_runs(page, monkeypatch, capsys):
    directory, notebook = page
    monkeypatch.syspath_prepend(directory)
    monkeypatch.delitem(sys.modules, "my_task", raising=False)
    exec(notebook, {})
    lines = capsys.readouterr().out.splitlines()
    assert (
        re.match(r"noise scale \d", lines[0]) and "at batch size 64" in lines[2] and len(lines) == 3
    )


RECIPES = ("linen", "nnx", "equinox", "haiku", "sharded")


def recipes():
    """What the page's recipes bind, by their names; a table of x, y is what the others are of."""
    text = (ROOT / "docs" / "own_model.md").read_text()
    return dict(re.findall(r"```python recipe (\S+)\n(.*?)```", text, re.DOTALL))


@pytest.mark.parametrize("name", ["nnx", *slow(*(name for name in RECIPES if name != "nnx"))])
def test_each_recipe_measures_the_gradients_of_its_own_library(name):
    module = {"equinox": "equinox", "haiku": "haiku"}.get(name, "flax")
    pytest.importorskip(module, reason=f"{module} is not installed: pip install -e '.[test]'")
    names: dict[str, Any] = {}
    for part in ("table", name):
        exec(recipes()[part], names)
    found = surge.measure(names["loss"], names["params"], names["batches"])
    single = jax.vmap(jax.grad(names["loss"]), (None, 0))(names["params"], (names["x"], names["y"]))
    for measured, leaf in zip(*map(jax.tree.leaves, (found.moments.mean, single)), strict=True):
        np.testing.assert_allclose(measured, leaf.mean(0), rtol=1e-3, atol=1e-5)
    rows = np.concatenate([leaf.reshape(64, -1) for leaf in jax.tree.leaves(single)], axis=1)
    assert found.b_simple.numerator == pytest.approx(rows.var(0, ddof=1).sum(), rel=1e-3)
    if name == "sharded":
        leaves = zip(*map(jax.tree.leaves, (found.moments.mean, names["params"])), strict=True)
        assert all(moment.sharding == leaf.sharding for moment, leaf in leaves)


def test_the_recipes_are_those_that_are_tested():
    assert set(recipes()) == {"table", *RECIPES}


def test_a_stream_of_batches_has_the_noise_scale_of_all_of_them():
    text = (ROOT / "docs" / "own_model.md").read_text()
    [streaming] = re.findall(r"```python streaming\n(.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {"jax": jax}
    exec(recipes()["table"], names)

    def stream():
        draw = np.random.default_rng(1)
        for _ in range(40):
            x = draw.normal(size=(32, 8)).astype(np.float32)
            yield x, np.sin(x.sum(1))

    names["stream"] = stream
    exec(streaming, names)
    whole = surge.measure(names["loss"], names["params"], stream()).b_simple
    one = names["b_simple"]
    assert one.numerator == pytest.approx(whole.numerator, rel=0.02)
    assert one.low < whole.value < one.high and whole.low < one.value < whole.high


@pytest.fixture
def modules(page, monkeypatch):
    """The page's modules, importable by name."""
    directory, _ = page
    monkeypatch.syspath_prepend(directory)
    for name in ("my_task", "my_lora", "my_optimizers"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_the_documented_adapters_are_all_that_trains(modules):
    whole = make_task("my_task:task", examples=64)
    adapted = make_task("my_lora:task", rank=2)
    frozen = whole.init(jax.random.key(0))
    params = adapted.init(jax.random.key(1))
    check_task(adapted)
    assert jax.tree.map(jnp.shape, params) == {"down": (8, 2), "up": (2, 16)}
    example = jax.tree.map(lambda leaf: leaf[0], adapted.evaluation)
    assert adapted.loss(params, example) == whole.loss(frozen, example)

    params["up"] = 0.1 * jax.random.normal(jax.random.key(2), (2, 16))
    moved = frozen | {"in": frozen["in"] + params["down"] @ params["up"]}
    by_chain_rule = jax.grad(whole.loss)(moved, example)["in"]
    gradient = jax.grad(adapted.loss)(params, example)
    np.testing.assert_allclose(gradient["down"], by_chain_rule @ params["up"].T, rtol=1e-4)
    np.testing.assert_allclose(gradient["up"], params["down"].T @ by_chain_rule, rtol=1e-4)

    found = surge.measure(adapted.loss, params, [adapted.evaluation])
    assert jax.tree.map(jnp.shape, found.moments.mean) == jax.tree.map(jnp.shape, params)
    assert 0 < found.b_simple.low <= found.b_simple.value


PUBLISHED = {
    "my_optimizers:nadam(b2=0.99)": optax.nadam(0.01, b2=0.99),
    "my_optimizers:lamb": optax.lamb(0.01),
}


@pytest.mark.parametrize("spec", PUBLISHED)
def test_the_documented_optimizers_are_those_of_optax(modules, spec):
    made = make_optimizer(spec)
    ours, theirs = made(0.01, 8, 10), PUBLISHED[spec]
    here = there = {"a": jnp.ones((3, 2)), "b": jnp.full(2, 0.5)}
    states = [ours.init(here), theirs.init(there)]
    for step in range(4):
        draw = partial(jax.random.normal, jax.random.key(step))
        gradient = jax.tree.map(lambda leaf, draw=draw: draw(leaf.shape), here)
        updates, states[0] = update(ours, gradient, states[0], here)
        here = optax.apply_updates(here, updates)
        updates, states[1] = theirs.update(gradient, states[1], there)
        there = optax.apply_updates(there, updates)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), here, there)
    weights = made.weights(8)
    assert weights.sum() == pytest.approx(1) and weights[0] > weights[1]


@pytest.mark.slow
@pytest.mark.parametrize("spec", PUBLISHED)
def test_the_documented_optimizers_are_measured(modules, spec):
    asked = ASKED | {"optimizers": {"it": spec}}
    found = surge.measure(squared, WEIGHTS, [(ROWS, TARGETS)], **asked)
    assert (found.oracle["it"].lr > 0).all() and np.isfinite(found.measured["it"].lr).all()


def test_measure_finds_the_exact_answers_of_the_quadratic():
    known, task = problem(size=12, noise=4.0), quadratic(size=12, noise=4.0)
    params = task.init(jax.random.key(0))
    examples = jax.vmap(task.draw, (None, 0))(task.data, jax.random.split(jax.random.key(1), 2_000))
    batches = (examples[:300], examples[300:])
    found = surge.measure(
        task.loss, params, iter(batches), optimizers={"sgd": "sgd"}, batch_sizes=(4,), directions=64
    )
    truth = known.sigma @ known.sigma / (known.mu @ known.mu)
    assert found.b_simple.low < truth < found.b_simple.high and found.b_simple.n == 2_000
    assert found.sign.low < (known.sigma.sum() / np.abs(known.mu).sum()) ** 2 < found.sign.high
    assert found.validity[0.5][0] == pytest.approx(np.pi / 2 * 16, rel=0.2)
    np.testing.assert_allclose(found.moments.mean, known.mu, atol=5 * 4 / 2_000**0.5)
    trace = np.trace(known.hessian @ known.noise_root @ known.noise_root.T)
    signal = known.mu @ known.hessian @ known.mu
    law = found.measured["sgd"]
    assert law.low[0] < known.mu @ known.mu / (signal + trace / 4) < law.high[0]
    oracle = found.oracle["sgd"]
    assert oracle.low[0] < known.mu @ known.mu / (signal + trace / 4) < oracle.high[0]
    assert found.kappa["sgd"].peak_over_plateau.shape == (2, 3)
    assert found.closed_form.trace == pytest.approx(np.trace(known.hessian), rel=0.1)
    alone = surge.measure(task.loss, params, [examples])
    assert alone.b_simple == found.b_simple and alone.independent is None and not alone.oracle


def test_each_mistake_in_measure_is_one_sentence():
    def refused(match, loss, batches, **options):
        with pytest.raises(ValueError, match=match):
            surge.measure(loss, jnp.ones(2), batches, **options)

    def loss(params, example):
        return params @ example

    rows = np.ones((9, 2), np.float32)
    refused("hold 0 examples", loss, [])
    refused("hold 7 examples: surge.measure needs at least 8", loss, [rows[:7]])
    refused(
        r"must return a scalar, the loss of one example; it returns shape \(2,\)",
        jnp.multiply,
        [rows],
    )
    refused("share their leading axis", loss, [(rows, rows[:8])])
    refused("adamm", loss, [rows], optimizers={"a": "adamm"})
    with pytest.raises(AttributeError, match="no attribute 'mesure'"):
        surge.mesure  # noqa: B018


ROWS = np.random.default_rng(0).normal(size=(70, 6)).astype(np.float32)
TARGETS = np.sin(ROWS.sum(1))
WEIGHTS = {
    "a": np.random.default_rng(1).normal(size=(6, 8)).astype(np.float32) / 2,
    "b": np.random.default_rng(2).normal(size=8).astype(np.float32) / 2,
}
ASKED = {"optimizers": {"adam": "adam"}, "batch_sizes": (4, 16), "directions": 16}


def squared(params, example):
    """Of one example, in the dtype of the parameters."""
    x, y = example
    hidden = jnp.tanh(x.astype(params["a"].dtype) @ params["a"])
    return ((hidden @ params["b"]).astype(jnp.float32) - y) ** 2


@pytest.fixture(scope="module")
def plain():
    return surge.measure(squared, WEIGHTS, [(ROWS, TARGETS)], **ASKED)


def test_the_broken_example_is_named_and_every_reason_says_not_finite():
    rows = ROWS.copy()
    rows[37] = np.nan
    found = surge.measure(squared, WEIGHTS, [(rows, TARGETS)], **ASKED)
    assert found.b_simple.why == "the gradient of example 37 is not finite"
    reasons = [found.sign.why, found.kappa["adam"].why, *found.independent.why]
    reasons += [*found.measured["adam"].why, *found.oracle["adam"].why]
    assert all("not finite" in reason for reason in reasons)
    assert np.isnan(found.validity[0.5]).all() and np.isnan(found.closed_form.b_noise)
    norms = sum(jax.tree.leaves(found.moments.square_norms))
    np.testing.assert_array_equal(np.flatnonzero(~np.isfinite(norms)), [37])


def test_examples_that_are_all_alike_have_no_noise():
    alike = np.repeat(ROWS[:1], 24, 0), np.repeat(TARGETS[:1], 24)
    found = surge.measure(squared, WEIGHTS, [alike])
    assert found.b_simple.low == 0 <= found.b_simple.value <= found.b_simple.high < 1e-3
    assert 0 <= found.sign.low <= found.sign.value <= found.sign.high < 1e-3


@jax.custom_vjp
def gap(x, y):
    return (x - y) ** 2


gap.defvjp(lambda x, y: (gap(x, y), x - y), lambda diff, g: (2 * g * diff, None))


@pytest.mark.slow
def test_a_loss_with_a_gradient_of_its_own_is_measured_like_any_other(plain):
    def loss(params, example):
        return gap(jnp.tanh(example[0] @ params["a"]) @ params["b"], example[1])

    found = surge.measure(loss, WEIGHTS, [(ROWS, TARGETS)], **ASKED)
    np.testing.assert_allclose(found.b_simple[:3], plain.b_simple[:3], rtol=1e-4)
    np.testing.assert_allclose(found.oracle["adam"].lr, plain.oracle["adam"].lr, rtol=1e-3)
    np.testing.assert_allclose(found.independent.lr, plain.independent.lr, rtol=1e-3)


@pytest.mark.slow
def test_bfloat16_parameters_are_measured_as_their_values_in_float32(plain):
    narrow = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), WEIGHTS)
    found = surge.measure(squared, narrow, [(ROWS, TARGETS)], **ASKED)
    assert found.b_simple.value == pytest.approx(plain.b_simple.value, rel=0.03)
    for law in ("measured", "oracle"):
        rates = [getattr(one, law)["adam"].lr for one in (found, plain)]
        np.testing.assert_allclose(*rates, rtol=0.05)


def test_the_flag_for_float64_changes_nothing(plain):
    with jax.enable_x64(True):
        found = surge.measure(
            squared, jax.tree.map(jnp.asarray, WEIGHTS), [(ROWS, TARGETS)], **ASKED
        )
    np.testing.assert_allclose(found.b_simple[:3], plain.b_simple[:3], rtol=1e-4)
    # Draws differ: whole numbers are of 64 bits.
    np.testing.assert_allclose(found.measured["adam"].lr, plain.measured["adam"].lr, rtol=0.5)
    assert np.isfinite(found.oracle["adam"].lr).all()


@pytest.mark.parametrize("name", ["torch", "lists", "a loader", "dicts of both"])
def test_batches_as_people_have_them(name, plain):
    import torch

    x, y = torch.tensor(ROWS), torch.tensor(TARGETS)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=16)
    batches = {
        "torch": [(x, y)],
        "lists": [[ROWS[at : at + 16], TARGETS[at : at + 16]] for at in range(0, 70, 16)],
        "a loader": loader,
        "dicts of both": [{"x": x, "y": TARGETS, "mask": None}],
    }[name]
    loss = squared
    if name == "dicts of both":

        def loss(params, example):
            return squared(params, (example["x"], example["y"]))

    found = surge.measure(loss, WEIGHTS, batches)
    np.testing.assert_allclose(found.b_simple[:3], plain.b_simple[:3], rtol=1e-5)


@pytest.mark.parametrize("spec", ["lion", *slow("muon", "adafactor")])
def test_optimizers_of_matrices_and_of_factors_are_measured(spec):
    with_bias = WEIGHTS | {"c": np.zeros(8, np.float32)}

    def loss(params, example):
        hidden = jnp.tanh(example[0] @ params["a"] + params["c"])
        return (hidden @ params["b"] - example[1]) ** 2

    asked = ASKED | {"optimizers": {"it": spec}}
    found = surge.measure(loss, with_bias, [(ROWS, TARGETS)], **asked)
    assert (found.oracle["it"].lr > 0).all()
