"""The judge of the one-step table, on ratios with known answers."""

import json
import math
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import xarray as xr

SCRIPT = Path(__file__).parent.parent / "scripts" / "check_one_step.py"
check_one_step = SimpleNamespace(**runpy.run_path(str(SCRIPT)))


def measured():
    """Two checkpoints of one optimizer at B = 4, 8 and 16, with a miss and an undefined ratio after
    the start."""
    truth = np.ones((2, 1, 3, 3))
    law = np.array([[1.0, 1.1, 0.5], [9.0, 1.4, math.nan]])[:, None, :, None] * [1.0, 0.9, 1.2]
    dims = ("checkpoint", "optimizer", "batch_size", "bound")
    config = {"optimizers": {"adam": {"spec": "adam(b1=0.9)"}}}
    return xr.Dataset(
        {
            "measured_lr": (dims, law),
            "oracle_lr": (dims, truth),
            "step": ("checkpoint", [0, 7]),
            "loss": ("checkpoint", [2.0, 1.0]),
        },
        {"optimizer": ["adam"], "batch_size": [4, 8, 16], "bound": ["value", "low", "high"]},
        {"config": json.dumps(config)},
    )


def test_every_miss_and_undefined_ratio_from_eight_on_is_named():
    later = check_one_step.misses("e", measured(), start=False)
    assert [where for where, _ in later] == ["e, step 7, adam, B = 8", "e, step 7, adam, B = 16"]
    sentence, *rest = check_one_step.judged("After the start", later)
    assert "1 of 2 ratios defined, median factor off 1.400, 0 within 1.3" in sentence
    assert (
        "- e, step 7, adam, B = 8: 1.40" in rest and "- e, step 7, adam, B = 16: undefined" in rest
    )
    start = check_one_step.judged(
        "At initialisation", check_one_step.misses("e", measured(), start=True)
    )
    assert "2 of 2 ratios defined" in start[0] and "- e, step 0, adam, B = 16: 2.00" in start


def test_the_table_shows_every_ratio_with_its_interval():
    lines = check_one_step.table("e", measured())
    assert "| 0 | 2 | adam | 1.00 [0.9, 1.2] | 1.10 [0.99, 1.3] | 0.50 [0.45, 0.6] |" in lines
    assert "| 7 | 1 | adam | 9.00 [8.1, 11] | 1.40 [1.3, 1.7] | – |" in lines
