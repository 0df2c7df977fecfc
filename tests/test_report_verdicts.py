"""Sentences say what was planted, and no more than the numbers hold."""

import math
from typing import Any

import numpy as np
import pytest
import xarray as xr
from stored import measurement

from surge.report.course import course
from surge.report.verdicts import answer, expectation, kappa, one_step, peak, winner

SIZES = (4, 16, 64, 256, 1024, 4096)


def entry(rates, error=0.02, **changed):
    """A fit whose optima have these rates, None for none, with 95% intervals of one width."""
    width = math.exp(1.96 * error)
    points = [
        {
            "batch_size": size,
            "lr": rate,
            "low": rate and rate / width,
            "high": rate and rate * width,
            "at_edge": False,
        }
        for size, rate in zip(SIZES, rates, strict=False)
    ]
    peak = {"value": None, "low": 4.0, "high": None, "why": ""}
    whole = {"optimal_lr": points, "b_peak": peak, "laws": {}}
    whole |= {"best_law": "sqrt", "best_law_why": ""}
    return whole | changed


@pytest.mark.parametrize(
    ("rates", "said"),
    [
        (
            (1, 2, 4, 7, 7, 7),
            "rises 7.0-fold [6.7, 7.3] from B = 4 to 256 and stays there to 4,096",
        ),
        ((1, 2, 4, 8, 16, 32), "rises 32-fold [30, 34] from B = 4 to 4,096;"),
        (
            (1, 2, 4, 4, 2, 1),
            "rises 4.0-fold [3.8, 4.2] from B = 4 to 64, stays there to 256 and falls 4.0-fold",
        ),
        ((1, 2, 4, 2, 1, 0.5), "from B = 4 to 64 and falls 8.0-fold [7.6, 8.5] to 4,096;"),
        ((4, 4, 2, 1), "is level from B = 4 to 16 and falls 4.0-fold [3.8, 4.2] to 256;"),
        ((4, 2, 1), "falls 4.0-fold [3.8, 4.2] from B = 4 to 64;"),
        (
            (1, 4, 1, 2),
            "falls 4.0-fold [3.8, 4.2] to 64 and is 2.0-fold [1.9, 2.1] above that at 256;",
        ),
        (
            (1, 1, 1),
            "does not move from B = 4 to 64 by more than these runs can tell (a factor 1.1",
        ),
    ],
)
def test_what_a_person_would_say(rates, said):
    assert said in answer(entry(rates))
    assert "beyond that nothing was tried" in answer(entry(rates))


def test_neighbours_that_agree_may_lean_one_way_together():
    """No two can be told apart, but all six together can."""
    rates = np.geomspace(1, 1.5, 6)
    assert "rises slowly, 1.5-fold from B = 4 to 4,096" in answer(entry(rates, error=0.15))
    assert "falls slowly, 1.5-fold" in answer(entry(rates[::-1], error=0.15))
    assert "does not move" in answer(entry(rates, error=0.4))


def test_what_the_grid_does_not_hold_is_said():
    optima = entry((1, 2, 4, 8, None, 8))
    above, *_ = (point for point in optima["optimal_lr"] if point["batch_size"] == 4096)
    above["bound"] = 1
    said = answer(optima)
    assert "from B = 4 to 256. At B = 4,096 it lies above the rates that were tried." in said
    assert "At B = 1,024 no best rate can be told. Beyond B = 4,096 nothing was tried." in said
    above |= {"bound": 0, "high": None}
    assert "At B = 4,096 the runs do not bound it on both sides." in answer(optima)


@pytest.mark.parametrize(
    ("rates", "p", "said"),
    [
        (
            (1, 2, 4, 2, 1),
            0.0123,
            "beyond that nothing was tried. Such a fall would come by chance with p = 0.01.",
        ),
        ((1, 2, 4, 8, 16), 0.6, "beyond that nothing was tried. No fall is seen (p = 0.60)."),
        ((1, 2, 4, 2, 1), 0.2, "beyond that nothing was tried. The fall may be chance (p = 0.20)."),
        ((1, 0.99, 0.98), 0.0004, "Such a fall would come by chance with p = 0.0004."),
    ],
)
def test_a_fall_has_its_p_value(rates, p, said):
    fit = entry(rates)
    fit["b_peak"]["p_fall"] = p
    assert said in answer(fit)


def test_one_optimum_or_none_moves_nowhere():
    assert "at B = 4 is 0.500, which is all that is known. At B = 16" in answer(entry((0.5, None)))
    assert answer(entry((None, None))).startswith("no batch size up to 16")
    assert course(entry((0.5,))) is None and course(entry(())) is None
    assert "no batch size" in answer(entry(()))


def test_optima_that_climb_together_are_no_plateau():
    """Neighbours agree with the highest, yet the line through them rises."""
    rates = np.exp(0.25 * np.arange(6))
    assert "from B = 4 to 1,024 and stays there to 4,096;" in answer(entry(rates, error=0.12))
    assert "level from B = 4 to 16 and falls" in answer(entry(rates[::-1], error=0.12))


def test_a_fold_is_of_the_whole_plateau():
    """Its interval is narrower than that of two optima, and holds what was planted."""
    rng = np.random.default_rng(1)
    truth = np.log([1, 2, 4, 4, 4, 4])
    held = 0
    for _ in range(300):
        moves = course(entry(np.exp(truth + 0.1 * rng.normal(size=6)), error=0.1))
        assert moves is not None
        error = math.hypot(moves.level.error, moves.first.error)
        held += abs(moves.level.log_lr - moves.first.log_lr - math.log(4)) < 1.96 * error
    assert held / 300 > 0.9


@pytest.mark.parametrize(
    ("height", "said"),
    [
        ([1.0, 1.0, 1.0], "κ over a run is measured as 0.800 [0.600, 1.10]: no surge is expected."),
        ([1.1, 1.0, 1.5], "a surge is neither to be expected nor ruled out."),
        ([1.1, 1.0, np.nan], "a surge is neither to be expected nor ruled out."),
        ([1.67, 1.25, 1.84], "a surge is expected, 1.67 [1.25, 1.84] times as high as the rate"),
    ],
)
def test_what_kappa_lets_expect(height, said):
    whole = measurement()
    stored = xr.full_like(whole.peak_over_plateau, 9.0)
    stored.loc[{"reading": "long run"}] = height
    assert said in expectation(whole.assign(peak_over_plateau=stored), "adam")


def test_the_last_checkpoint_that_knows_kappa_speaks():
    whole = measurement(losses=(3.0, 2.0, 1.0))
    unknown = whole.kappa.where(whole.loss > 1.5)
    assert "(loss 2.00)" in expectation(whole.assign(kappa=unknown), "adam")
    for nothing in (whole.drop_vars("kappa"), whole.assign(kappa=whole.kappa * np.nan), None):
        assert expectation(nothing, "adam") == ""
    assert expectation(whole, "lion") == ""


@pytest.mark.parametrize("factor", [1e-3, 7.0])
def test_the_unit_of_the_rate_does_not_matter(factor):
    rates = np.array([1, 2, 4, 4, 2, 1.0])
    assert answer(entry(rates)) == answer(entry(rates * factor))


def test_a_fall_by_chance_alone_is_rarely_told():
    """Of flat optima with a known error: one in twenty by the highest of them, one by the slope."""
    rng = np.random.default_rng(0)
    moved = 0
    for _ in range(400):
        said = answer(entry(np.exp(0.1 * rng.normal(size=6)), error=0.1))
        moved += "-fold" in said
    assert 0.02 < moved / 400 < 0.12


def test_where_the_peak_is_and_what_would_tell():
    assert peak(entry((1, 2))) == "No peak is seen; if there is one, it lies above B = 4."
    unseen = {"value": None, "low": 0.0, "high": None, "why": "no fall", "needs": "go on to 512"}
    assert peak(entry((1, 2), b_peak=unseen)) == "No peak is seen (no fall). Go on to 512."
    unknown = {"value": None, "low": None, "high": None, "why": "too few"}
    said = peak(entry((1, 2), b_peak=unknown))
    assert said == "Where the best rate peaks is not known (too few)."
    known = {"value": 64.0, "low": 16.0, "high": 1024.0}
    assert peak(entry((1, 2), b_peak=known)) == "The best rate peaks at B = 64.0 [16, 1,024]."
    needs = unseen | {"needs": "if one_law holds, with its peak at B = 90, go on"}
    said = peak(entry((1, 2), b_peak=needs, laws={"one_law": {}}))
    assert said.endswith("If the one law holds, with its peak at B = 90, go on.")


def test_which_law_is_named_and_which_are_left():
    why = "the data cannot tell capped_power from a power that differs by a factor of 2"
    laws = {"power": {"aic": 1.0}, "capped_power": {"aic": 2.0}, "bent_law": {"aic": 1e3}}
    nothing = entry((1, 2), best_law=None, best_law_why=why, laws=laws)
    assert winner(nothing) == (
        "No law can be named: the data cannot tell a power of B up to a cap from a power of B that "
        "differs by a factor of 2."
    )
    said = winner(entry((1, 2), best_law="capped_power", laws=laws))
    assert said.startswith("A power of B up to a cap describes the best rates; a power of B is not")
    said = winner(entry((1, 2), best_law="bent_law", laws={"bent_law": {"aic": 1.0}}))
    assert said == "Bent law describes the best rates; all other laws are ruled out."


def law_with_kappa(interval, height, opened=None) -> dict[str, Any]:
    return {
        "params": {"kappa": 0.2},
        "intervals": {"kappa": interval},
        "derived": {"peak_over_plateau": height},
        "open": {} if opened is None else {"kappa": opened},
        "aic": 1.0,
    }


@pytest.mark.parametrize(
    ("law", "said"),
    [
        (
            law_with_kappa([0.1, 0.3], [1.25, 1.1, 1.7]),
            "κ = 0.200 [0.100, 0.300] from the sweep: a surge, its peak 1.25 [1.10, 1.70] times",
        ),
        (
            law_with_kappa([0.1, 2.0], [1.25, 1.0, 1.7]),
            "from the sweep: a surge is left open, the peak being 1.25 [1.00, 1.70] times",
        ),
        (
            law_with_kappa([45.0, None], [1.0, 1.0, 1.0], "the search ended"),
            "κ ≥ 45 from the sweep: no surge that a sweep could see.",
        ),
        (
            law_with_kappa([0, 0.14], [2.6, 1.6, None], "the search ended"),
            "κ ≤ 0.14 from the sweep: a surge, its peak at least 1.6 times the rate",
        ),
    ],
)
def test_kappa_is_said_of_a_law_that_remains(law, said):
    assert said in kappa(entry((1, 2, 4), laws={"any_name": law}))
    assert kappa(entry((1, 2, 4), laws={"any_name": law | {"aic": None}})) == ""
    better = law | {"aic": -100.0, "params": {}}
    assert kappa(entry((1, 2, 4), laws={"any_name": law, "better": better})) == ""


def test_a_kappa_that_may_be_anything_is_not_said():
    law = law_with_kappa([0, None], [1.0, 1.0, None], "the search ended there")
    assert kappa(entry((1, 2, 4), laws={"any_name": law})) == ""


def estimates(independent, oracle=1.0, config='{"learning_rate_ratio": 1.5}'):
    """One optimizer at two checkpoints and two batch sizes, intervals of a tenth each way."""
    ones = np.ones((2, 1, 2, 1)) * np.array([1, 0.9, 1.1])
    scale = np.array(independent)[None, None, :, None]
    dims = ("checkpoint", "optimizer", "batch_size", "bound")
    return xr.Dataset(
        {
            "independent_lr": (dims, ones * scale),
            "measured_lr": (dims, ones * 1.1),
            "oracle_lr": (dims, ones * oracle),
        },
        {"optimizer": ["adam"], "batch_size": [8, 64], "bound": ["value", "low", "high"]},
        {"config": config},
    )


def test_independence_is_blamed_where_it_fails_by_much_and_not_by_chance():
    distance, blame = one_step(estimates([4.0, 1.2]))
    assert "measured directions within a factor 1.10 (worst 1.10, n = 4)" in distance
    assert "the independent law within a factor 2.60 (worst 4.00, n = 4)" in distance
    assert "more than a grid step (1.50)" in blame and "at B = 8: its premise" in blame
    assert len(one_step(estimates([1.3, 0.8]))) == 1


def test_what_is_not_stored_is_not_said():
    whole = estimates([4.0, 1.2])
    assert one_step(whole.drop_vars("oracle_lr")) == []
    assert len(one_step(whole.drop_vars("independent_lr"))) == 1
    assert len(one_step(estimates([4.0, 1.2], config="{}"))) == 1  # the grid's step is unknown
    assert one_step(whole * np.nan) == []
