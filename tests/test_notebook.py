"""What a notebook shows of results: their own numbers, escaped, and nothing undefined unsaid."""

import html
import re

import jax
import jax.numpy as jnp
import pytest
from stored import SIZES, measurement, store_fits, store_sweep

import surge
from surge.report.formats import estimate, number
from surge.suggest import suggest
from surge.workdir import files


def told(shown):
    """What a reader reads, on one line."""
    body = re.sub("<style>.*?</style>|<svg.*?</svg>", " ", shown, flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub("<[^>]+>", " ", body)))


@pytest.fixture(scope="module")
def measured():
    key = jax.random.key(0)
    examples = {"x": jax.random.normal(key, (64, 3)), "y": jax.random.normal(key, (64,))}

    def loss(params, example):
        return (example["x"] @ params["w"] - example["y"]) ** 2

    params = {"w": jnp.ones(3)}
    named = {"<sgd>": "sgd", "sign": "sign_sgd"}
    options = {"optimizers": named, "batch_sizes": (4, 1024), "directions": 8}
    return surge.measure(loss, params, [examples], **options)


def test_a_measurement_shows_its_numbers(measured):
    said = told(measured._repr_html_())
    assert f"tr Σ/|μ|² {estimate(measured.b_simple[:3])}" in said and "from 64 examples" in said
    assert "<sgd>" not in measured._repr_html_() and "<sgd>" in said
    for label, rates in measured.oracle.items():
        assert estimate((rates.lr[1], rates.low[1], rates.high[1])) in said, label
        assert number(measured.kappa[label].kappa[1, 0]) in said
    assert "1,024" in said and not re.search(r"\b(nan|None|inf)\b", said)


def test_a_measurement_of_noise_alone_has_no_rates(measured):
    alone = measured._replace(oracle={}, measured={}, kappa={}, batch_sizes=())
    said = told(alone._repr_html_())
    assert "Noise scales" in said and "batch size" not in said


def test_a_suggestion_shows_its_answer():
    said = suggest(from_batch_size=256, from_lr=3e-4, to_batch_size=2048)
    shown = told(said._repr_html_())
    assert f"Batch size 256 → 2,048: learning rate {number(said.lr)} [" in shown
    assert said.paste in shown
    for name, rule in (("√B", "sqrt"), ("linear", "linear")):
        assert f"{name} {number(said.alternatives[rule].lr)}" in shown


def test_a_suggestion_without_an_answer_says_why():
    said = suggest(from_batch_size=1, from_lr=3e-4, to_batch_size=2**20)
    assert said.why and said.why in told(said._repr_html_())


def test_results_of_a_workdir_show_the_answer_of_the_page(tmp_path):
    store_sweep(tmp_path)
    store_fits(tmp_path)
    files.write_dataset(tmp_path / "measure.nc", measurement(losses=(3.0,)))
    shown = surge.results(tmp_path)._repr_html_()
    assert "adam: the best rate" in told(shown) and shown.count("<svg") == 1
    assert f"{SIZES[-1]}" in told(shown) and "<html" not in shown
