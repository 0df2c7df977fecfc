"""Where one batch size is about best, and how many basins it has."""

import math

import numpy as np
import pytest

from surge.theory.optimum import NEAR, count_basins, lowest_vertex

RATES = 2.0 ** (np.arange(-30, 4) / 2)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_a_parabola_in_a_power_of_the_rate_is_found_exactly(power):
    rates = 2.0 ** (np.arange(-12, 3) / 2)
    moved = np.log(rates / 0.03)
    if power:
        moved = (rates**power - 0.03**power) / (power * 0.03**power)
    vertex = lowest_vertex(rates, 1 + moved**2)
    assert vertex.lr == pytest.approx(0.03, rel=1e-6)
    assert vertex.value == pytest.approx(1, abs=1e-6)


def naive_vertex(rates, means, power):
    """Vertex in log ε and misfit of numpy's parabola in ε^power through five means."""
    x = np.log(rates) - np.log(rates).mean()
    t = x if power == 0 else np.exp(power * x)
    parabola = np.polynomial.Polynomial.fit(t, means, 2)
    (vertex,) = np.real(parabola.deriv().roots()).tolist()
    misfit = ((parabola(t) - means) ** 2).sum()
    moved = vertex if power == 0 else math.log(max(vertex, 1e-3)) / power
    return np.log(rates).mean() + moved, misfit


def test_the_vertex_equals_a_naive_parabola():
    rng = np.random.default_rng(0)
    rates = 2.0 ** (np.arange(-2, 3) / 2)
    for _ in range(200):
        centre = rng.uniform(-0.3, 0.3)
        means = 0.4 * (np.log(rates) - centre) ** 2 + 0.01 * rng.normal(size=5)
        fits = [naive_vertex(rates, means, power) for power in (0.0, 0.5, 1.0)]
        best = min(fits, key=lambda fit: fit[1])[0]
        assert math.log(lowest_vertex(rates, means).lr) == pytest.approx(best, abs=1e-7)


def test_a_rate_at_which_any_run_failed_guides_no_search():
    rates = np.repeat(RATES, 2)
    value = np.log(rates / 0.08) ** 2
    holed = np.where((rates == RATES[25]) & (np.arange(len(rates)) % 2 == 0), np.inf, value)
    moved = np.where(rates == RATES[25], np.inf, value)
    assert lowest_vertex(rates, holed) == lowest_vertex(rates, moved)


def test_few_rates_and_none():
    two = lowest_vertex(np.array([1.0, 2.0]), np.array([3.0, 2.5]))
    assert two.lr == pytest.approx(2) and two.value == 2.5
    assert math.isnan(lowest_vertex(RATES, np.full(len(RATES), np.nan)).lr)
    assert math.isnan(lowest_vertex(np.zeros(0), np.zeros(0)).lr)


def test_basins_are_counted_where_a_ridge_parts_them_and_they_are_about_as_deep():
    place = np.arange(12)
    error = np.full(12, 0.05)
    left = (place - 2.0) ** 2
    assert count_basins(np.minimum(left, (place - 9.0) ** 2 + 0.5), error) == 2
    assert count_basins(np.minimum(left, (place - 9.0) ** 2 + NEAR + 0.1), error) == 1
    assert count_basins(left, error) == 1
    assert count_basins(np.minimum(left, (place - 9.0) ** 2 + 0.5), np.full(12, 5.0)) == 1
    assert count_basins(np.zeros(0), np.zeros(0)) == 1
