"""One law fitted to optima: against a general optimizer, with bounds, and with its intervals."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from surge.theory.fit import fit_law
from surge.theory.rivals import LAWS

SIZES = 2.0 ** np.arange(2, 13)
B_PEAK, TOP = 200.0, 0.01


def surge(size):
    return TOP * 2 / (np.sqrt(B_PEAK / size) + np.sqrt(size / B_PEAK))


def minus_two_log_likelihood(name, parameters, size, lr, error, bound):
    """Point by point, with the probability of a bound from the normal distribution."""
    total = 0.0
    law = LAWS[name].function
    for b, rate, sigma, side in zip(size, lr, error, bound, strict=True):
        z = (math.log(float(law(b, **parameters))) - math.log(rate)) / sigma
        total += z**2 if side == 0 else -2 * stats.norm.logcdf(side * z)
    return total


@pytest.mark.parametrize("name", [name for name in LAWS if LAWS[name].bounds])
@pytest.mark.parametrize("censored", [False, True])
def test_no_other_optimizer_finds_a_better_fit(name, censored):
    rng = np.random.default_rng(3)
    error = rng.uniform(0.05, 0.15, len(SIZES))
    lr = surge(SIZES) * np.exp(error * rng.normal(size=len(SIZES)))
    bound = np.zeros(len(SIZES), int)
    if censored:
        bound[[0, -1]] = -1, 1
    fit = fit_law(name, SIZES, lr, error, bound)
    given_fit = minus_two_log_likelihood(name, fit.parameters, SIZES, lr, error, bound)
    assert fit.misfit == pytest.approx(given_fit, abs=1e-6)
    signs = np.array([1.0 if value > 0 else -1.0 for value in fit.parameters.values()])

    def misfit(logs):
        values = dict(zip(fit.parameters, signs * np.exp(logs), strict=True))
        return minus_two_log_likelihood(name, values, SIZES, lr, error, bound)

    start = np.log(np.abs(list(fit.parameters.values())))
    found = optimize.minimize(misfit, start, method="Nelder-Mead", options={"xatol": 1e-6})
    inside = all(
        LAWS[name].bounds[key][0] < value < LAWS[name].bounds[key][1]
        for key, value in zip(LAWS[name].bounds, signs[1:] * np.exp(found.x[1:]), strict=True)
        if not key.startswith("b_")
    )
    if inside:
        assert found.fun >= fit.misfit - 0.03 - 0.002 * fit.misfit  # the finest grid


@pytest.mark.parametrize("sigma", [0.05, 0.15])
def test_intervals_hold_what_was_planted(sigma):
    rng = np.random.default_rng(4)
    held = {"max_lr": [], "b_noise": []}
    for _ in range(150):
        lr = surge(SIZES) * np.exp(sigma * rng.normal(size=len(SIZES)))
        fit = fit_law("surge", SIZES, lr, np.full(len(SIZES), sigma))
        for name, truth in (("max_lr", TOP), ("b_noise", B_PEAK)):
            low, high = fit.intervals[name]
            held[name].append(low <= truth <= high)
    for name, inside in held.items():
        print(f"{name}, error {sigma}: {np.mean(inside):.1%} covered")
        assert np.mean(inside) >= 0.9


@settings(max_examples=15, deadline=None)
@given(st.floats(0.01, 100), st.floats(0.01, 100), st.integers(0, 10**6))
def test_units_do_not_matter(size_unit, rate_unit, seed):
    rng = np.random.default_rng(seed)
    lr = surge(SIZES) * np.exp(0.1 * rng.normal(size=len(SIZES)))
    error = np.full(len(SIZES), 0.1)
    one = fit_law("one_law", SIZES, lr, error)
    other = fit_law("one_law", SIZES * size_unit, lr * rate_unit, error)
    assert other.misfit == pytest.approx(one.misfit, rel=1e-6, abs=1e-8)
    assert other.parameters["kappa"] == pytest.approx(one.parameters["kappa"], rel=1e-6)
    scaled = one.parameters["b_turn"] * size_unit
    assert other.parameters["b_turn"] == pytest.approx(scaled, rel=1e-6)


def test_a_bound_beyond_the_law_costs_nothing_and_one_below_it_does():
    lr = surge(SIZES)
    error = np.full(len(SIZES), 0.05)
    bound = np.zeros(len(SIZES), int)
    bound[-1] = 1
    satisfied = lr.copy()
    satisfied[-1] *= 0.3
    assert fit_law("surge", SIZES, satisfied, error, bound).misfit == pytest.approx(0, abs=0.05)
    broken = lr.copy()
    broken[-1] *= 3
    assert fit_law("surge", SIZES, broken, error, bound).misfit > 20


def test_an_open_end_says_that_the_search_ended_there():
    lr = 0.001 * np.sqrt(SIZES)
    fit = fit_law("surge", SIZES, lr, np.full(len(SIZES), 0.1))
    assert fit.intervals["b_noise"][1] == math.inf
    assert fit.opened["b_noise"] == f"the search ended at {100 * SIZES[-1]:.3g}"
    closed = fit_law("surge", SIZES, surge(SIZES), np.full(len(SIZES), 0.1))
    assert closed.opened == {} and math.isfinite(closed.intervals["b_noise"][1])


def test_the_one_law_says_how_far_its_peak_stands_out():
    lr = LAWS["one_law"].function(SIZES, TOP, 100.0, 0.1)
    fit = fit_law("one_law", SIZES, lr, np.full(len(SIZES), 0.03))
    value, low, high = fit.derived["peak_over_plateau"]
    assert value == pytest.approx(1 / (2 * math.sqrt(0.1 * 0.9)), rel=0.02)
    assert low < value < high
    half = fit_law("one_law", SIZES, np.full(len(SIZES), TOP), np.full(len(SIZES), 0.1))
    assert half.derived["peak_over_plateau"][1] == 1


def test_an_outlier_does_not_move_a_law_whose_errors_are_unknown():
    lr = surge(SIZES)
    lr[4] *= 5
    assert fit_law("surge", SIZES, lr).parameters["b_noise"] == pytest.approx(B_PEAK, rel=0.15)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, 0.0, -1.0])
def test_a_law_is_not_fitted_to_what_is_not_above_zero(wrong):
    good = np.ones(5)
    bad = np.array([1.0, 1.0, wrong, 1.0, 1.0])
    with pytest.raises(ValueError, match="each learning rate must be finite and above 0"):
        fit_law("sqrt", good, bad)
    with pytest.raises(ValueError, match="each batch size must be finite and above 0"):
        fit_law("sqrt", bad, good)
    with pytest.raises(ValueError, match="at least one batch size with a known optimum"):
        fit_law("sqrt", good, good, bound=np.ones(5))
