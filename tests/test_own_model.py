"""A user's own model: what the page in docs/ shows runs as printed, and surge.measure knows the
known answers."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import surge
from surge.tasks.quadratic import problem, quadratic

ROOT = Path(__file__).parent.parent


@pytest.fixture
def page(tmp_path):
    """The page's blocks as files, and its notebook."""
    text = (ROOT / "docs" / "own_model.md").read_text()
    blocks = dict(re.findall(r"```python (\S+)\n(.*?)```", text, re.DOTALL))
    for name in ("my_task.py", "my_config.py"):
        (tmp_path / name).write_text(blocks[name])
    return tmp_path, blocks["notebook"]


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
    assert found.closed_form.trace == pytest.approx(np.trace(known.hessian), rel=0.1)
    alone = surge.measure(task.loss, params, [examples])
    assert alone.b_simple == found.b_simple and alone.independent is None and alone.measured == {}


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
