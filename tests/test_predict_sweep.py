"""The judge of predictions, on sweeps and predictions with known answers."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from surge.workdir import files

SCRIPT = Path(__file__).parent.parent / "scripts" / "predict_sweep.py"
spec = importlib.util.spec_from_file_location("predict_sweep", SCRIPT)
predict_sweep = importlib.util.module_from_spec(spec)
spec.loader.exec_module(predict_sweep)
STORED = Path(__file__).parent.parent / "docs" / "results" / "predictions"
SIZES = [4, 16, 64]


def measured():
    """Two checkpoints; at the second, after the start, ε_opt ∝ √B by the measured law and B_simple
    is 16."""
    curve = np.sqrt(np.array(SIZES))
    law = np.stack([np.ones(3), curve])[:, None, :, None] * np.ones(3)
    dims = ("checkpoint", "optimizer", "batch_size", "bound")
    return xr.Dataset(
        {
            "measured_lr": (dims, law),
            "independent_lr": (dims, np.full_like(law, np.nan)),
            "branch_lr": ((*dims[:3], "horizon", "bound"), law[..., None, :]),
            "noise_scale": (("checkpoint", "scale", "bound"), np.full((2, 1, 3), 16.0)),
        },
        coords={
            "optimizer": ["adam"],
            "batch_size": SIZES,
            "bound": ["value", "low", "high"],
            "horizon": [1],
            "scale": ["b_simple"],
        },
    )


def test_predictions_are_ratios_to_the_base():
    rules = predict_sweep.predictions(measured(), 16)["adam"]
    assert all(
        math.isnan(ratios["16"]) or ratios["16"] == pytest.approx(1) for ratios in rules.values()
    )
    assert rules["sqrt"] == pytest.approx({"4": 0.5, "16": 1, "64": 2})
    assert rules["measured, K = 1"] == pytest.approx(rules["sqrt"])
    assert rules["surge with B_simple"] == pytest.approx({"4": 0.8, "16": 1, "64": 0.8})
    assert math.isnan(rules["independent law"]["4"])


def test_regret_is_read_off_the_sweep():
    rates = np.array([1.0, 2.0, 4.0, 8.0])
    rows = {
        "batch_size": np.full(4, 16),
        "learning_rate": rates,
        "value": np.log([30.0, 10.0, 20.0, np.nan]),
    }
    best = math.log(10.0)
    assert predict_sweep.regret(rows, 16, 2.0, best) == ("arrives", pytest.approx(0))
    assert predict_sweep.regret(rows, 16, 4.0, best) == ("arrives", pytest.approx(1))
    assert 0 < predict_sweep.regret(rows, 16, 3.0, best)[1] < 1
    assert predict_sweep.regret(rows, 16, 5.0, best)[0] == "fails"
    assert predict_sweep.regret(rows, 16, 9.0, best)[0] == "off the grid"


def test_loss_regret_is_read_off_the_losses_when_the_best_arrives():
    rates = [1.0, 4.0, 16.0]
    losses = xr.DataArray(
        [[2.0, 1.0, np.nan]],
        {"batch_size": [16], "learning_rate": rates},
        ["batch_size", "learning_rate"],
    )
    assert predict_sweep.loss_regret(losses, 16, 4.0, 1.0) == pytest.approx(0)
    assert predict_sweep.loss_regret(losses, 16, 2.0, 1.0) == pytest.approx(0.5)
    assert math.isnan(predict_sweep.loss_regret(losses, 16, 8.0, 1.0))


def test_a_sweep_without_predictions_is_not_predicted(tmp_path):
    (tmp_path / "sweep").mkdir()
    with pytest.raises(files.ResultError, match="no predictions"):
        predict_sweep.experiment((), tmp_path)


def test_summary_counts_answers_and_failures():
    row = {"experiment": "e", "optimizer": "adam", "batch_size": 4, "predicted": 1.0, "swept": 2.0}
    table = [
        row
        | {"rule": "a", "log_error": math.log(2), "outcome": "fails", "regret": None, "loss": 0.3},
        row
        | {
            "rule": "a",
            "log_error": -math.log(1.2),
            "outcome": "arrives",
            "regret": 0.5,
            "loss": 0.1,
        },
        row
        | {"rule": "a", "log_error": None, "outcome": "off the grid", "regret": None, "loss": None},
        row
        | {"rule": "b", "log_error": None, "outcome": "off the grid", "regret": None, "loss": None},
    ]
    lines = predict_sweep.summary(table)
    assert "| a | 2 of 3 | 1.60 | 2.00 | 50% | ∞ | 0.20 | 1 | 0 |" in lines
    assert any(line.startswith("| b | 0 of 1 | –") for line in lines)


def test_the_stored_page_says_what_the_stored_judgement_holds():
    page = (STORED / "README.md").read_text()
    for line in predict_sweep.found(files.read_json(STORED / "judgement.json")):
        assert line in page
