"""Every rival against a second implementation, its own peak, and the laws that it contains."""

import math

import numpy as np
import pytest

from surge.theory import rivals
from surge.theory.fit import fit_law
from surge.theory.rivals import LAWS

SIZES = 2.0 ** np.arange(2, 13)
# name -> shape parameters, the law at batch size b and scale 1, batch size of its peak
EXAMPLES = {
    "constant": ({}, lambda b: 1.0, math.nan),
    "sqrt": ({}, lambda b: b**0.5, math.inf),
    "linear": ({}, lambda b: b, math.inf),
    "power": ({"exponent": 0.3}, lambda b: b**0.3, math.inf),
    "capped_sqrt": ({"b_knee": 90.0}, lambda b: (b / 90) ** 0.5 if b < 90 else 1.0, math.inf),
    "capped_linear": ({"b_knee": 90.0}, lambda b: b / 90 if b < 90 else 1.0, math.inf),
    "capped_power": (
        {"b_knee": 90.0, "exponent": 0.7},
        lambda b: (b / 90) ** 0.7 if b < 90 else 1.0,
        math.inf,
    ),
    "sgd": ({"b_noise": 90.0}, lambda b: b / (b + 90), math.inf),
    "mccandlish": (
        {"b_noise": 90.0, "alpha": 0.7},
        lambda b: (b / (b + 90)) ** 0.7,
        math.inf,
    ),
    "surge": ({"b_noise": 90.0}, lambda b: 2 * (90 * b) ** 0.5 / (90 + b), 90.0),
    "one_law": (
        {"b_turn": 90.0, "kappa": 0.1},
        lambda b: 2 * 0.3 * (1 + 900 / b) ** 0.5 / (1 + 0.1 * 900 / b),
        90 / 0.8,
    ),
}


def test_every_law_has_an_example():
    assert set(EXAMPLES) == set(LAWS)


@pytest.mark.parametrize("name", LAWS)
def test_laws_equal_a_second_implementation(name):
    shape, form, _ = EXAMPLES[name]
    expected = [0.003 * form(size) for size in SIZES]
    np.testing.assert_allclose(LAWS[name].function(SIZES, 0.003, **shape), expected)
    by_name = LAWS[name].function(SIZES, **{"max_lr": 0.003, **shape})
    np.testing.assert_allclose(by_name, expected)
    stacked = {key: np.full((2, 1), value) for key, value in shape.items()}
    rows = np.broadcast_to(LAWS[name].function(SIZES, 0.003, **stacked), (2, len(SIZES)))
    np.testing.assert_allclose(rows, [expected, expected])


@pytest.mark.parametrize("name", LAWS)
def test_a_law_brings_its_own_peak(name):
    shape, _, peak = EXAMPLES[name]
    law = LAWS[name]
    assert law.peak(**shape) == pytest.approx(peak, nan_ok=True)
    assert np.shape(law.peak(**{key: np.full(3, value) for key, value in shape.items()})) in (
        (3,),
        (),
    )
    dense = np.geomspace(1e-3, 1e6, 20_001)
    curve = np.broadcast_to(law.function(dense, 1.0, **shape), dense.shape)
    if math.isfinite(peak):
        assert dense[curve.argmax()] == pytest.approx(peak, rel=2e-3)
    elif math.isinf(peak):
        assert (np.diff(curve) >= 0).all() and curve[-1] > curve[0]
    else:
        assert (np.diff(curve) <= 0).all()


@pytest.mark.parametrize(
    ("name", "special"), [(name, part) for name in LAWS for part in LAWS[name].generalises]
)
def test_a_law_contains_what_it_generalises(name, special):
    shape, _, _ = EXAMPLES[special]
    lr = np.broadcast_to(LAWS[special].function(SIZES, 0.01, **shape), SIZES.shape)
    fit = fit_law(name, SIZES, lr, np.full(len(SIZES), 0.1))
    assert np.abs(fit.residuals).max() < 0.05


def test_surge_has_the_table_of_theory():
    table = {2: 0.943, 3: 0.866, 4: 0.800, 6: 0.700, 10: 0.575, 30: 0.353}
    for k, share in table.items():
        assert rivals.surge(k * 7.0, 1.0, 7.0) == pytest.approx(share, abs=1e-3)
        assert rivals.surge(7.0 / k, 1.0, 7.0) == pytest.approx(share, abs=1e-3)


def test_the_one_law_is_the_family_of_the_others():
    """κ -> 0 is the surge, κ = 1 McCandlish's with α = ½, κ -> ∞ SGD's; the peak is max_lr."""
    surge = rivals.one_law(SIZES, 0.01, 90.0, 1e-9)
    np.testing.assert_allclose(surge, rivals.surge(SIZES, 0.01, 90.0), rtol=1e-4)
    half = rivals.one_law(SIZES, 0.01, 90.0, 1.0)
    np.testing.assert_allclose(half, rivals.mccandlish(SIZES, 0.01, 90.0, 0.5))
    sgd = rivals.one_law(SIZES, 0.01, 90.0, 1e9)
    np.testing.assert_allclose(sgd, rivals.sgd(SIZES, 0.01, 90.0), rtol=1e-6)
    dense = np.geomspace(1e-2, 1e8, 10_001)
    for kappa in (0.01, 0.1, 0.4, 0.7, 5.0):
        curve = rivals.one_law(dense, 0.01, 90.0, kappa)
        assert curve.max() == pytest.approx(0.01, rel=1e-4)
        ratio = rivals.peak_over_plateau(90.0, kappa)
        assert curve.max() / curve[-1] == pytest.approx(ratio, rel=1e-3)


def test_peaks_that_depend_on_a_parameter():
    assert np.isnan(LAWS["power"].peak(exponent=-0.5))
    assert np.isinf(LAWS["one_law"].peak(b_turn=9.0, kappa=0.5))
    assert rivals.peak_over_plateau(9.0, 0.5) == 1
