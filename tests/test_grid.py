"""The plan of a grid: which cells, how far, and one sentence where there are none."""

import numpy as np
import pytest
from grids import PIECES, planned


def test_plan():
    assert [piece.batch_size for piece in PIECES] == [64, 8]
    assert PIECES[0].eval_steps == (1, 2, 3, 4, 5, 7, 8, 10)
    assert PIECES[1].eval_steps[-1] == 60
    rates = PIECES[0].learning_rates
    np.testing.assert_allclose(np.diff(np.log2(rates)), 0.5, rtol=1e-9)
    assert 0.02 <= rates[0] < 0.03 < 0.49 < rates[-1] <= 0.7
    assert PIECES[1].cells == 3 * len(rates)
    assert PIECES[1].examples == 3 * len(rates) * 60 * 8


def test_plan_from_a_later_step():
    """Horizons count from there, in examples (here at batch size 64) or in steps (at 8)."""
    later = planned(start_step=100)
    assert [piece.eval_steps[-1] for piece in later] == [110, 160]
    assert later[0].eval_steps[0] == 101
    assert [piece.examples for piece in later] == [piece.examples for piece in PIECES]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"optimizers": {"sgd": ("sgd", (0.3, 0.31))}}, "no power of"),
        ({"max_examples": 32}, "no step at batch size 64"),
    ],
)
def test_a_grid_that_holds_nothing_says_so(change, words):
    with pytest.raises(ValueError, match=words):
        planned(**change)
