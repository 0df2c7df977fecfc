"""The judge of predictions, on planted runs and on what is committed."""

import math
import runpy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from surge.workdir import files

ROOT = Path(__file__).parent.parent
JUDGE = runpy.run_path(str(ROOT / "scripts" / "judge_predictions.py"))
STORED = ROOT / "docs" / "results" / "predictions"
SIZES = (4, 16, 64, 256)
BASE = 16
B_SIMPLE = 64.0


def write_experiment(results, exponent):
    """A sweep of Adam whose optimum is planted as B^exponent, and what a checkpoint foretold."""
    rng = np.random.default_rng(0)
    rows = []
    for size in SIZES:
        optimum = 1e-3 * (size / BASE) ** exponent
        for power in range(-4, 5):
            rate = optimum * 2 ** (power / 2)
            for seed in range(4):
                log_steps = math.log(1000 * (1 + 100 / size)) + 0.5 * math.log(rate / optimum) ** 2
                steps = math.exp(log_steps + 0.02 * rng.standard_normal())
                rows.append(("adam", size, rate, seed, steps))
    columns = ["optimizer", "batch_size", "learning_rate", "seed", "steps_1.5"]
    pd.DataFrame(rows, columns=columns).to_csv(results / "planted-runs.csv", index=False)
    curves = {"constant": 0.0, "sqrt": 0.5, "saturating with B_simple": 0.3}
    curves |= {"independent law": 0.5, "measured, K = 1": 0.5, "surge with B_simple": 0.25}
    ratios = {
        rule: {str(size): (size / BASE) ** power for size in SIZES}
        for rule, power in curves.items()
    }
    stored = {
        "base": BASE,
        "b_simple": B_SIMPLE,
        "config": {"fit": {"target_losses": [1.5]}},
        "ratios": {"adam": ratios},
    }
    files.write_json(results / "planted-predictions.json", stored)


def test_the_rule_that_is_right_reads_no_more_than_a_perfect_one(tmp_path):
    write_experiment(tmp_path, 0.5)
    page = JUDGE["write"](tmp_path)
    table = files.read_json(tmp_path / "judgement.json")
    right = JUDGE["answered"](table, "sqrt")
    wrong = JUDGE["answered"](table, "constant")
    assert {row["batch_size"] for row in right} == {4, 64, 256}
    perfect, share = JUDGE["perfect"](right)
    assert np.median(JUDGE["factors"](right)) < perfect * 1.05 < 1.1 and share > 0.99
    np.testing.assert_allclose(sorted(JUDGE["factors"](wrong)), [2, 2, 4], rtol=0.1)
    assert max(JUDGE["extra_steps"](right)) < 0.05 < max(JUDGE["extra_steps"](wrong))
    assert any(line.startswith("| *a perfect rule* |") for line in page)
    assert any("surge, then flat ¹" in line for line in page)


def almost(value):
    if value is None or isinstance(value, str):
        return value
    return pytest.approx(value, rel=1e-3, abs=1e-4)


def test_regret_is_read_off_the_runs():
    rows = {
        "batch_size": np.full(4, 16),
        "learning_rate": np.array([1.0, 2.0, 4.0, 8.0]),
        "value": np.log([30.0, 10.0, 20.0, np.nan]),
    }
    assert JUDGE["regret"](rows, 16, 2.0) == ("arrives", pytest.approx(math.log(10)))
    assert JUDGE["regret"](rows, 16, 4.0) == ("arrives", pytest.approx(math.log(20)))
    assert math.log(10) < JUDGE["regret"](rows, 16, 3.0)[1] < math.log(20)
    assert JUDGE["regret"](rows, 16, 5.0)[0] == "fails"
    assert JUDGE["regret"](rows, 16, 9.0)[0] == "off the grid"


def test_what_is_committed_says_what_the_committed_runs_say(tmp_path):
    for path in [*STORED.glob("*-predictions.json"), *STORED.glob("*-runs.csv")]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    JUDGE["write"](tmp_path)
    anew = files.read_json(tmp_path / "judgement.json")
    stored = files.read_json(STORED / "judgement.json")
    for row, kept in zip(anew, stored, strict=True):
        assert row.keys() == kept.keys()
        for name, value in row.items():
            assert value == almost(kept[name])
    page = (STORED / "README.md").read_text()
    assert all(line in page for line in JUDGE["found"](stored))
