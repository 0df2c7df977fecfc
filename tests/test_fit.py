"""Fits recover what was planted, and do not see what is not there."""

import math

import numpy as np
import pytest

from surge.theory.fit import compare_laws, fit_law, fit_noise_scale
from surge.theory.optimum import optimal_lr
from surge.theory.table import fit_table

RATES = 2.0 ** (np.arange(-30, 4) / 2)
SIZES = 2.0 ** np.arange(2, 13)
B_NOISE, B_PEAK, TOP = 300.0, 200.0, 0.01
PLANTED = {
    "surge": lambda size: TOP * 2 / (np.sqrt(B_PEAK / size) + np.sqrt(size / B_PEAK)),
    "sqrt": lambda size: 0.001 * np.sqrt(size),
    "constant": lambda size: TOP + 0 * size,
}


def sweep(kind, noise, rng, sizes=SIZES, seeds=3):
    """A long table of log steps: a basin around the planted optimum, with noise in every run."""
    size, rate, seed = (each.ravel() for each in np.meshgrid(sizes, RATES, np.arange(seeds), indexing="ij"))
    x = np.log(rate / PLANTED[kind](size))
    value = np.log(500 * (1 + B_NOISE / size)) + 0.35 * x**2 * (1 + 0.15 * x) + noise * rng.normal(size=x.shape)
    value = np.where(np.abs(x) > 2.5, np.nan, value)
    return {"batch_size": size, "learning_rate": rate, "seed": seed, "value": value, "steps": np.exp(value)}


def covers(low, high, truth):
    return (low or 0) <= truth <= (math.inf if high is None else high)


@pytest.mark.parametrize("noise", [0.05, 0.2])
@pytest.mark.parametrize("repetitions", [30, pytest.param(200, marks=pytest.mark.slow)])
def test_planted_surge_is_recovered(noise, repetitions):
    rng = np.random.default_rng(1)
    fits = [fit_table(sweep("surge", noise, rng), "steps") for _ in range(repetitions)]
    found = {
        "b_peak": [covers(each["b_peak"]["low"], each["b_peak"]["high"], B_PEAK) for each in fits],
        "b_noise": [covers(each["noise_scale"]["low"], each["noise_scale"]["high"], B_NOISE) for each in fits],
        "max_lr": [covers(*each["laws"]["surge"]["intervals"]["max_lr"], TOP) for each in fits],
        "optima": [
            covers(point["low"], point["high"], PLANTED["surge"](point["batch_size"]))
            for each in fits
            for point in each["optimal_lr"]
        ],
    }
    for name, covered in found.items():
        # 90%, less three standard errors of so many repetitions
        assert np.mean(covered) >= 0.9 - 3 * math.sqrt(0.09 / len(covered)), name
    wrong = [each["best_law"] not in ("surge", "saturating_surge", None) for each in fits]
    assert np.mean(wrong) <= 0.05


@pytest.mark.parametrize("kind", ["sqrt", "constant"])
@pytest.mark.parametrize("noise", [0.05, 0.2])
def test_no_peak_is_seen_where_there_is_none(kind, noise):
    rng = np.random.default_rng(2)
    fits = [fit_table(sweep(kind, noise, rng), "steps") for _ in range(20)]
    assert all(each["b_peak"]["high"] is None and each["b_peak"]["why"] for each in fits)
    assert sum(each["best_law"] not in (kind, None) for each in fits) <= 1


def test_a_sweep_that_stops_short_has_an_open_peak():
    rng = np.random.default_rng(3)
    for _ in range(20):
        peak = fit_table(sweep("surge", 0.05, rng, sizes=SIZES[:5]), "steps")["b_peak"]
        assert peak["value"] is None and peak["high"] is None and "no significant fall" in peak["why"]


def test_log_method_is_unbiased_where_the_papers_reads_low():
    rng = np.random.default_rng(4)
    size = np.geomspace(4, 4096, 11)
    read = {"log": [], "paper": []}
    for _ in range(200):
        steps = 100 * (1 + 40 / size) * np.exp(0.2 * rng.normal(size=11))
        for method, values in read.items():
            values.append(fit_noise_scale(size, steps, method).b_noise)
    assert np.nanmedian(read["log"]) == pytest.approx(40, rel=0.08)
    assert np.nanmedian(read["paper"]) < 0.92 * 40


def test_noise_scale_without_noise_is_exact():
    size = np.geomspace(4, 4096, 11)
    for method in ("log", "paper"):
        fit = fit_noise_scale(size, 100 * (1 + 40 / size), method)
        assert (fit.b_noise, fit.s_min, fit.e_min) == pytest.approx((40, 100, 4000), rel=0.01)
    assert fit_noise_scale(size, 1e4 / size).why.startswith("S falls as 1/B")
    assert "fewer than three" in fit_noise_scale(size[:2], size[:2]).why
    with pytest.raises(ValueError, match="log or paper"):
        fit_noise_scale(size, size, "guess")


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_a_parabola_in_a_power_of_the_rate_is_found_exactly(power):
    rates = 2.0 ** (np.arange(-12, 3) / 2)
    moved = np.log(rates / 0.03) if power == 0 else (rates**power - 0.03**power) / (power * 0.03**power)
    found = optimal_lr(rates, 1 + moved**2, np.zeros(len(rates)))
    assert found.lr == pytest.approx(0.03, rel=1e-6)
    assert found.value == pytest.approx(1, abs=1e-6)


def test_an_optimum_on_the_edge_says_so():
    rates = 2.0 ** np.arange(8)
    found = optimal_lr(np.repeat(rates, 2), np.repeat(-np.arange(8.0), 2), np.tile([0, 1], 8))
    assert found.at_edge and "extend" in found.why
    beyond = optimal_lr(rates, np.where(rates > 30, np.nan, -np.arange(8.0)), np.zeros(8))
    assert not beyond.at_edge  # the next rate was tried, and failed


def test_two_basins_are_counted():
    rates = 2.0 ** np.arange(12)
    value = np.minimum((np.arange(12) - 2.0) ** 2, (np.arange(12) - 9.0) ** 2 + 0.5)
    rng = np.random.default_rng(0)
    noisy = np.concatenate([value + 0.05 * rng.normal(size=12) for _ in range(3)])
    found = optimal_lr(np.tile(rates, 3), noisy, np.repeat(np.arange(3), 12))
    assert found.basins == 2 and "2 separate basins" in found.why


def test_nothing_reached_is_nan_with_a_reason():
    found = optimal_lr(RATES, np.full(len(RATES), np.nan), np.zeros(len(RATES)))
    assert math.isnan(found.lr) and "no learning rate" in found.why
    entry = fit_table(
        {name: np.array([]) for name in ("batch_size", "learning_rate", "seed", "value", "steps")}, "steps"
    )
    assert entry["best_law"] is None and entry["b_peak"]["value"] is None and entry["laws"] == {}


def test_order_and_units_do_not_matter():
    rng = np.random.default_rng(5)
    rows = sweep("surge", 0.1, rng)
    shuffled = rng.permutation(len(rows["value"]))
    one, other = (fit_table(each, "steps") for each in (rows, {k: v[shuffled] for k, v in rows.items()}))
    assert one == other
    scaled = fit_table(rows | {"learning_rate": rows["learning_rate"] * 4}, "steps")
    ratio = [b["lr"] / a["lr"] for a, b in zip(one["optimal_lr"], scaled["optimal_lr"], strict=True)]
    assert ratio == pytest.approx([4] * len(ratio), rel=1e-6)


def test_an_outlier_does_not_move_a_law():
    lr = PLANTED["surge"](SIZES)
    lr[4] *= 5
    assert fit_law("surge", SIZES, lr).parameters["b_noise"] == pytest.approx(B_PEAK, rel=0.15)


def test_few_points_are_not_compared():
    few = compare_laws(SIZES[:3], PLANTED["sqrt"](SIZES[:3]))
    assert few.best is None and "too few" in few.why
