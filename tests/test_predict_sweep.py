"""Predictions are written before the sweep, and are ratios of the rules' rates."""

import math
import runpy
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from surge.workdir import files

SCRIPT = runpy.run_path(str(Path(__file__).parent.parent / "scripts" / "predict_sweep.py"))
SIZES = [4, 16, 64]


def measured():
    """Two checkpoints; at the second ε_opt ∝ √B by the measured law, and B_simple is 16."""
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
    rules = SCRIPT["predictions"](measured(), 16)["adam"]
    assert all(
        math.isnan(ratios["16"]) or ratios["16"] == pytest.approx(1) for ratios in rules.values()
    )
    assert rules["sqrt"] == pytest.approx({"4": 0.5, "16": 1, "64": 2})
    assert rules["measured, K = 1"] == pytest.approx(rules["sqrt"])
    assert rules["branch, K = 1"] == pytest.approx(rules["sqrt"])
    assert rules["surge with B_simple"] == pytest.approx({"4": 0.8, "16": 1, "64": 0.8})
    assert math.isnan(rules["independent law"]["4"])


def test_a_sweep_without_predictions_is_not_predicted(tmp_path):
    (tmp_path / "sweep").mkdir()
    with pytest.raises(files.ResultError, match="no predictions"):
        SCRIPT["experiment"]((), tmp_path)
