"""Numbers as people read them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surge.report.formats import count, estimate, interval, listed, number, percent


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0098789, "0.00988"),
        (0.012, "0.0120"),
        (1.2999, "1.30"),
        (304.08, "304"),
        (999.6, "1,000"),
        (86640.85, "86,600"),
        (1234567.0, "1,230,000"),
        (1.2345e12, "1.23e12"),
        (3.2e-7, "3.20e-7"),
        (-2.957, "-2.96"),
        (0.0, "0"),
        (None, "–"),
        (math.nan, "–"),
        (math.inf, "∞"),
        (-math.inf, "-∞"),
    ],
)
def test_numbers(value, shown):
    assert number(value) == shown


@given(st.floats(1e-5, 1e8))
def test_three_digits_say_the_value_to_half_a_percent(value):
    assert float(number(value).replace(",", "")) == pytest.approx(value, rel=0.0051)


def test_batch_sizes_are_whole():
    assert [count(size) for size in (1, 1024, 16.0, 2.5, None)] == ["1", "1,024", "16", "2.50", "–"]


def test_an_interval_is_open_where_a_bound_is_missing():
    assert interval(None, None) == interval(math.nan, None) == "–"
    assert interval(0, None) == "[0, ∞]"
    assert interval(None, 1) == "[-∞, 1.0]"
    assert interval(1, math.inf) == "[1.0, ∞]"


@pytest.mark.parametrize(
    ("bounds", "shown"),
    [
        ((0.0144, 0.01222, 0.016655), "0.0144 [0.0122, 0.0167]"),
        ((0.0177, 0.0031922, 4.142721), "0.0177 [0.0032, 4.14]"),
        ((106.0, 4.04, 2790.0), "106 [4.0, 2,790]"),
        ((5.0, 3.0, None), "5.00 [3.00, ∞]"),
        ((5.0, None, None), "5.00 (no interval)"),
        ((math.nan, 1.0, 2.0), "–"),
        ((None, None, None), "–"),
    ],
)
def test_an_interval_has_the_digits_of_its_value(bounds, shown):
    assert estimate(bounds) == shown


def test_undefined_estimates_have_a_reason():
    assert estimate([math.nan] * 3, "too few") == estimate([math.inf, 1, math.inf], "too few")


def test_lists_and_shares():
    assert [listed(items) for items in ((), "a", "ab", "abc")] == ["", "a", "a and b", "a, b and c"]
    assert (percent(0.25), percent(math.nan), percent(None)) == ("25.00%", "–", "–")
