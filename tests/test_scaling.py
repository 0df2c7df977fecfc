"""Co-scaling rules: what they hold fixed, and where they are clipped."""

import numpy as np
import pytest

from surge.theory.scaling import RULES, co_scale

ADAM = {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 0.1, "warmup_steps": 100.0}


@pytest.mark.parametrize("rule", RULES)
def test_nothing_moves_at_the_same_batch_size(rule):
    assert {
        name: float(each) for name, each in co_scale(rule, 1.0, **ADAM).items()
    } == pytest.approx(ADAM)


@pytest.mark.parametrize("rule", RULES)
def test_rules_compose_within_their_range(rule):
    twice = co_scale(rule, 2.0, **co_scale(rule, 2.0, **ADAM))
    once = co_scale(rule, 4.0, **ADAM)
    assert {name: float(each) for name, each in twice.items()} == pytest.approx(
        {name: float(each) for name, each in once.items()}, rel=1e-5
    )


def test_sde_rule():
    moved = co_scale("sde", 4.0, **ADAM)
    assert float(moved["b1"]) == pytest.approx(0.6) and float(moved["b2"]) == pytest.approx(0.996)
    assert float(moved["eps"]) == pytest.approx(0.5e-8)
    # lr grows by √κ, so lr · decay per example stays: √κ·√κ/κ = 1
    assert float(moved["weight_decay"]) == pytest.approx(0.2)


def test_half_life_in_examples_is_kept():
    for kappa in (0.25, 8.0):
        moved = co_scale("half_life", kappa, **ADAM)
        half_life = np.log(0.5) / np.log(np.float64(moved["b2"])) * kappa
        assert half_life == pytest.approx(np.log(0.5) / np.log(0.999), rel=2e-3)
        assert moved["eps"] == ADAM["eps"]


def test_timescale_of_weight_decay_is_kept():
    assert co_scale("timescale", 8.0, **ADAM)["weight_decay"] == pytest.approx(0.8)
    assert co_scale("timescale", 8.0, **ADAM)["b2"] == ADAM["b2"]


def test_rules_are_clipped_where_they_leave_their_range():
    assert co_scale("sde", 1e4, **ADAM)["b1"] == 0  # 1 − 1e3 would be far below 0
    assert float(co_scale("sde", 1e4, **ADAM)["warmup_steps"]) == 1
    assert co_scale("half_life", 1e-9, **ADAM)["b2"] < 1


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="sde, half_life, timescale"):
        co_scale("sqrt", 2.0, **ADAM)
