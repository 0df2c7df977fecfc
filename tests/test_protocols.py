"""Protocols as they are stored and judged: planted shapes, stored runs, commands that are whole."""

import sys

import numpy as np
import pandas as pd
import paper_runs
import protocol_page
import protocols
import pytest

from surge.theory.objective import FallAfter, LossAfter, StepsTo

SIZES = (4, 16, 64, 256, 1024)


def planted(rates, error=0.03):
    """Runs around planted optima, as a table that is stored."""
    rng = np.random.default_rng(0)
    parts = []
    for size, best in zip(SIZES, rates, strict=True):
        for power in range(-4, 5):
            rate = best * 2 ** (power / 2)
            for seed in range(10):
                value = 0.5 * np.log(rate / best) ** 2 + error * rng.normal()
                parts.append(("adam", size, rate, seed, value))
    return pd.DataFrame(parts, columns=[*protocols.CELL, "1.2/10/shared"])


def judged(tmp_path, rates):
    text = planted(rates).to_csv(index=False)
    protocols.write(tmp_path / "shared.csv.xz", text)
    protocols.judge(tmp_path)
    return protocols.read(tmp_path)


@pytest.mark.parametrize(
    ("rates", "shape", "verdict"),
    [
        ((1, 2, 4, 2, 1), protocols.PEAK, protocols.YES),
        ((1, 3, 9, 9, 9), protocols.PLATEAU, protocols.NO),
    ],
)
def test_a_planted_shape_is_found_and_stands(tmp_path, rates, shape, verdict):
    [found] = judged(tmp_path, rates)
    assert protocols.seen(found).shape == shape
    assert found["fragile"] is False
    assert (found["horizon"], found["crossing"], found["protocol"]) == (10, "shared", "shared")
    [(_, _, run, said)] = protocols.claims(tmp_path)
    assert run.endswith("adam") and said.verdict == verdict
    table = protocol_page.lines(tmp_path)
    assert len(table) == 3 and shape in table[2]
    protocol_page.draw(tmp_path)
    assert (tmp_path / "shared.svg").exists()


def test_how_far_a_peak_stands_above_the_last_has_an_interval(tmp_path):
    [found] = judged(tmp_path, (1, 2, 4, 2, 1))
    _, low, high = protocols.seen(found).fall
    assert low < 4 < high and high / low < 1.6
    assert protocols.seen(found).top == 64


def test_the_same_runs_are_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        protocols.write(tmp_path / name, "a,b\n1,2\n")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_columns_tell_curves_apart():
    curves = (StepsTo(1.2), FallAfter(1.2, 10), FallAfter(1.2, 10, "mean"), LossAfter(1.2, 10))
    names = [protocols.column(each) for each in curves]
    assert names == ["1.2", "1.2/10/first", "1.2/10/mean", "1.2/10/shared"]


def test_every_run_is_one_command(pytestconfig):
    for name, (config, _) in paper_runs.RUNS.items():
        assert (pytestconfig.rootpath / config.partition(":")[0]).exists()
        program = paper_runs.command(name, "full", 0.05, "")
        assert any(part.startswith(f"--workdir=runs/{name}") for part in program)


def test_a_slice_ends_in_time_and_says_how_it_ended():
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    assert paper_runs.run_slice(sleep, 0.5) == paper_runs.KILLED
    assert paper_runs.run_slice([sys.executable, "-c", ""], 60) == paper_runs.DONE
    assert paper_runs.run_slice([sys.executable, "-c", "raise SystemExit(7)"], None) == 7
