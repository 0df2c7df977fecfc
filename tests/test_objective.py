"""What runs are judged by: known answers, a naive second implementation, and yesterday's bits."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from reference import first_last_loss, first_rows_value, first_steps_to, further_fall

from surge.theory.objective import FallAfter, FinalLoss, StepsTo

NAN = np.nan


@st.composite
def recorded_runs(draw):
    """(loss [rate, seed, eval], diverged [rate, seed], eval_steps) as a sweep leaves them."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rates, seeds, evals = rng.integers(1, 6, 3)
    drift = rng.normal(-0.3, 0.5, (rates, seeds, evals))
    loss = (3.0 + drift.cumsum(-1)).astype(draw(st.sampled_from((np.float32, float))))
    diverged = rng.random((rates, seeds)) < 0.2
    for run in np.ndindex(rates, seeds):
        end = rng.integers(1, evals + 1)
        loss[run][end:] = NAN
        if diverged[run]:
            loss[run][end - 1] = rng.choice([NAN, np.inf, 1e4])
    steps = np.sort(rng.choice(np.arange(1, 60), evals, replace=False))
    return loss, diverged, tuple(steps.tolist())


def test_steps_to_interpolates_log_steps_in_the_loss():
    loss = np.array([[4.0, 2.0, 1.0], [4.0, 3.0, 2.5], [0.5, 0.4, NAN]])
    got = StepsTo(1.5).value(loss, np.zeros(3, bool), (1, 4, 16))
    np.testing.assert_allclose(got, [np.log(8), np.inf, 0])


def test_final_loss_is_the_last_one_recorded():
    loss = np.array([[3.0, 2.0, 1.0], [3.0, 0.5, NAN], [9.0, NAN, NAN], [NAN, NAN, NAN]])
    diverged = np.array([False, False, True, False])
    np.testing.assert_array_equal(
        FinalLoss().value(loss, diverged, (1, 2, 3)), [1.0, 0.5, np.inf, NAN]
    )


@pytest.mark.parametrize(
    ("loss", "diverged", "want"),
    [
        ([4.0, 2.0, 1.0, 0.5], False, -1.25),  # step 12 lies half way between 1.0 and 0.5
        ([4.0, 1.9, 2.5, 2.1], False, 0.4),  # the first dip counts, lucky as it was
        ([4.0, 3.0, 2.5, 2.1], False, np.inf),  # never there
        ([4.0, 2.0, NAN, NAN], False, NAN),  # the run ended, and would have gone on
        ([4.0, 2.0, NAN, NAN], True, np.inf),
        ([4.0, 2.0, 9e3, NAN], True, np.inf),  # it diverged within those steps
        ([4.0, 2.0, 1.0, NAN], True, np.inf),  # the loss it diverged with, as far as one can tell
        ([1.0, 0.5, 0.25, 0.0], False, -0.625),  # there at the first evaluation
    ],
)
def test_the_further_fall_of_known_runs(loss, diverged, want):
    got = FallAfter(2.0, 6).value(np.array([loss]), np.array([diverged]), (2, 6, 10, 14))
    np.testing.assert_allclose(got, [want])


@settings(max_examples=200, deadline=None)
@given(recorded_runs(), st.floats(0.0, 4.0), st.integers(1, 30))
def test_the_further_fall_equals_a_loop_over_evaluations(runs, target, steps):
    loss, diverged, eval_steps = runs
    loss = loss.astype(float)
    got = FallAfter(target, steps).value(loss, diverged, eval_steps)
    for run in np.ndindex(*diverged.shape):
        want = further_fall(loss[run], diverged[run], eval_steps, target, steps)
        np.testing.assert_allclose(got[run], want, rtol=1e-9, atol=1e-9)


@settings(max_examples=200, deadline=None)
@given(recorded_runs(), st.floats(0.0, 4.0))
def test_values_are_those_of_the_first_sweeps_bit_for_bit(runs, target):
    """In the dtype that the loss comes in: float32 from a program, float64 from a workdir."""
    loss, diverged, eval_steps = runs
    steps = StepsTo(target).value(loss, diverged, eval_steps)
    with np.errstate(invalid="ignore"):  # the frozen code warned at a first loss of inf
        np.testing.assert_array_equal(steps, first_steps_to(loss, eval_steps, target))
    np.testing.assert_array_equal(
        FinalLoss().value(loss, diverged, eval_steps), first_last_loss(loss, diverged)
    )


@settings(max_examples=100, deadline=None)
@given(recorded_runs(), st.floats(0.0, 4.0))
def test_values_are_those_of_the_first_fits(runs, target):
    """The first fits went through steps and back, which moves the last bit of a short run."""
    loss, diverged, eval_steps = runs
    whole = loss.astype(float)[None, None], diverged.astype(float)[None, None]
    steps = np.asarray(eval_steps, float)[None, None]
    for objective in (StepsTo(target), FinalLoss()):
        got = objective.value(loss.astype(float), diverged, eval_steps)
        with np.errstate(invalid="ignore"):
            want = first_rows_value(*whole, steps, objective.target_loss)[0, 0]
        np.testing.assert_array_equal(np.isfinite(got), np.isfinite(want))
        known = np.isfinite(got)
        np.testing.assert_allclose(got[known], want[known], rtol=0, atol=2e-16)
        long = known & (got > 2)
        np.testing.assert_array_equal(got[long], want[long])


def test_evaluations_of_their_own_for_each_batch_size():
    """Padded with nan at the end, as a sweep of several batch sizes holds them."""
    loss = np.array([[[4.0, 2.0, 1.0]], [[4.0, 1.0, NAN]]])
    steps = np.array([[[1.0, 4.0, 16.0]], [[1.0, 2.0, NAN]]])
    diverged = np.zeros((2, 1))
    got = StepsTo(2.0).value(loss, diverged, steps)
    np.testing.assert_allclose(got[:, 0], [np.log(4), 2 / 3 * np.log(2)])
    np.testing.assert_array_equal(FallAfter(2.0, 6).value(loss, diverged, steps)[:, 0], [-0.5, NAN])


def test_objectives_are_told_apart():
    assert len({StepsTo(1.0), FallAfter(1.0, 10), FallAfter(1.0, 20), FinalLoss()}) == 4
    kinds = [(each.judged_by, each.target_loss) for each in (StepsTo(2), FinalLoss())]
    assert kinds == [("steps", 2), ("loss", None)]
    assert (FallAfter(2, 9).judged_by, FallAfter(2, 9).target_loss) == ("fall", 2)
