"""Co-scaling rules: what they hold fixed, and where they end."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surge.theory.scaling import RULES, co_scale, valid_ratios

ADAM = {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 0.1, "warmup_steps": 100.0}


@pytest.mark.parametrize("rule", RULES)
def test_nothing_moves_at_the_same_batch_size(rule):
    assert co_scale(rule, 1.0, **ADAM) == pytest.approx(ADAM)


@pytest.mark.parametrize("rule", RULES)
@settings(deadline=None, max_examples=30)
@given(one=st.floats(0.1, 3), other=st.floats(0.1, 3))
def test_rules_compose_within_their_range(rule, one, other):
    stepwise = co_scale(rule, other, **co_scale(rule, one, **ADAM))
    assert stepwise == pytest.approx(co_scale(rule, one * other, **ADAM), rel=1e-9)


@pytest.mark.parametrize("rule", RULES)
def test_traced_and_concrete_agree(rule):
    traced = jax.jit(lambda kappa: co_scale(rule, kappa, **ADAM))(4.0)
    for name, value in co_scale(rule, 4.0, **ADAM).items():
        assert float(traced[name]) == pytest.approx(value, rel=1e-6)


def test_sde_rule():
    moved = co_scale("sde", 4.0, **ADAM)
    assert moved["b1"] == pytest.approx(0.6) and moved["b2"] == pytest.approx(0.996)
    assert moved["eps"] == pytest.approx(0.5e-8)
    # lr grows by √κ, so lr · decay per example stays: √κ·√κ/κ = 1
    assert moved["weight_decay"] == pytest.approx(0.2)


def test_half_life_in_examples_is_kept():
    for kappa in (0.25, 8.0):
        moved = co_scale("half_life", kappa, **ADAM)
        half_life = np.log(0.5) / np.log(moved["b2"]) * kappa
        assert half_life == pytest.approx(np.log(0.5) / np.log(0.999))
        assert moved["eps"] == ADAM["eps"]


def test_timescale_of_weight_decay_is_kept():
    assert co_scale("timescale", 8.0, **ADAM)["weight_decay"] == pytest.approx(0.8)
    assert co_scale("timescale", 8.0, **ADAM)["b2"] == ADAM["b2"]


@settings(deadline=None, max_examples=30)
@given(kappa=st.floats(0.1, 9), lr=st.floats(0.1, 10), horizon=st.floats(0.1, 10))
def test_weight_decay_follows_batch_size_rate_and_horizon(kappa, lr, horizon):
    """B/(rate · decay · D), in examples, is what Wang and Aitchison hold fixed."""
    for rule in ("sde", "timescale"):
        moved = co_scale(rule, kappa, lr_ratio=lr, horizon_ratio=horizon, **ADAM)
        timescale = kappa / (lr * moved["weight_decay"] * horizon)
        assert timescale == pytest.approx(1 / ADAM["weight_decay"])


@pytest.mark.parametrize(("decay", "end"), [(0.9, 10.0), (0.9875, 80.0), (0.999, 1000.0)])
def test_sde_says_where_it_ends_and_offers_a_rule_that_does_not(decay, end):
    assert valid_ratios("sde", b2=decay).high == pytest.approx(end)
    assert co_scale("sde", end, b2=decay)["b2"] == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match=rf"ends at {end:g} for b2 = {decay}.*half_life"):
        co_scale("sde", end * 1.01, b2=decay)


def test_beta_to_the_ratio_where_one_minus_beta_would_be_negative():
    with pytest.raises(ValueError, match=r"b2\^ratio = 0.361"):
        co_scale("sde", 81, b2=0.9875)
    assert co_scale("half_life", 81, b2=0.9875)["b2"] == pytest.approx(0.361, abs=1e-3)


def test_the_first_hyperparameter_to_end_is_named():
    ends = valid_ratios("sde", **ADAM)
    assert (ends.high, ends.high_name) == (pytest.approx(10), "b1")
    assert valid_ratios("half_life", **ADAM).high == math.inf
    assert valid_ratios("timescale", **ADAM) == (0.0, math.inf, "", "")


def test_inside_traced_code_a_rule_that_has_ended_is_nan_and_never_0():
    moved = jax.jit(lambda kappa: co_scale("sde", kappa, **ADAM))(jnp.float32(10.5))
    assert np.isnan(moved["b1"]) and moved["b2"] == pytest.approx(0.9895)


@pytest.mark.parametrize("rule", ["sde", "half_life"])
def test_a_decay_rate_that_float32_takes_for_1_is_refused(rule):
    low = valid_ratios(rule, b2=0.999).low
    assert np.float32(co_scale(rule, low * 1.01, b2=0.999)["b2"]) < 1
    with pytest.raises(ValueError, match="would be 1 in float32"):
        co_scale(rule, low / 2, b2=0.999)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kappa", [0.2, 50.0])
def test_no_average_stays_no_average(rule, kappa):
    assert co_scale(rule, kappa, b1=0.0)["b1"] == 0


def test_warmup_has_at_least_a_step():
    assert co_scale("timescale", 1e4, warmup_steps=100.0)["warmup_steps"] == 1
    assert co_scale("timescale", 0.5, warmup_steps=100.0)["warmup_steps"] == 200


@pytest.mark.parametrize("kappa", [0, -1, math.inf, math.nan])
def test_a_ratio_that_is_none_is_refused(kappa):
    with pytest.raises(ValueError, match="must be a finite number above 0"):
        co_scale("sde", kappa, **ADAM)


def test_an_unknown_rule_is_refused():
    for function in (co_scale, valid_ratios):
        with pytest.raises(ValueError, match="sde, half_life, timescale"):
            function("sqrt", *(2.0,) * (function is co_scale), **ADAM)
