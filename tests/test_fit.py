"""Laws fitted to planted optima."""

import math

import numpy as np
import pytest
from scipy.special import erf

from surge.theory.fit import compare_laws, fit_law

SIZES = 2.0 ** np.arange(2, 13)


B_NOISE, B_PEAK, TOP = 300.0, 200.0, 0.01


def saturating(size, b_scale, r, top=TOP):
    mean = erf(np.sqrt(size / b_scale))
    return top * 2 / math.sqrt(r) * mean / (1 + mean**2 / r)


PLANTED = {
    "constant": lambda size: TOP + 0 * size,
    "sqrt": lambda size: 0.001 * np.sqrt(size),
    "linear": lambda size: 1e-4 * size,
    "power": lambda size: 0.001 * size**0.3,
    "mccandlish": lambda size: TOP / (1 + 100 / size) ** 0.7,
    "surge": lambda size: TOP * 2 / (np.sqrt(B_PEAK / size) + np.sqrt(size / B_PEAK)),
    "saturating_surge": lambda size: saturating(size, 2000, 0.1),
    "saturating_surge, r = 1": lambda size: saturating(size, 200, 1.0),
    "saturating_surge, r = 2": lambda size: saturating(size, 200, 2.0),
}


def test_an_outlier_does_not_move_a_law():
    lr = PLANTED["surge"](SIZES)
    lr[4] *= 5
    assert fit_law("surge", SIZES, lr).parameters["b_noise"] == pytest.approx(B_PEAK, rel=0.15)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, 0.0, -1.0])
def test_a_law_is_not_fitted_to_what_is_not_above_zero(wrong):
    good, bad = np.ones(5), np.array([1.0, 1.0, wrong, 1.0, 1.0])
    with pytest.raises(ValueError, match="each learning rate must be finite and above 0"):
        fit_law("sqrt", good, bad)
    with pytest.raises(ValueError, match="each batch size must be finite and above 0"):
        fit_law("sqrt", bad, good)


def test_held_out_errors_and_their_standard_error_equal_a_loop():
    rng = np.random.default_rng(7)
    error = rng.uniform(0.05, 0.2, len(SIZES))
    lr = PLANTED["sqrt"](SIZES) * np.exp(error * rng.normal(size=len(SIZES)))
    level, squares = np.log(lr / np.sqrt(SIZES)), []
    for index in range(len(SIZES)):
        others = np.arange(len(SIZES)) != index
        squares.append(
            (level[index] - np.average(level[others], weights=1 / error[others] ** 2)) ** 2
        )
    found = compare_laws(SIZES, lr, error)
    root = math.sqrt(np.mean(squares))
    assert found.held_out["sqrt"] == pytest.approx(root)
    assert found.held_out_se["sqrt"] == pytest.approx(
        np.std(squares, ddof=1) / math.sqrt(len(SIZES)) / (2 * root)
    )


def test_no_law_is_named_where_all_misfit_by_far():
    sizes = np.array([16, 64, 256, 1024, 4096.0])
    rates = np.array(
        [0.0023, 0.0069, 0.0062, 0.0059, 0.0059]
    )  # a step that no law has, then flat: not a constant
    found = compare_laws(sizes, rates, np.array([0.05, 0.08, 0.05, 0.13, 0.38]))
    assert found.best is None and "no law fits" in found.why
