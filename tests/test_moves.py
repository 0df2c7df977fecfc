"""Moves of the batch size that a report tells: from the middle of a sweep, and beyond its end."""

import math
import re
import shutil

import pytest
from stored import SIZES, best, store_fits, store_sweep

from surge.moves import typical_moves
from surge.report import page
from surge.workdir import files


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("fitted")
    store_sweep(workdir)
    store_fits(workdir)
    return workdir


def test_moves_go_down_up_and_beyond_the_sweep(fitted):
    moves = typical_moves(fitted, {"adam": "adam"})
    assert [(move.from_batch_size, move.to_batch_size) for move in moves] == [
        (64, 16),
        (64, 256),
        (64, 4 * SIZES[-1]),
    ]
    for move in moves[:2]:
        value, low, high = move.lr
        assert low <= value <= high
        assert value == pytest.approx(best(move.to_batch_size), rel=0.25)
    assert moves[0].rules["sqrt"] == pytest.approx(moves[0].from_lr / 2)


def test_the_page_tells_them(fitted, tmp_path):
    workdir = shutil.copytree(fitted, tmp_path / "whole")
    page.write(workdir, typical_moves(workdir, {"adam": "adam"}))
    said = re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", (workdir / "report.html").read_text()))
    assert "64 → 1,024" in said and "by rules of thumb" in said


def test_what_suggest_does_not_know_has_no_moves(fitted):
    assert typical_moves(fitted, {}) == []
    assert typical_moves(fitted, {"adam": "some_module:my_own"}) == []


def test_a_fit_without_optima_or_of_an_earlier_version_has_none_or_some(fitted, tmp_path):
    workdir = shutil.copytree(fitted, tmp_path / "old")
    entries = files.read_fits(workdir)
    for entry in entries:
        entry.pop("remaining")
        for point in entry["optimal_lr"]:
            point.pop("bound")
            point.pop("error")
        for law in entry["laws"].values():
            for name in ("score", "weight", "derived", "open"):
                law.pop(name)
    files.write_json(workdir / "fit.json", {"fits": entries})
    assert all(math.isfinite(move.lr[0]) for move in typical_moves(workdir, {"adam": "adam"}))
    for entry in entries:
        for point in entry["optimal_lr"]:
            point.update(lr=None, low=None, high=None)
    files.write_json(workdir / "fit.json", {"fits": entries})
    assert typical_moves(workdir, {"adam": "adam"}) == []
