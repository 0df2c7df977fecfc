"""The optimal learning rate of one batch size."""

import math

import numpy as np
import pytest

from surge.theory.optimum import optimal_lr

RATES = 2.0 ** (np.arange(-30, 4) / 2)


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
