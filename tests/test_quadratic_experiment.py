"""The whole pipeline on problems whose answer is known."""

import logging
import runpy
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erfinv

from surge import pipeline
from surge.tasks.quadratic import problem
from surge.theory import derivations
from surge.theory.second_order import Hessian
from surge.workdir import files

CONFIGS = Path(__file__).parent.parent / "configs"


def load(name, variant):
    return runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"](variant)


@pytest.mark.parametrize("variant", ["", pytest.param("diagonal", marks=pytest.mark.slow)])
def test_swept_optimum_agrees_with_the_exact_sign_law(variant, tmp_path, caplog):
    config = load("quadratic", variant)
    with caplog.at_level(logging.INFO):
        pipeline.run(config, tmp_path, ("measure", "sweep", "fit", "report"))
    known = problem(**config.task_args.to_dict())
    mu, sigma, matrix = (
        jnp.asarray(each, jnp.float32) for each in (known.mu, known.sigma, known.hessian)
    )
    exact = derivations.sign_descent(
        np.array(config.batch_sizes, float), mu, sigma, Hessian.dense(matrix)
    ).optimal_lr
    fits = {entry["optimizer"]: entry for entry in files.read_json(tmp_path / "fit.json")["fits"]}
    swept = [point["lr"] for point in fits["sign_sgd"]["optimal_lr"]]
    np.testing.assert_array_less(
        np.abs(np.log(np.array(swept) / exact)), np.log(config.learning_rate_ratio)
    )
    peak = fits["sign_sgd"]["b_peak"]
    page = (tmp_path / "report.html").read_text()
    if variant == "diagonal":
        assert peak["high"] is None and "sign_sgd: the best rate rises" in page
    else:
        r = known.hessian.trace() / (known.hessian.sum() - known.hessian.trace())
        truth = 2 * known.sigma[0] ** 2 * erfinv(np.sqrt(r)) ** 2
        assert peak["low"] <= truth <= peak["high"] and " and falls " in page
    assert fits["sgd"]["b_peak"]["high"] is None  # the control does not fall
