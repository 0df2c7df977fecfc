"""The peak: asked of the law that fits, its interval of order alone."""

import math

import numpy as np
import pytest

from surge.theory import rivals
from surge.theory.comparison import compare_laws
from surge.theory.peak import find_peak
from surge.theory.rivals import LAWS

SIZES = 2.0 ** np.arange(2, 13)


def found(lr, error, size=SIZES, bound=None):
    errors = np.full(len(size), error)
    comparison = compare_laws(size, lr, errors, bound)
    return find_peak(size, lr, errors, comparison, bound)


def test_a_clear_peak_has_its_place_and_an_interval():
    peak = found(LAWS["surge"].function(SIZES, 0.01, 200.0), 0.05)
    assert peak.value == pytest.approx(200, rel=0.05)
    assert peak.low <= 128 and peak.high >= 256 and peak.high <= 1024
    assert peak.p_fall < 0.01 and peak.p_rise < 0.01 and peak.why == peak.needs == ""


def test_the_peak_is_asked_of_the_law_that_fits():
    """A planted broken power law, entered as a user would: it brings its own peak."""

    def broken_power(batch_size, max_lr, b_break, fall):
        scaled = np.asarray(batch_size) / b_break
        return max_lr * np.where(scaled < 1, scaled**0.9, scaled**-fall)

    entered = rivals.rival(
        {"b_break": rivals.SIZE, "fall": (0.0, 1.5)}, lambda b_break, fall: b_break
    )
    try:
        entered(broken_power)
        lr = broken_power(SIZES, 0.01, 32.0, 0.2)
        errors = np.full(len(SIZES), 0.04)
        comparison = compare_laws(SIZES, lr, errors)
        peak = find_peak(SIZES, lr, errors, comparison)
        assert comparison.best == "broken_power"
        assert peak.value == pytest.approx(32, rel=0.1)
        assert peak.low <= 32 <= peak.high <= 64
    finally:
        del LAWS["broken_power"]


def test_a_lower_bound_is_told_where_no_fall_is_seen():
    lr = 0.001 * np.sqrt(np.minimum(SIZES, 512))
    peak = found(lr, 0.05)
    assert peak.value == math.inf and peak.high == math.inf
    assert 128 <= peak.low <= 512
    assert peak.p_fall > 0.05 and peak.why.startswith("no significant fall")


def test_what_would_decide_is_said():
    size = SIZES[:8]
    lr = LAWS["surge"].function(size, 0.01, 200.0)  # the data end at 2.6 times the peak
    peak = found(lr, 0.2, size)
    assert peak.value == math.inf
    assert "times the seeds" in peak.needs and "batch sizes to" in peak.needs
    reach = float(peak.needs.rpartition("batch sizes to ")[2])
    farther = np.concatenate([size, size[-1] * 2.0 ** np.arange(1, 1 + np.log2(reach / size[-1]))])
    rng = np.random.default_rng(0)
    seen = 0
    for _ in range(40):
        noisy = LAWS["surge"].function(farther, 0.01, 200.0) * np.exp(
            0.2 * rng.normal(size=len(farther))
        )
        seen += math.isfinite(found(noisy, 0.2, farther).value)
    print(f"to {reach:g}: seen in {seen} of 40")
    assert seen >= 24


def test_a_fall_from_the_start_is_no_peak():
    peak = found(0.01 / SIZES**0.3, 0.05)
    assert math.isnan(peak.value) and peak.low == 0 and peak.why.startswith("no significant rise")


def test_order_and_units_do_not_matter():
    rng = np.random.default_rng(1)
    lr = LAWS["surge"].function(SIZES, 0.01, 200.0) * np.exp(0.05 * rng.normal(size=len(SIZES)))
    one = found(lr, 0.05)
    shuffled = rng.permutation(len(SIZES))
    assert found(lr[shuffled], 0.05, SIZES[shuffled])[1:5] == pytest.approx(one[1:5])
    scaled = found(3 * lr, 0.05, 7 * SIZES)
    expected = [7 * one.value, 7 * one.low, 7 * one.high]
    assert [scaled.value, scaled.low, scaled.high] == pytest.approx(expected, rel=1e-6)


def test_an_optimum_beyond_the_grid_hides_no_peak_and_makes_none():
    lr = LAWS["surge"].function(SIZES, 0.01, 200.0)
    beyond = np.zeros(len(SIZES), int)
    beyond[-1] = 1
    assert found(lr, 0.05, SIZES, beyond).high >= 1024  # the last optimum may lie anywhere above
    below = -beyond
    assert math.isfinite(found(lr, 0.05, SIZES, below).value)


def test_few_batch_sizes_have_no_peak():
    peak = found(SIZES[:3], 0.1, SIZES[:3])
    assert math.isnan(peak.value) and math.isnan(peak.p_fall) and "fewer than four" in peak.why
