"""The answer at another batch size: right where it was planted, wide or refused where it is not."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import surge
from surge import evidence as evidences
from surge.evidence import Bound, Evidence, steepness
from surge.hyperparameters import hyperparameters
from surge.optimizers.spec import parse
from surge.suggest import lines, plain, suggest
from surge.suggestion import suggestion
from surge.theory.rules import Known
from surge.workdir.files import ResultError, write_json

MOVE: dict[str, Any] = {"from_batch_size": 256, "from_lr": 3e-4, "to_batch_size": 2048}
SIZES = 2.0 ** np.arange(4, 11)
RATES = 2.0 ** (np.arange(-26, -4) / 2)


def capped(size):
    """√B up to 128, then flat."""
    return 0.001 * np.sqrt(np.minimum(size, 128))


def planted(seed=0, noise=0.05, sizes=SIZES, optimum=capped):
    """Steps to a target: B_noise 100, and a basin of 0.5 in log steps for each squared e-fold."""
    rng = np.random.default_rng(seed)
    rows = [
        (size, rate, number, 1000 * (1 + 100 / size) * math.exp(0.5 * distance**2 + noise * draw))
        for size in sizes
        for rate in RATES
        if abs(distance := math.log(rate / optimum(size))) < 2
        for number, draw in enumerate(rng.normal(size=3))
    ]
    return pd.DataFrame(rows, columns=["batch_size", "learning_rate", "seed", "steps"])


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    path = tmp_path_factory.mktemp("table") / "runs.csv"
    planted().to_csv(path, index=False)
    return suggest(
        table=path, from_batch_size=32, from_lr=0.004, to_batch_size=1024, optimizer="adam"
    )


def test_a_sweep_gives_the_planted_ratio_with_its_interval(told):
    truth = 0.004 * capped(1024) / capped(32)
    assert told.low < truth < told.high and told.lr == pytest.approx(truth, rel=0.15)
    assert told.high / told.low < 1.6 and not told.why
    assert "runs.csv" in told.rests_on[0] and "steps to the target" in told.rests_on[0]


def test_what_other_rules_cost_is_read_off_the_sweep(told):
    """√ is off by log √8 at 1,024, linear by log 16: half their squares are log steps."""
    for name, off in (("sqrt", math.sqrt(8)), ("constant", 0.5), ("linear", 16)):
        rule = told.alternatives[name]
        assert math.log1p(rule.cost) == pytest.approx(0.5 * math.log(off) ** 2, rel=0.25)
        assert rule.low <= rule.cost <= rule.high
    assert told.unit == "steps" and told.alternatives["sqrt"].lr == pytest.approx(0.004 * 32**0.5)


def test_where_more_batch_no_longer_pays(told):
    assert told.overhead.low < 20 < told.overhead.high  # 20% of the planted B_noise of 100
    assert told.rises_to.low <= 128


def test_planted_ratios_are_inside_in_nine_of_ten(tmp_path):
    inside = 0
    for seed in range(10):
        path = tmp_path / f"{seed}.csv"
        planted(seed, noise=0.1, sizes=SIZES[:5]).to_csv(path, index=False)
        said = suggest(table=path, from_batch_size=32, from_lr=1.0, to_batch_size=256)
        inside += said.low <= capped(256) / capped(32) <= said.high
    assert inside >= 9


def test_columns_of_a_table_are_named_where_their_names_say_nothing(tmp_path, told):
    path = tmp_path / "runs.csv"
    planted().rename(columns={"steps": "to 1.2"}).to_csv(path, index=False)
    move = {"from_batch_size": 32, "from_lr": 0.004, "to_batch_size": 1024, "optimizer": "adam"}
    with pytest.raises(ResultError, match="give --loss, --steps or --tokens"):
        suggest(table=path, **move)
    assert suggest(table=path, **move, columns={"steps": "to 1.2"}).lr == told.lr


def test_warnings_outside_the_sweep_and_for_another_rate(tmp_path):
    path = tmp_path / "runs.csv"
    planted().to_csv(path, index=False)
    said = suggest(
        table=path, from_batch_size=32, from_lr=0.1, to_batch_size=8192, optimizer="lion"
    )
    warned = " ".join(said.warnings)
    assert "to batch size 8192 lies outside the sweep, 16 to 1024" in warned
    assert re.search(
        r"the sweep's own optimum at B = 32 is 0.00\d+, and 0.1 is 1[78] times", warned
    )
    inside = suggest(table=path, from_batch_size=32, from_lr=0.00566, to_batch_size=512)
    assert inside.warnings == [] or "paired" in inside.warnings[0]


def test_three_times_the_devices_is_not_three_times_the_rate():
    """Adam, a rate tripled with the batch: the interval excludes it, and says what it costs."""
    said = suggest(from_batch_size=64, from_lr=1e-4, to_batch_size=192, optimizer="adam")
    assert said.high < 3e-4 and said.low < 1e-4 * 3**0.5 < said.high
    assert said.alternatives["linear"].cost > said.alternatives["sqrt"].cost
    assert "no sweep and no checkpoint" in said.rests_on[0]


def test_a_smaller_batch():
    said = suggest(from_batch_size=16, from_lr=1e-4, to_batch_size=4, optimizer="adamw")
    assert 0.25e-4 < said.lr < 1e-4 and said.low < 0.5e-4 < said.high


def test_warmup_is_held_in_examples_and_weight_decay_follows_the_horizon():
    spec = "adamw(warmup_steps=4000, weight_decay=0.1)"
    said = suggest(
        from_batch_size=2048, from_lr=1e-3, to_batch_size=1024, optimizer=spec, horizon_ratio=2.0
    )
    moved = said.co_scaled["timescale"]
    assert isinstance(moved, dict)
    assert moved["warmup_steps"] == 8000
    timescale = 0.5 / (said.lr / 1e-3 * moved["weight_decay"] / 0.1 * 2.0)
    assert timescale == pytest.approx(1)
    assert "warmup_steps=8000" in said.paste and f"learning_rate={said.lr:.6g}" in said.paste


@pytest.mark.parametrize("missing", MOVE)
def test_without_one_of_three_numbers_it_is_refused(missing):
    with pytest.raises(ValueError, match=f"give {missing}"):
        suggest(**(MOVE | {missing: None}))
    with pytest.raises(ValueError, match=f"{missing} must be a finite number above 0"):
        suggest(**(MOVE | {missing: 0}))


def test_a_rule_that_has_ended_says_where_and_offers_another():
    said = suggest(
        from_batch_size=32, from_lr=1e-4, to_batch_size=32 * 81, optimizer="adam(b1=0, b2=0.9875)"
    )
    assert "ends at 80 for b2 = 0.9875" in said.co_scaled["sde"]
    moved = said.co_scaled["half_life"]
    assert isinstance(moved, dict) and moved["b2"] == pytest.approx(0.361, abs=1e-3)
    assert any("the SDE rule ends at 80 times" in line for line in lines(said))
    assert any("not 81" in warning for warning in said.warnings)


def test_an_optimizer_that_was_never_judged_is_told_less_and_says_so():
    known = suggest(**MOVE, optimizer="adam")
    said = suggest(**MOVE, optimizer="muon")
    assert said.high / said.low > known.high / known.low
    assert any("no rule was judged for this optimizer" in each for each in said.warnings)


def test_where_it_cannot_tell_it_says_what_would():
    said = suggest(from_batch_size=16, from_lr=1e-3, to_batch_size=16384, optimizer="adam")
    assert said.why.startswith("cannot tell") and "--stages=measure" in said.why
    low, middle, high = said.trials
    assert said.low < low < middle < high < said.high and middle == pytest.approx(said.lr)


def measured(b_simple):
    """A measurement of one checkpoint after the start."""
    bounds = np.array([b_simple, b_simple / 1.2, b_simple * 1.2])
    sizes = [4, 16, 64, 256]
    law = np.ones((2, 1, 4, 3))
    dims = ("checkpoint", "optimizer", "batch_size", "bound")
    return xr.Dataset(
        {
            "loss": ("checkpoint", [2.0, 1.0]),
            "noise_scale": (
                ("checkpoint", "scale", "bound"),
                np.stack([bounds / 9, bounds])[:, None],
            ),
            "independent_lr": (dims, law * np.nan),
            "measured_lr": (dims, law),
        },
        {
            "optimizer": ["adam"],
            "batch_size": sizes,
            "scale": ["b_simple"],
            "bound": ["value", "low", "high"],
        },
    )


def test_a_checkpoint_gives_its_noise_scale_and_the_noise_gain_of_the_optimizer():
    known = evidences.of_checkpoint(measured(500.0), "adam", "adam(b1=0.8)", "adamw")
    assert known.kind == "adam"
    assert known[1:4] == pytest.approx((500, 500 / 1.2, 600), rel=1e-6)
    assert known.noise_gain == pytest.approx((1 - 0.8) / (1 + 0.8), rel=1e-2)


def test_a_checkpoint_narrows_and_two_kinds_of_evidence_are_combined(tmp_path):
    path = tmp_path / "runs.csv"
    planted(noise=0.4, sizes=SIZES[:4]).to_csv(path, index=False)
    move = {"from_batch_size": 32, "from_lr": 1.0, "to_batch_size": 1024, "optimizer": "adam"}
    alone = suggest(**move)
    known = evidences.of_checkpoint(measured(500.0), "adam", "adam", "adam")
    checkpoint = suggestion(Evidence(None, known, "a checkpoint", []), **move)
    assert checkpoint.high / checkpoint.low < alone.high / alone.low
    swept = evidences.of_table(path, "adam").swept
    both = suggestion(Evidence(swept, known, "a checkpoint", []), **move)
    only = suggestion(Evidence(swept, Known("adam"), "", []), **move)
    assert both.high / both.low < min(each.high / each.low for each in (only, checkpoint))
    assert len(both.rests_on) == 3 and "surge with B_simple" in both.parts


def entry(**changes):
    point = {"batch_size": 16, "lr": 0.01, "error": 0.1, "bound": 0}
    points = [
        point,
        point | {"batch_size": 64, "lr": 0.02},
        point | {"batch_size": 256, "lr": 0.03},
    ]
    nothing = dict.fromkeys(("b_noise", "value", "low", "high"), None) | {"why": "not seen"}
    return {
        "optimizer": "adam",
        "target_loss": 1.2,
        "judged_by": "steps",
        "optimal_lr": points,
        "noise_scale": nothing,
        "laws": {},
        "best_law": None,
        "b_peak": nothing,
    } | changes


def test_a_workdir_answers_for_its_optimizer_alone(tmp_path):
    fits = [entry(), entry(optimizer="lion")]
    write_json(tmp_path / "fit.json", {"fits": fits})
    write_json(tmp_path / "config.json", {"optimizers": {"adam": {"spec": "adam(b1=0.8)"}}})
    said = suggest(**MOVE, optimizer="adam", workdir=tmp_path)
    assert "adam(b1=0.8), constant rate" in said.rests_on[0] and said.lr > 0
    with pytest.raises(
        ResultError, match="muon is not one of adam, lion: give one of them as --label"
    ):
        suggest(**MOVE, optimizer="muon", workdir=tmp_path)
    lion = suggest(**MOVE, optimizer="muon", label="lion", workdir=tmp_path)
    assert "lion" in lion.rests_on[0] and not any("evidence is" in one for one in lion.warnings)
    write_json(tmp_path / "fit.json", {"fits": fits[:1]})
    said = suggest(**MOVE, optimizer="muon", workdir=tmp_path)
    assert "the evidence is of adam, and it is muon that was asked for" in said.warnings


def test_a_workdir_without_evidence_is_refused(tmp_path):
    with pytest.raises(ResultError, match="does not exist"):
        suggest(**MOVE, workdir=tmp_path / "none")
    with pytest.raises(ResultError, match="holds no fit and no measurement"):
        suggest(**MOVE, workdir=tmp_path)
    old = entry(optimal_lr=[{"batch_size": 16, "lr": 0.01, "at_edge": False}])
    write_json(tmp_path / "fit.json", {"fits": [old]})
    with pytest.raises(ResultError, match="of an older version"):
        suggest(**MOVE, optimizer="adam", workdir=tmp_path)
    with pytest.raises(ValueError, match="workdir or table, not both"):
        suggest(**MOVE, workdir=tmp_path, table=tmp_path / "runs.csv")


def test_steepness_is_that_of_a_plain_loop():
    table = planted(noise=0.0)
    rows = {
        "batch_size": table["batch_size"].to_numpy(),
        "learning_rate": table["learning_rate"].to_numpy(),
        "value": np.log(table["steps"].to_numpy()),
    }
    rows["value"][rows["learning_rate"] > 0.05] = np.inf
    optima = {size: float(capped(size)) for size in SIZES}
    below, above, failed, tried = steepness(rows, optima)
    assert below == pytest.approx(0.5, rel=0.1) and above == pytest.approx(0.5, rel=0.1)
    high = [
        rate
        for size, rate in zip(rows["batch_size"], rows["learning_rate"], strict=True)
        if rate > 2 * optima[size]
    ]
    assert tried == len(high) and failed == sum(rate > 0.05 for rate in high)
    nothing = {name: np.zeros(0) for name in rows}
    assert np.isnan(steepness(nothing, optima)[:2]).all()


def test_hyperparameters_are_those_of_the_spec_and_its_defaults():
    found = hyperparameters(parse("adamw(b2=0.95, weight_decay=0.1, decay_mask=True)"))
    assert found["b1"] == 0.9 and found["b2"] == 0.95 and found["weight_decay"] == 0.1
    assert "decay_mask" not in found
    assert hyperparameters(parse("adamw"))["weight_decay"] == 1e-4  # optax's own default
    assert "weight_decay" not in hyperparameters(parse("adam"))


def test_a_resumed_run_is_told_what_becomes_of_its_second_moment():
    """E G² = |μ|² + tr Σ/B: at B_simple = 256 it is 2 |μ|² at B = 256 and 3 |μ|² at 128."""
    known = Known("adam", 256.0, 200.0, 320.0)
    move = MOVE | {"to_batch_size": 128, "optimizer": "adam(b2=0.99)"}
    said = suggestion(Evidence(None, known, "a checkpoint", []), **move)
    assert "second moment by 1.5, or let it settle for some 100 steps" in said.resumed
    assert said.resumed in lines(said)
    assert suggest(**MOVE).resumed == ""


def test_the_answer_comes_first_and_one_line_to_paste_last():
    said = suggest(**MOVE, optimizer="adamw(weight_decay=0.1)")
    text = lines(said)
    order = ["batch size 256, rate 0.0003  ->  batch size 2048", "rests on", "√B would give"]
    order += ["linear would give", "constant would give", "decay rates by half-life"]
    order += ["more batch costs", "the rate does not rise", "rates to try", "adamw: learning_rate="]
    places = [next(i for i, line in enumerate(text) if line.startswith(each)) for each in order]
    assert places == sorted(places) and places[0] == 0 and places[-1] == len(text) - 1
    assert "[" in text[0] and "95%" in text[0]


def test_the_readme_shows_what_it_prints():
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    block = readme[readme.index("-m surge.suggest") :].split("\n\n")[1]
    printed = lines(suggest(**MOVE, optimizer="adamw"))
    assert all(line.strip() in printed for line in block.splitlines())
    assert block.splitlines()[0].strip() == printed[0]


def test_it_is_called_from_python_by_the_packages_own_name():
    package: Any = surge
    assert package.suggest(**MOVE).lr == suggest(**MOVE).lr
    assert package.suggest.Suggestion is type(suggest(**MOVE))


def test_json_has_the_same_content():
    said = suggest(**MOVE)
    stored = json.loads(json.dumps(plain(said), allow_nan=False))
    assert stored["lr"] == said.lr and stored["overhead"]["value"] is None
    assert stored["alternatives"]["sqrt"]["lr"] == said.alternatives["sqrt"].lr
    assert stored["parts"]["halfway"][1:] == list(said.parts["halfway"][1:])


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--from_lr=3e-4", "--to_batch_size=8"], 2, "without the batch size it was tuned at"),
        (["--from_batch_size=256", "--from_lr=3e-4", "--to_batch_size=8", "--json"], 0, '"lr": '),
    ],
)
def test_the_program(flags, code, words):
    command = [sys.executable, "-m", "surge.suggest", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == code and words in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_bound_has_a_reason():
    said = suggest(**MOVE)
    assert all(math.isnan(each.value) and each.why for each in (said.overhead, said.rises_to))
    assert isinstance(said.overhead, Bound)
