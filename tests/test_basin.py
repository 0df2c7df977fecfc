"""One basin for all batch sizes: planted optima are found, and intervals hold them."""

import math
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from scipy import integrate, special, stats

from surge.theory import alignment, basin, clustered, replicates, shape
from surge.theory.basin import fit_basins, optimal_lr

SCRIPT = Path(__file__).parent.parent / "scripts" / "audit_basins.py"
audit_basins = SimpleNamespace(**runpy.run_path(str(SCRIPT)))
CASES = audit_basins.CASES
RATES = 2.0 ** (np.arange(-30, 4) / 2)


def sweep(name="a little skewed", seed=0, **changes):
    """Columns and true log optima of one simulated sweep."""
    case = CASES[name]._replace(**changes)
    return audit_basins.simulate(case, np.random.default_rng(seed))


def lrs(basins):
    return np.array([optimum.lr for optimum in basins.optima.values()])


# The shape


def test_heights_are_integrals_of_slopes():
    terms = np.random.default_rng(0).normal(size=shape.TERMS) * 0.5
    z = np.array([-3.1, -0.72, -0.01, 0.0, 0.3, 1.234, 2.9])
    height, slope, _ = shape.unit_basin(z, terms)

    def at(point):
        return shape.unit_basin(np.array([point]), terms)[1][0]

    for index, point in enumerate(z):
        kinks = [sign * knot for knot in shape.KNOTS for sign in (-1, 1) if abs(knot) < abs(point)]
        want = integrate.quad(at, 0, point, points=sorted(set(kinks)) or None, limit=200)[0]
        assert height[index] == pytest.approx(want, rel=1e-6, abs=1e-9)
    assert (np.sign(slope) == np.sign(z)).all()


def test_derivatives_by_the_shape_are_finite_differences():
    terms = np.random.default_rng(1).normal(size=shape.TERMS) * 0.5
    z = np.linspace(-3, 3, 13)
    by_shape = shape.unit_basin(z, terms)[2]
    for index, row in enumerate(np.eye(shape.TERMS) * 1e-5):
        up, down = (shape.unit_basin(z, terms + side * row)[0] for side in (1, -1))
        np.testing.assert_allclose(by_shape[:, index], (up - down) / 2e-5, rtol=1e-5, atol=1e-7)


def test_a_parabola_in_the_rate_is_nearly_a_shape_with_a_skew_alone():
    z = np.linspace(-0.7, 0.7, 15)
    terms = np.zeros(shape.TERMS)
    terms[0] = 1.5
    np.testing.assert_allclose(shape.unit_basin(z, terms)[0], np.expm1(z) ** 2 / 2, rtol=0.015)


# The noise


def test_noise_by_clusters_equals_dense_matrices():
    rng = np.random.default_rng(2)
    columns = rng.normal(size=(24, 3))
    weight = rng.uniform(0.5, 2, 24)
    cluster = np.repeat(np.arange(6), 4)
    residual = rng.normal(size=24)
    hat = np.linalg.inv(columns.T @ (columns * weight[:, None]) + np.eye(3) / 7)
    pulls = np.zeros((24, 6))
    pulls[np.arange(24), cluster] = weight * (columns @ hat[0])
    left = np.eye(24) - columns @ hat @ (columns * weight[:, None]).T
    products = pulls.T @ left @ left.T @ pulls
    want = ((pulls.T @ residual) ** 2).sum() / np.trace(products)
    freedom = np.trace(products) ** 2 / (products**2).sum()
    got = clustered.noise(hat[0], hat, columns, weight, residual, cluster)
    assert got == pytest.approx((want, freedom))


def test_equal_variances_are_pooled_and_unlike_ones_are_left():
    freedom = np.full(400, 4.0)
    rng = np.random.default_rng(3)
    chance = np.asarray(stats.chi2.rvs(4, size=400, random_state=rng)) / 4
    equal, its_freedom = clustered.moderated(chance, freedom)
    assert np.ptp(np.log(equal)) < 0.2 * np.ptp(np.log(chance)) and its_freedom.min() > 40
    spread = np.exp(2 * rng.normal(size=400))
    unlike, few = clustered.moderated(chance * spread, freedom)
    assert np.median(np.abs(np.log(unlike / (chance * spread)))) < 0.5 and few.max() < 6
    alone = clustered.moderated(np.array([2.0]), np.array([3.0]))
    assert [float(column[0]) for column in alone] == [2, 3]
    assert special.polygamma(1, clustered._inverse_trigamma(0.3)) == pytest.approx(0.3)


# Planted optima


def check(name, repetitions):
    """Coverage may fall short of 93% by chance alone, at the 1% level for whole sweeps."""
    found = audit_basins.audit(CASES[name], repetitions)
    print(name, found)
    effective = repetitions * 2  # optima of a sweep err together, by the shape
    assert found.coverage >= stats.binom.ppf(0.01, effective, 0.93) / effective, found
    assert abs(found.bias) < max(found.error, 3 * found.error / math.sqrt(repetitions))
    assert found.deviation < 1.3 * found.error
    return found


FAST = (
    "symmetric",
    "steep right",
    "steep left",
    "kinked right",
    "wall",
    "steps",
    "sd .03, steep right",
    "correlated",
    "heteroscedastic",
    "12% fail, 30 seeds",
    "unequal seeds",
    "missing cells",
    "random search",
    "3 sizes",
    "1 size, 10 seeds",
    "4 seeds, 5 rates",
)


@pytest.mark.parametrize("name", FAST)
def test_intervals_hold_planted_optima(name):
    check(name, 8)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_intervals_hold_planted_optima_at_full_size(name):
    check(name, 100)


def test_optima_are_told_twice_as_well_as_by_parabolas():
    found = audit_basins.audit(CASES["a little skewed"], 20)
    old = audit_basins.by_parabolas(CASES["a little skewed"], 20)
    print(f"rms {found.deviation:.3f}, relative {found.relative:.3f}, parabolas {old:.3f}")
    assert found.deviation < old / 1.6 and found.relative < old / 2.5


@pytest.mark.parametrize("seeds", [3, 10, 30, 100])
def test_failures_by_chance_do_not_move_the_optimum(seeds):
    columns, truth = sweep(failing=0.12, seeds=seeds, basin=audit_basins.symmetric)
    ratio = lrs(fit_basins(**columns)) / np.exp(list(truth.values()))
    assert np.abs(np.log(ratio)).mean() < 0.15
    assert abs(np.log(ratio).mean()) < 0.12


def test_what_batch_sizes_share_is_told_apart():
    columns, _ = sweep(basin=audit_basins.in_rate)
    basins = fit_basins(**columns)
    assert basins.shared and 0 < basins.common < 0.15
    for optimum in basins.optima.values():
        assert optimum.error**2 == pytest.approx(optimum.relative_error**2 + basins.common**2)
        assert optimum.relative_error > 0.5 * optimum.error
    assert abs(basins.skew - 1.5) < 3 * basins.skew_error


def test_half_of_an_error_is_always_a_batch_sizes_own(monkeypatch):
    monkeypatch.setattr(basin, "_shape", lambda *_: (1.5, 0.1, 10.0))
    columns, _ = sweep(basin=audit_basins.in_rate)
    for optimum in fit_basins(**columns).optima.values():
        assert optimum.relative_error == 0.5 * optimum.error


@pytest.mark.parametrize("noise_freedom", [4.0, 400.0])
def test_a_variance_that_is_in_part_known_has_more_freedom(noise_freedom):
    columns, _ = sweep(seed=4)
    runs = basin._sweep(**columns)
    (group,), noise, _, _ = basin._fitted(runs, np.unique(columns["batch_size"]).tolist())
    spread = alignment.covariance(group.fit, noise)
    optima = basin._optima(runs, group, spread, np.full(6, noise_freedom), 0.0)

    nothing_estimated = alignment.covariance(group.fit, 0 * noise)
    for place, optimum in enumerate(optima.values()):
        share = 1 - nothing_estimated[place, place] / spread[place, place]
        freedom = noise_freedom / share**2
        reach = math.log(optimum.high / optimum.lr) / optimum.error
        assert 0.3 < share < 0.95
        assert reach == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-6)


def test_unlike_shapes_are_fitted_alone_and_it_is_said():
    left, _ = sweep(basin=audit_basins.in_inverse, noise=0.02, sizes=4, seeds=10)
    right, truth = sweep(basin=audit_basins.in_rate, noise=0.02, sizes=4, seeds=10)
    first = left["batch_size"] < 100
    columns = {
        name: np.concatenate([left[name][first], right[name][right["batch_size"] > 100]])
        for name in left
    }
    basins = fit_basins(**columns)
    assert not basins.shared and "differ in shape" in basins.why
    assert math.isnan(basins.skew) and basins.common == 0
    for size, optimum in basins.optima.items():
        if size > 100:
            assert optimum.low <= math.exp(truth[size]) <= optimum.high
        assert optimum.error == optimum.relative_error


# Edges, failures, second basins


@pytest.mark.parametrize("below", [-3.0, -2.4, 2.4, 3.0])
def test_an_optimum_beyond_the_grid_is_a_bound(below):
    side = 1 if below > 0 else -1
    held = []
    for seed in range(10):
        columns, truth = sweep(below=below, seed=seed)
        for size, optimum in fit_basins(**columns).optima.items():
            rates = columns["learning_rate"][columns["batch_size"] == size]
            held.append(optimum.low <= math.exp(truth[size]) <= optimum.high)
            if abs(below) == 3.0:
                assert optimum.bound == side and optimum.at_edge
                assert optimum.lr == pytest.approx(rates.max() if side > 0 else rates.min())
                assert (optimum.high == math.inf) if side > 0 else (optimum.low == 0)
                assert "extend the grid" in optimum.why
    assert np.mean(held) >= 0.85


def test_a_rate_that_failed_ends_the_basin_but_is_no_edge():
    rates = np.repeat(RATES[10:20], 3)
    value = -0.5 * np.log(rates) + 0.01 * np.tile([0, 1, -1], 10)
    seed = np.tile([0, 1, 2], 10)
    edge = optimal_lr(rates, value, seed)
    assert edge.bound == 1 and edge.lr == pytest.approx(RATES[19])
    failed = optimal_lr(
        np.concatenate([rates, np.repeat(RATES[20], 3)]),
        np.concatenate([value, [np.inf, np.nan, np.inf]]),
        np.concatenate([seed, [0, 1, 2]]),
    )
    assert failed.bound == 0 and failed.lr == pytest.approx(RATES[19])
    assert optimal_lr(rates[::-1], -value[::-1], seed).bound == -1


def test_most_failing_is_no_candidate_and_a_few_failing_are():
    size = np.zeros(20)
    log_lr = np.repeat([0.0, 1.0], 10)
    value = np.zeros(20)
    value[[0, 1, 2]] = np.inf  # 3 of 10
    value[10:14] = np.nan  # 4 of 10
    counts = replicates.count(size, log_lr, value)
    assert counts[3:10].all() and not counts[:3].any() and not counts[10:].any()


def test_few_rates_have_no_interval_and_a_reason():
    rates = np.array([1.0, 2.0, 4.0])
    two = optimal_lr(rates, np.array([3.0, 2.0, np.nan]))
    assert two.lr == pytest.approx(2) and math.isnan(two.low) and math.isnan(two.error)
    assert two.bound == 0 and "fewer than three" in two.why
    rising = optimal_lr(rates[:2], np.array([3.0, 2.0]))
    assert rising.bound == 1 and "fewer than three" in rising.why
    none = optimal_lr(rates, np.full(3, np.inf))
    assert math.isnan(none.lr) and "no learning rate" in none.why and none.basins == 0
    assert fit_basins(np.zeros(0), np.zeros(0), np.zeros(0)).optima == {}


def test_a_second_basin_counts_but_a_diverged_run_makes_none():
    rng = np.random.default_rng(0)
    place = np.tile(np.arange(12), 3)
    seed = np.repeat(np.arange(3), 12)
    rates = 2.0**place
    noise = 0.05 * rng.normal(size=36)
    left = 0.35 * (place - 2.0) ** 2
    right = 0.35 * (place - 9.0) ** 2
    two = optimal_lr(rates, np.minimum(left, right + 0.5) + noise, seed)
    assert two.basins == 2 and "2 separate basins" in two.why and two.lr < 8
    diverged = np.where((place == 4) & (seed == 0), 50.0, left)  # one run that ended at a number
    assert optimal_lr(rates, diverged + noise, seed).basins == 1
    failed = np.where(place == 4, np.inf, left)
    assert optimal_lr(rates, failed + noise, seed).basins == 1


# What does not matter


def test_a_table_sorted_by_value_is_not_read_as_paired_seeds():
    columns, _ = sweep(seed=3)
    rows = {name: columns[name] for name in ("batch_size", "learning_rate", "value")}
    shuffled = np.random.default_rng(0).permutation(len(rows["value"]))
    in_order = np.argsort(rows["value"])
    one, other = (
        fit_basins(**{name: column[order] for name, column in rows.items()})
        for order in (shuffled, in_order)
    )
    np.testing.assert_equal(one._asdict(), other._asdict())
    paired = fit_basins(**columns)
    wide, narrow = (np.mean([o.error for o in b.optima.values()]) for b in (one, paired))
    assert wide > narrow  # what seeds share counts as noise where it is not known


def same(one, other, factor=1.0):
    assert lrs(other) == pytest.approx(factor * lrs(one), rel=1e-4)
    errors = ([o.error for o in basins.optima.values()] for basins in (one, other))
    assert next(errors) == pytest.approx(next(errors), rel=1e-3)


@hypothesis.settings(max_examples=15, deadline=None)
@hypothesis.given(
    seed=st.integers(0, 1000),
    name=st.sampled_from(["steep right", "wall", "unequal seeds", "random search", "sd .3"]),
    factor=st.floats(1e-4, 1e4),
    shift=st.floats(-100, 100),
)
def test_units_levels_and_orders_do_not_matter(seed, name, factor, shift):
    columns, _ = sweep(name, seed, sizes=4)
    one = fit_basins(**columns)
    same(one, fit_basins(**columns | {"learning_rate": factor * columns["learning_rate"]}), factor)
    same(one, fit_basins(**columns | {"value": columns["value"] + shift}))
    order = np.random.default_rng(seed).permutation(len(columns["value"]))
    moved: dict[str, Any] = {
        name: None if column is None else column[order] for name, column in columns.items()
    }
    np.testing.assert_equal(fit_basins(**moved)._asdict(), one._asdict())
    if columns["seed"] is not None:
        labels = np.array([f"run {9 - int(label)}" for label in columns["seed"]])
        same(one, fit_basins(**columns | {"seed": labels}))
        own = columns["seed"] + 100 * columns["batch_size"]
        same(one, fit_basins(**columns | {"seed": own}))


def test_the_fit_has_settled():
    columns, _ = sweep("wall", noise=0.05)
    counts = np.isfinite(columns["value"])
    rows = [columns[name][counts] for name in ("batch_size", "learning_rate", "value", "seed")]
    order = np.lexsort(rows[::-1])
    size, rate, value, seed = (column[order] for column in rows)
    fit = alignment.align(replicates.make_runs(size, np.log(rate), value, seed))
    assert fit.moving.max() < 1e-6
    assert np.abs(fit.inverse @ fit.score).max() < 1e-6
