"""The audit of planted sweeps: a small part of it, and its page."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

SCRIPT = Path(__file__).parent.parent / "scripts" / "audit_fits.py"
audit_fits = SimpleNamespace(**runpy.run_path(str(SCRIPT)))

HARDEST = [  # where rivals were named or peaks claimed before
    ("√, then flat", 5, 4.0, 0.1),
    ("√, then flat", 8, 2.0, 0.05),
    ("α = ½", 5, 4.0, 0.1),
    ("power 0.33", 4, 4.0, 0.05),
    ("saturating, r = 0.3", 6, 4.0, 0.05),
    ("surge to 1x", 6, 4.0, 0.05),
]
ALL = [pytest.param(*cell, marks=pytest.mark.slow) for cell in audit_fits.cells()]


def check(name, count, ratio, error, repetitions):
    outcome = audit_fits.audit(name, count, ratio, error, repetitions)
    most = stats.binom.ppf(0.9999, repetitions, 0.05) / repetitions
    assert outcome.wrong <= most
    if audit_fits.TRUTHS[name].peaked:
        assert 1 - outcome.covered <= most
    else:
        assert outcome.peak <= most
    if error == audit_fits.THREE_SEEDS:
        least = stats.binom.ppf(0.001, repetitions, 0.85) / repetitions
        assert outcome.peak >= least


@pytest.mark.parametrize(("name", "count", "ratio", "error"), HARDEST)
def test_no_wrong_law_and_no_peak_where_there_is_none(name, count, ratio, error):
    check(name, count, ratio, error, 30)


@pytest.mark.parametrize(("count", "ratio"), [(5, 4.0), (8, 2.0)])
def test_the_peak_of_a_surge_is_seen_with_three_seeds(count, ratio):
    check("surge to 4x", count, ratio, audit_fits.THREE_SEEDS, 30)


@pytest.mark.parametrize(("name", "count", "ratio", "error"), ALL)
def test_the_whole_audit(name, count, ratio, error):
    check(name, count, ratio, error, 100)


@pytest.mark.parametrize("name", audit_fits.TRUTHS)
def test_truths_peak_inside_the_data_where_they_say(name):
    truth = audit_fits.TRUTHS[name]
    grid = audit_fits.batch_sizes(8, 2.0)
    dense = np.geomspace(grid[0], grid[-1], 2001)
    curve = truth.log_lr(dense, grid)
    top = int(curve.argmax())
    assert (0 < top < len(dense) - 1 and curve[top] > curve[-1] + 0.01) == truth.peaked


def test_the_page_names_the_worst_kinds():
    good = audit_fits.Outcome(0.5, 0.01, 0.02, float("nan"))
    bad = audit_fits.Outcome(0.5, 0.2, 0.3, float("nan"))
    three = audit_fits.Outcome(0.5, 0.0, 0.91, 0.97)
    page = audit_fits.page(
        {
            ("√", 4, 4.0, 0.1): good,
            ("α = ½", 5, 4.0, 0.2): bad,
            ("surge to 4x", 5, 4.0, audit_fits.THREE_SEEDS): three,
        },
        100,
    )
    assert "20% (α = ½, 5 batch sizes x4, error 0.2)" in page
    assert "30% (α = ½, 5 batch sizes x4, error 0.2)" in page and "91% to" in page
    assert "| √ | 4, x4 | 0.1 | 50 | 1 | 2 | – |" in page
