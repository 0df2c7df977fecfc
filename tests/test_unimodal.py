"""Gaps that a peak may lie in: against brute force, and rejected no more often than they should."""

import numpy as np
import pytest
from scipy.optimize import isotonic_regression

from surge.theory import unimodal

ERROR = 0.1


def brute_force(y, weight):
    """Costs of the gaps [n + 1] from another isotonic regression, point by point."""
    costs = []
    for gap in range(len(y) + 1):
        curve = np.empty(0)
        if gap:
            curve = isotonic_regression(y[:gap], weights=weight[:gap]).x
        if gap < len(y):
            after = isotonic_regression(y[gap:], weights=weight[gap:], increasing=False).x
            curve = np.concatenate([curve, after])
        costs.append(weight @ (y - curve) ** 2)
    return np.array(costs)


@pytest.mark.parametrize("n", [1, 2, 5, 9])
def test_costs_equal_those_of_another_isotonic_regression(n):
    rng = np.random.default_rng(n)
    values = rng.normal(size=(20, n))
    weight = rng.uniform(0.3, 3.0, n)
    expected = [brute_force(row, weight) for row in values]
    np.testing.assert_allclose(unimodal.gap_costs(values, weight), expected, atol=1e-12)


def test_a_curve_without_noise_leaves_the_gaps_at_its_peak():
    y = np.array([0.0, 1.0, 2.0, 1.5, 0.5])
    p = unimodal.p_values(y, np.full(5, 0.05))
    assert (p[2:4] == 1).all()  # before and after the highest point
    assert (p[[0, 1, 4, 5]] < 0.01).all()


def test_order_alone_counts():
    rng = np.random.default_rng(1)
    y = rng.normal(size=6)
    error = rng.uniform(0.1, 0.3, 6)
    p = unimodal.p_values(y, error)
    np.testing.assert_allclose(unimodal.p_values(y + 7.0, error), p)
    np.testing.assert_allclose(unimodal.p_values(3 * y, 3 * error), p)
    reversed_p = unimodal.p_values(y[::-1], error[::-1])
    np.testing.assert_allclose(reversed_p, p[::-1], atol=0.02)  # other draws


@pytest.mark.parametrize("flat", [2, 4, 8])
def test_a_fall_is_seen_in_five_percent_where_there_is_none(flat):
    """Of curves that rise steeply, then stay flat for so many of eight points."""
    rng = np.random.default_rng(flat)
    curve = np.minimum(np.arange(8.0), 8 - flat)
    draws = curve + ERROR * rng.normal(size=(400, 8))
    seen = np.mean([unimodal.p_values(y, np.full(8, ERROR))[-1] <= 0.05 for y in draws])
    print(f"{flat} flat points: {seen:.1%}")
    assert seen <= 0.05 + 2.6 * np.sqrt(0.05 * 0.95 / 400)


@pytest.mark.parametrize("n", [5, 8])
def test_a_peak_is_seen_where_data_of_three_seeds_reach_four_times_its_batch_size(n):
    rng = np.random.default_rng(n)
    size = 2.0 ** np.arange(n)
    peak = size[-1] / 4
    line = -np.log(np.sqrt(size / peak) + np.sqrt(peak / size))
    error = 0.045
    draws = line + error * rng.normal(size=(200, n))
    p = np.array([unimodal.p_values(y, np.full(n, error)) for y in draws])
    seen = ((p[:, 0] <= 0.05) & (p[:, -1] <= 0.05)).mean()
    at_the_peak = (p[:, n - 3 : n - 1] > 0.05).any(1).mean()
    print(f"{n} batch sizes: {seen:.1%} seen, {at_the_peak:.1%} of intervals hold the peak")
    assert seen >= 0.85
    assert at_the_peak >= 0.95 - 2 * np.sqrt(0.05 * 0.95 / 200)


def test_a_bound_is_no_evidence_on_the_side_that_it_leaves_open():
    y = np.array([0.0, 1.0, 2.0, 1.0])
    error = np.full(4, 0.1)
    assert unimodal.p_values(y, error)[-1] < 0.01
    at_least = np.array([0, 0, 0, 1])
    assert unimodal.p_values(y, error, at_least)[-1] > 0.5  # it may lie above all others
    at_most = np.array([0, 0, 0, -1])
    assert unimodal.p_values(y, error, at_most)[-1] < 0.01  # it lies below all the more


def test_the_chi_bar_tail_is_that_of_draws():
    rng = np.random.default_rng(2)
    draws = rng.normal(size=(20_000, 4))
    flat = draws.var(1) * 4
    explained = flat - unimodal.prefix_costs(-draws, np.ones(4))[:, -1]
    for value in (1.0, 3.0, 6.0):
        share = (explained > value).mean()
        assert unimodal._chi_bar_tail(value, 4) == pytest.approx(share, abs=0.01)
