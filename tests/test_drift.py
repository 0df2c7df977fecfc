"""Power laws through a few checkpoints."""

import numpy as np
import pytest

from surge.theory.drift import power_law

LOSS = np.array([2.4, 1.6, 1.2, 1.0])


def test_an_exact_power_is_found():
    fit = power_law(LOSS, 3 * LOSS**-2.5)
    assert fit.value == pytest.approx(-2.5) and fit.n == 4
    assert fit.numerator / fit.denominator == pytest.approx(fit.value)


def test_intervals_cover_in_nineteen_of_twenty():
    rng = np.random.default_rng(0)
    fits = [power_law(LOSS, LOSS**-2 * np.exp(0.3 * rng.normal(size=4))) for _ in range(400)]
    assert 0.92 < np.mean([fit.low <= -2 <= fit.high for fit in fits]) < 0.98


def test_too_few_points_are_undefined_with_a_reason():
    fit = power_law(LOSS, np.array([1.0, np.inf, 2.0, np.nan]))
    assert np.isnan(fit.value) and fit.n == 2 and "fewer than three" in fit.why
