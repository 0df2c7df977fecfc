"""Fits recover what was planted, and do not see what is not there."""

import functools
import math
import zlib

import numpy as np
import pytest
from scipy import stats
from scipy.special import erf

from surge.report.summary import interval, verdict
from surge.theory.fit import compare_laws, fit_law, fit_noise_scale
from surge.theory.laws import homogeneous
from surge.theory.optimum import optimal_lr
from surge.theory.table import fit_table

RATES = 2.0 ** (np.arange(-30, 4) / 2)
SIZES = 2.0 ** np.arange(2, 13)
B_NOISE, B_PEAK, TOP = 300.0, 200.0, 0.01


def saturating(size, b_scale, r, top=TOP):
    mean = erf(np.sqrt(size / b_scale))
    return top * 2 / math.sqrt(r) * mean / (1 + mean**2 / r)


PLANTED = {
    "constant": lambda size: TOP + 0 * size,
    "sqrt": lambda size: 0.001 * np.sqrt(size),
    "linear": lambda size: 1e-4 * size,
    "power": lambda size: 0.001 * size**0.3,
    "mccandlish": lambda size: TOP / (1 + 100 / size) ** 0.7,
    "surge": lambda size: TOP * 2 / (np.sqrt(B_PEAK / size) + np.sqrt(size / B_PEAK)),
    "saturating_surge": lambda size: saturating(size, 2000, 0.1),
    "saturating_surge, r = 1": lambda size: saturating(size, 200, 1.0),
    "saturating_surge, r = 2": lambda size: saturating(size, 200, 2.0),
}
NO_PEAK = {
    "diagonal": lambda size: np.asarray(homogeneous(size, TOP, 1.0, 0.0, 0.1)),
    "stops short": lambda size: PLANTED["surge"](size / 64),
    "stops at the peak": lambda size: PLANTED["surge"](size * B_PEAK / SIZES[-1]),
    **{name: law for name, law in PLANTED.items() if name not in ("surge", "saturating_surge")},
}
REPETITIONS = [20, pytest.param(200, marks=pytest.mark.slow)]


def sweep(law, noise, rng, sizes=SIZES, seeds=3):
    """A long table of log steps: a basin around the planted optimum, with noise in every run."""
    size, rate, seed = (
        each.ravel() for each in np.meshgrid(sizes, RATES, np.arange(seeds), indexing="ij")
    )
    x = np.log(rate / law(size))
    value = (
        np.log(500 * (1 + B_NOISE / size))
        + 0.35 * x**2 * (1 + 0.15 * x)
        + noise * rng.normal(size=x.shape)
    )
    return {
        "batch_size": size,
        "learning_rate": rate,
        "seed": seed,
        "value": np.where(np.abs(x) > 2.5, np.nan, value),
    }


@functools.cache
def entries(kind, noise, repetitions):
    """What the fit says of so many sweeps of one planted law."""
    rng = np.random.default_rng(zlib.crc32(kind.encode()))
    return [
        fit_table(sweep((PLANTED | NO_PEAK)[kind], noise, rng), "steps") for _ in range(repetitions)
    ]


def covers(low, high, truth):
    return (low or 0) <= truth <= (math.inf if high is None else high)


@pytest.mark.parametrize("noise", [0.05, 0.2])
@pytest.mark.parametrize("repetitions", [40, pytest.param(200, marks=pytest.mark.slow)])
def test_planted_surge_is_recovered(noise, repetitions):
    fits = entries("surge", noise, repetitions)
    intervals = {
        "b_peak": [(each["b_peak"]["low"], each["b_peak"]["high"]) for each in fits],
        "b_noise": [(each["noise_scale"]["low"], each["noise_scale"]["high"]) for each in fits],
        "max_lr": [tuple(each["laws"]["surge"]["intervals"]["max_lr"]) for each in fits],
    }
    # 200 repetitions are asked for 90%; fewer for what only 1% of so many fall short of, if 95% is
    # true
    least = 0.9 if repetitions == 200 else stats.binom.ppf(0.01, repetitions, 0.95) / repetitions
    for (name, found), truth in zip(intervals.items(), (B_PEAK, B_NOISE, TOP), strict=True):
        covered = np.mean([covers(*ends, truth) for ends in found])
        bounded = np.mean([None not in ends and ends[0] > 0 for ends in found])
        print(
            f"{name}, noise {noise}: {covered:.1%} covered, {bounded:.1%} bounded, n = {repetitions}"
        )
        assert covered >= least, name
        assert bounded >= (0.95 if noise == 0.05 or name != "b_peak" else 0.3), name
    optima = [
        covers(point["low"], point["high"], PLANTED["surge"](point["batch_size"]))
        for each in fits
        for point in each["optimal_lr"]
    ]
    assert np.mean(optima) >= 0.9


@pytest.mark.parametrize("noise", [0.05, 0.2])
@pytest.mark.parametrize("repetitions", REPETITIONS)
def test_the_planted_law_is_named_or_none(noise, repetitions):
    wrong = {}
    for kind in PLANTED:
        planted = kind.partition(",")[0]
        best = [each["best_law"] for each in entries(kind, noise, repetitions)]
        assert all(
            each["best_law_why"]
            for each in entries(kind, noise, repetitions)
            if not each["best_law"]
        )
        wrong[kind] = sum(name not in (planted, None) for name in best)
        print(
            f"{kind}, noise {noise}: {best.count(planted)} named, {wrong[kind]} wrong, n = {repetitions}"
        )
        if noise == 0.05 and "r =" not in kind:
            assert best.count(planted) >= repetitions / 5, kind
    allowed = 0.05 * repetitions if repetitions == 200 else stats.binom.ppf(0.95, repetitions, 0.05)
    assert max(wrong.values()) <= allowed, wrong
    assert sum(wrong.values()) <= 0.05 * repetitions * len(wrong), wrong


@pytest.mark.parametrize("noise", [0.05, 0.2])
@pytest.mark.parametrize("repetitions", REPETITIONS)
@pytest.mark.parametrize("kind", NO_PEAK)
def test_no_peak_is_seen_where_there_is_none(kind, noise, repetitions):
    peaks = [each["b_peak"] for each in entries(kind, noise, repetitions)]
    assert all(peak["value"] is None and peak["high"] is None and peak["why"] for peak in peaks)


def test_log_method_is_unbiased_where_the_papers_reads_15_to_20_percent_low():
    rng = np.random.default_rng(4)
    size = np.geomspace(2, 256, 8)
    read = {"log": [], "paper": []}
    for _ in range(400):
        steps = 100 * (1 + 40 / size) * np.exp(0.2 * rng.normal(size=len(size)))
        for method, values in read.items():
            values.append(fit_noise_scale(size, steps, method).b_noise)
    log, paper = (np.nanmedian(read[method]) for method in ("log", "paper"))
    print(f"planted 40: log {log:.1f}, paper {paper:.1f}")
    assert log == pytest.approx(40, rel=0.05)
    assert 0.8 * 40 <= paper <= 0.85 * 40


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
    moved = (
        np.log(rates / 0.03) if power == 0 else (rates**power - 0.03**power) / (power * 0.03**power)
    )
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
        {name: np.array([]) for name in ("batch_size", "learning_rate", "seed", "value")}, "steps"
    )
    assert entry["best_law"] is None and entry["b_peak"]["value"] is None and entry["laws"] == {}


def test_order_and_units_do_not_matter():
    rng = np.random.default_rng(5)
    rows = sweep(PLANTED["surge"], 0.1, rng)
    shuffled = rng.permutation(len(rows["value"]))
    one, other = (
        fit_table(each, "steps") for each in (rows, {k: v[shuffled] for k, v in rows.items()})
    )
    assert one == other
    scaled = fit_table(rows | {"learning_rate": rows["learning_rate"] * 4}, "steps")
    ratio = [
        b["lr"] / a["lr"] for a, b in zip(one["optimal_lr"], scaled["optimal_lr"], strict=True)
    ]
    assert ratio == pytest.approx([4] * len(ratio), rel=1e-6)


def test_an_outlier_does_not_move_a_law():
    lr = PLANTED["surge"](SIZES)
    lr[4] *= 5
    assert fit_law("surge", SIZES, lr).parameters["b_noise"] == pytest.approx(B_PEAK, rel=0.15)


def test_few_points_are_not_compared():
    few = compare_laws(SIZES[:3], PLANTED["sqrt"](SIZES[:3]))
    assert few.best is None and "too few" in few.why
    entry = fit_table(
        sweep(PLANTED["sqrt"], 0.05, np.random.default_rng(6), sizes=SIZES[:3]), "steps"
    )
    said = verdict(entry)
    assert "peak unknown" in said and "no peak" not in said and "3 batch sizes are too few" in said


@pytest.mark.parametrize("wrong", [math.nan, math.inf, 0.0, -1.0])
def test_a_law_is_not_fitted_to_what_is_not_above_zero(wrong):
    good, bad = np.ones(5), np.array([1.0, 1.0, wrong, 1.0, 1.0])
    with pytest.raises(ValueError, match="each learning rate must be finite and above 0"):
        fit_law("sqrt", good, bad)
    with pytest.raises(ValueError, match="each batch size must be finite and above 0"):
        fit_law("sqrt", bad, good)


def test_held_out_errors_and_their_standard_error_equal_a_loop():
    rng = np.random.default_rng(7)
    error = rng.uniform(0.05, 0.2, len(SIZES))
    lr = PLANTED["sqrt"](SIZES) * np.exp(error * rng.normal(size=len(SIZES)))
    level, squares = np.log(lr / np.sqrt(SIZES)), []
    for index in range(len(SIZES)):
        others = np.arange(len(SIZES)) != index
        squares.append(
            (level[index] - np.average(level[others], weights=1 / error[others] ** 2)) ** 2
        )
    found = compare_laws(SIZES, lr, error)
    root = math.sqrt(np.mean(squares))
    assert found.held_out["sqrt"] == pytest.approx(root)
    assert found.held_out_se["sqrt"] == pytest.approx(
        np.std(squares, ddof=1) / math.sqrt(len(SIZES)) / (2 * root)
    )


def test_batch_sizes_need_not_be_whole_numbers():
    rows = sweep(PLANTED["surge"], 0.1, np.random.default_rng(8))
    whole, thousandth = (
        fit_table(rows | {"batch_size": rows["batch_size"] / unit}, "steps") for unit in (1, 1000)
    )
    sizes = [[point["batch_size"] for point in each["optimal_lr"]] for each in (whole, thousandth)]
    assert all(isinstance(size, int) for size in sizes[0]) and sizes[1] == pytest.approx(
        SIZES / 1000
    )
    assert thousandth["b_peak"]["value"] * 1000 == pytest.approx(whole["b_peak"]["value"], rel=1e-3)
    near = {
        name: np.tile(column, 2)
        for name, column in sweep(PLANTED["surge"], 0.1, np.random.default_rng(9)).items()
    }
    near["batch_size"] = np.repeat([2.2, 2.7], len(rows["value"]))
    assert [point["batch_size"] for point in fit_table(near, "steps")["optimal_lr"]] == [2.2, 2.7]


def test_optima_on_the_edge_are_in_no_fit():
    rows = sweep(PLANTED["surge"], 0.05, np.random.default_rng(10))
    low = (rows["batch_size"] > 8) | (
        rows["learning_rate"] > 2 * PLANTED["surge"](rows["batch_size"])
    )
    entry = fit_table({name: column[low] for name, column in rows.items()}, "steps")
    assert [point["batch_size"] for point in entry["optimal_lr"] if point["at_edge"]] == [4, 8]
    assert entry["noise_scale"]["n"] == len(SIZES) - 2
    for key in ("noise_scale", "b_peak"):
        assert entry[key]["why"] == "batch sizes 4, 8 have no optimum inside the grid"


def test_rates_of_a_random_search_all_count():
    rng, ratios, covered = np.random.default_rng(11), [], []
    for _ in range(40):
        rates = np.exp(rng.uniform(np.log(1e-3), np.log(10), 60))
        x = np.log(rates / 0.08)
        found = optimal_lr(rates, 0.35 * x**2 + 0.05 * rng.normal(size=60), np.zeros(60))
        ratios.append(found.high / found.low)
        covered.append(found.low <= 0.08 <= found.high)
    assert np.median(ratios) < 2 and np.mean(covered) >= 0.9
    on_a_grid = optimal_lr(RATES, np.log(RATES / 0.08) ** 2, np.zeros(len(RATES)))
    assert on_a_grid.n == 5


@pytest.mark.parametrize("paired", [True, False])
def test_many_seeds_are_resampled(paired):
    rng, covered, widths = np.random.default_rng(12), [], []
    for _ in range(60):
        rate, seed = (
            each.ravel() for each in np.meshgrid(RATES[18:29], np.arange(8), indexing="ij")
        )
        x = np.log(rate / 0.08)
        # A noise that a pooled estimate gets wrong: in one cell only.
        value = 0.35 * x**2 + np.where(np.abs(x - 0.45) < 0.1, 0.3, 0.01) * rng.normal(size=len(x))
        found = optimal_lr(rate, value, seed if paired else np.arange(len(x)))
        covered.append(found.low <= 0.08 <= found.high)
        widths.append(math.log(found.high / found.low))
    print(f"paired {paired}: {np.mean(covered):.1%} covered, width {np.median(widths):.3f}")
    assert np.mean(covered) >= 0.85


def test_intervals_for_people():
    assert interval(None, None) == interval(math.nan, None) == "–"
    assert (interval(0, None), interval(None, 1), interval(1, 2.04)) == (
        "[0, ∞]",
        "[-∞, 1]",
        "[1, 2]",
    )


def test_no_law_is_named_where_all_misfit_by_far():
    sizes = np.array([16, 64, 256, 1024, 4096.0])
    rates = np.array(
        [0.0023, 0.0069, 0.0062, 0.0059, 0.0059]
    )  # a step that no law has, then flat: not a constant
    found = compare_laws(sizes, rates, np.array([0.05, 0.08, 0.05, 0.13, 0.38]))
    assert found.best is None and "no law fits" in found.why
