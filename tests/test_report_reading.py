"""What is read of entries of every version."""

import math

import pytest

from surge.report.reading import known, outside, rate, representative, standing


def point(**changed):
    return {"lr": 0.01, "low": 0.005, "high": 0.02, "at_edge": False} | changed


@pytest.mark.parametrize(
    ("changed", "shown", "inside"),
    [
        ({}, "0.0100 [0.0050, 0.0200]", True),
        ({"bound": 0}, "0.0100 [0.0050, 0.0200]", True),
        ({"bound": 1, "at_edge": True, "high": None}, "≥ 0.0100", False),
        ({"bound": -1, "at_edge": True}, "≤ 0.0100", False),
        ({"at_edge": True}, "0.0100 (edge of the grid)", False),
        ({"low": None, "high": None}, "0.0100 (no interval)", False),
        ({"high": None}, "0.0100 [0.0050, ∞]", False),
        ({"lr": None, "low": None, "high": None}, "–", False),
    ],
)
def test_a_best_rate_says_what_is_known_of_it(changed, shown, inside):
    assert rate(point(**changed)) == shown
    assert known(point(**changed)) == inside
    assert outside(point(**changed)) == ("≥" in shown or "≤" in shown or "edge" in shown)


def test_the_middle_target_leads():
    entries = [{"optimizer": name, "target": t} for name in "ab" for t in (3, 2, 1)][:5]
    assert {name: entry["target"] for name, entry in representative(entries).items()} == {
        "a": 2,
        "b": 2,
    }


def test_laws_that_stand_have_akaike_weights():
    laws = {"a": {"aic": 10.0}, "b": {"aic": 12.0}, "c": {"aic": 16.5}, "d": {"aic": None}}
    weights = standing({"laws": laws})
    assert weights["a"] / weights["b"] == pytest.approx(math.e)
    assert sum(weights.values()) == pytest.approx(1) and set(weights) == {"a", "b"}
    assert standing({"laws": {"d": {"aic": None}, "e": {}}}) == {} == standing({"laws": {}})


def test_what_the_fit_says_of_its_laws_is_taken_from_it():
    laws = {"a": {"aic": 10.0, "weight": 0.0}, "c": {"aic": 16.5, "weight": 1.0}}
    assert standing({"laws": laws, "remaining": ["c"]}) == {"c": 1.0}
