"""The judge of the paper's claims: known answers, and the committed page is what the committed
results say."""

import math
import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr

from surge.report import verdicts
from surge.report.reading import plain
from surge.workdir import files

ROOT = Path(__file__).parent.parent
paper = SimpleNamespace(**runpy.run_path(str(ROOT / "scripts" / "reproduce_paper.py")))


def entry(power, error=0.05, sizes=(1, 2, 4, 8, 12), **more):
    optima = [
        {
            "batch_size": b,
            "lr": b**power,
            "low": b**power / (1 + error),
            "high": b**power * (1 + error),
            "at_edge": False,
        }
        for b in sizes
    ]
    return {"target_loss": 1.0, "optimal_lr": optima, "laws": {}, "noise_scale": {}} | more


def test_a_power_of_the_batch_size_is_judged_by_its_interval():
    falls = paper.moves(1, 12, -math.inf, 0)
    for power, error, verdict in (
        (-0.5, 0.05, paper.YES),
        (0.5, 0.05, paper.NO),
        (-0.05, 1.0, paper.OPEN),
    ):
        assert falls([entry(power, error)]).verdict == verdict
    assert paper.exponent(entry(-0.5), 1, 12)[0] == pytest.approx(-0.5)
    flat = paper.moves(1, 12, -0.25, 0.25)
    for power, error, verdict in (
        (0.1, 0.02, paper.YES),
        (0.5, 0.02, paper.NO),
        (0.2, 0.5, paper.OPEN),
    ):
        assert flat([entry(power, error)]).verdict == verdict
    edges = entry(-0.5)
    for point in edges["optimal_lr"][2:]:
        point["at_edge"] = True
    assert falls([edges]) == (paper.OPEN, "2 optima inside the grid")


def test_laws_are_judged_by_what_the_data_rule_out():
    def laws(monotone, peaked, alpha=(0.4, 0.7), high=100.0):
        peak = {"value": 10.0, "high": high, "why": "no significant fall"}
        rising = {"params": {"alpha": 0.5}, "intervals": {"alpha": alpha}, "aic": monotone}
        return [
            entry(
                0,
                laws={
                    "mccandlish": rising,
                    "surge": {"params": {}, "intervals": {}, "aic": peaked},
                },
                b_peak=peak,
            )
        ]

    assert paper.surges(laws(30, 20)).verdict == paper.YES
    assert paper.surges(laws(30, 20, high=None)).verdict == paper.OPEN
    assert paper.surges(laws(20, 30)).verdict == paper.NO
    assert paper.surges(laws(22, 20)).verdict == paper.OPEN
    assert paper.surges(laws(None, 20)).verdict == paper.OPEN
    assert paper.half_power_suits(laws(22, 20)).verdict == paper.YES
    assert paper.half_power_suits(laws(22, 20, (0.1, None))).verdict == paper.OPEN
    assert paper.half_power_suits(laws(20, 20, (0.6, 0.9))).verdict == paper.NO
    assert paper.half_power_suits(laws(20, 20, (0.1, 1.5))).verdict == paper.OPEN


def test_noise_scales_move_right_only_with_disjoint_intervals():
    def scale(value, low, high):
        return entry(0, noise_scale={"b_noise": value, "low": low, "high": high})

    early, late = scale(10, 8, 12), scale(30, 20, 40)
    assert paper.moves_right([early, late]).verdict == paper.YES
    assert paper.moves_right([late, early]).verdict == paper.NO
    assert paper.moves_right([early, scale(11, 9, 13)]).verdict == paper.OPEN
    assert paper.moves_right([early, scale(30, 20, None)]).verdict == paper.OPEN


def test_peaks_move_right_only_with_disjoint_intervals():
    def peak(value, low, high):
        return entry(
            0,
            b_peak={
                "value": value,
                "low": low,
                "high": high,
                "why": "no significant fall; and so on",
            },
        )

    early, late = peak(10, 8, 12), peak(30, 20, 40)
    assert paper.peak_moves_right([early, late]).verdict == paper.YES
    assert paper.peak_moves_right([late, early]).verdict == paper.NO
    assert paper.peak_moves_right([early, peak(11, 9, 13)]).verdict == paper.OPEN
    unseen = paper.peak_moves_right([early, peak(None, 20, None)])
    assert unseen.verdict == paper.YES and unseen.evidence.endswith("no significant fall, above 20")


def test_validity_is_judged_at_the_last_checkpoint():
    def measured(low, high):
        bounds = np.array([[low, low, high]] * 3)
        return xr.Dataset(
            {
                "loss": ("checkpoint", [2.0, 1.0]),
                "validity": (("checkpoint", "quantile", "bound"), np.stack([bounds * 1e6, bounds])),
            },
            {"quantile": [0.25, 0.5, 0.75], "bound": ["value", "low", "high"]},
        )

    claim = paper.validity_near(800, 2)
    assert claim(measured(700, 900)).verdict == paper.YES
    assert claim(measured(7000, 9000)).verdict == paper.NO
    assert claim(measured(700, 9000)).verdict == paper.OPEN
    assert claim(measured(700, math.inf)).verdict == paper.OPEN


def test_the_committed_page_is_what_the_committed_results_say():
    root = ROOT / "docs" / "results"
    assert (root / "README.md").read_text() == paper.table(root)
    assert sum(path.stat().st_size for path in root.rglob("*") if path.is_file()) < 600_000


def test_stored_runs_are_judged_anew_without_training(tmp_path):
    steps = "optimizer,target_loss,batch_size,learning_rate,seed,steps\n"
    for size in (4, 16, 64, 256):
        for power in range(-6, 3):
            for seed in range(3):
                far = power - np.log2(size) / 4
                value = "nan" if power == 2 else f"{100 * math.exp(0.1 * far**2) + seed:.5g}"
                steps += f"adam,1.5,{size},{2.0**power:.6g},{seed},{value}\n"
    paper.protocols.write(tmp_path / paper.STEPS, steps)
    paper.judge_anew(tmp_path)
    (found,) = paper.files.read_json(tmp_path / "fit.json")["fits"]
    assert (found["optimizer"], found["target_loss"], found["judged_by"]) == ("adam", 1.5, "steps")
    assert [point["batch_size"] for point in found["optimal_lr"]] == [4, 16, 64, 256]
    assert found["optimal_lr"][1]["lr"] == pytest.approx(2.0, rel=0.1)
    assert found["p_fall"] > 0.05


def test_the_committed_fits_are_those_of_the_committed_steps(tmp_path):
    """What is judged is what today's fits say, and not those of an earlier version."""
    stored = ROOT / "docs" / "results" / "moe"
    shutil.copy(stored / paper.STEPS, tmp_path)
    paper.judge_anew(tmp_path)
    for old, new in zip(
        paper.files.read_json(stored / "fit.json")["fits"],
        paper.files.read_json(tmp_path / "fit.json")["fits"],
        strict=True,
    ):
        assert old["best_law"] == new["best_law"]
        for before, now in zip(old["optimal_lr"], new["optimal_lr"], strict=True):
            assert now["lr"] == pytest.approx(before["lr"], rel=0.02)


def test_the_face_says_what_its_fit_holds(pytestconfig):
    """The README's picture and its caption are of the stored fit."""
    root = pytestconfig.rootpath
    fits = files.read_json(root / "docs" / "results" / "predictions" / "mnist1d-fit.json")["fits"]
    [entry] = [fit for fit in fits if fit["optimizer"] == "adam"]
    caption = " ".join((root / "README.md").read_text().split())
    said = verdicts.answer(entry).partition(";")[0]
    assert said.removeprefix("the best rate ") in caption
    picture = (root / "docs" / "mnist1d-adam.svg").read_text()
    assert all(f">{plain(law)}<" in picture for law in entry["remaining"])
