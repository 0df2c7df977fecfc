"""Figures draw what is stored, nothing where it is undefined, and no label on top of another."""

import re
import warnings
from functools import partial
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from stored import SIZES, best, measurement, store_fits, store_sweep

from surge.report import (
    checkpoint_figures,
    drawing,
    loss_map,
    svg,
    sweep_figures,
    sweep_sections,
)
from surge.report.drawing import COLOR, COLUMN, WIDTH, Panel
from surge.report.reading import plain
from surge.theory.comparison import RULED_OUT
from surge.workdir import sweeps

ONCE = {"params": {"max_lr": 0.1}, "intervals": {"max_lr": [0.05, 0.2]}}


def figure(draw, width=WIDTH):
    return drawing.draw(Panel("", draw), width)


def legend(drawn):
    return [text.get_text() for legend in drawn.legends for text in legend.get_texts()]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("fitted")
    store_sweep(workdir)
    entries = store_fits(workdir)
    return sweeps.open_sweep(workdir), entries


@pytest.fixture(scope="module")
def row():
    return measurement().isel(checkpoint=0).sel(optimizer="adam")


def texts(drawn):
    """Bounding boxes of every text that is shown, in pixels."""
    drawn.draw_without_rendering()
    found = [text for axes in drawn.axes for text in axes.texts]
    for axes in drawn.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
            found += [
                axis.label,
                *(label for tick in ticks for label in (tick.label1, tick.label2)),
            ]
    found += [text for legend in drawn.legends for text in legend.get_texts()]
    shown = (text for text in found if text.get_text() and text.get_visible())
    return {text.get_text(): text.get_window_extent() for text in shown}


def every_panel(fitted, row):
    sweep, entries = fitted
    cells = sweep_sections.loss_cells(sweep, "adam", 1.5)
    assert cells is not None
    laws = {name: float(row[name]) for name in checkpoint_figures.COEFFICIENTS}
    sizes = {"batch_sizes": SIZES, "exact": np.ones(4), "true": np.ones(4)}
    measured = {"measured": measurement()}
    return {
        "rates": partial(sweep_figures.optimal_lr, entry=entries[0]),
        "targets": partial(sweep_figures.optimal_lr_by_target, entries=entries),
        "basins": partial(sweep_figures.basins, entry=entries[0]),
        "compared": partial(sweep_figures.compared, entries=dict(zip("ab", entries, strict=True))),
        "map": partial(loss_map.loss_map, cells=cells, entry=entries[1]),
        "time": partial(sweep_figures.data_against_time, entries=entries),
        "noise": partial(checkpoint_figures.noise_along_training, entries=entries, **measured),
        "layers": partial(checkpoint_figures.layer_noise, **measured),
        "validity": partial(checkpoint_figures.validity, **measured),
        "one step": partial(checkpoint_figures.one_step, checkpoint=row),
        "branches": partial(checkpoint_figures.branches, checkpoint=row),
        "forms": partial(checkpoint_figures.closed_forms, **sizes, **laws),
    }


@pytest.mark.parametrize("width", [WIDTH, COLUMN])
def test_no_label_lies_on_another_or_outside(fitted, row, width):
    for name, draw in every_panel(fitted, row).items():
        drawn = figure(draw, width)
        boxes = texts(drawn)
        page = drawn.bbox
        for text, box in boxes.items():
            assert page.x0 <= box.x0 and box.x1 <= page.x1, (name, text)
            assert page.y0 <= box.y0 and box.y1 <= page.y1 + 1, (name, text)
        for one, first in boxes.items():
            for other, second in boxes.items():
                assert one == other or not first.overlaps(second), (name, one, other)


def test_a_legend_hides_no_data(fitted, row):
    for name, draw in every_panel(fitted, row).items():
        drawn = figure(draw)
        drawn.draw_without_rendering()
        for axes in drawn.axes:
            for legend in drawn.legends:
                below = legend.get_window_extent().y1 <= axes.get_window_extent().y0
                assert below, name
        assert drawn.axes[0].get_legend() is None


def test_colors_are_variables_of_the_page_in_both_themes(fitted, row):
    for name, draw in every_panel(fitted, row).items():
        markup = svg.element(Panel("", draw), "it")
        used = set(re.findall(r"var\(--(\w+)\)", markup))
        assert {"ink", "grid"} - {"grid" if name == "map" else ""} <= used
        assert not set(COLOR.values()) & set(re.findall("#[0-9a-f]{6}", markup)), name
        drawn = svg.standalone(markup)
        assert all(f"--{role}:{COLOR[role]}" in drawn for role in used)
    for dark in (False, True):
        assert all(f"--{role}:" in drawing.variables(dark) for role in COLOR)
    assert len(set(COLOR.values())) == len(COLOR)


def test_texts_are_as_they_were_given():
    """Coordinates are shortened, what is read is not."""
    words = "0.00123456 a<b & url(#x)"

    def draw(axes):
        axes.set_title(words)

    markup = svg.element(Panel("", draw), "it")
    assert "0.00123456 a&lt;b &amp; url(#x)" in markup


def test_a_drawing_is_the_same_each_time(fitted):
    draw = partial(sweep_figures.optimal_lr, entry=fitted[1][0])
    assert svg.element(Panel("", draw), "it") == svg.element(Panel("", draw), "it")


@given(st.lists(st.floats(-0.5, 1.5), max_size=14).map(sorted))
def test_labels_at_ends_keep_their_order_and_their_distance(heights):
    moved = drawing.spread(heights)
    assert len(moved) == len(heights)
    assert all(np.diff(moved) >= drawing.NEAREST - 1e-9)
    assert all(-1e-9 <= height <= 1 + 1e-9 for height in moved)


def test_labels_that_have_room_stay():
    assert drawing.spread([0.1, 0.5, 0.9]) == pytest.approx([0.1, 0.5, 0.9])
    assert drawing.spread([0.5] * 40) == pytest.approx(np.linspace(0, 1, 40))


def test_laws_that_are_ruled_out_are_gray(fitted):
    """Planted: two laws within reach of each other, one beyond it, one that was never judged."""
    entry = fitted[1][0]
    criteria = {"constant": 1.0, "sqrt": 2.0, "linear": 1.1 + RULED_OUT, "power": None}
    entry = {name: value for name, value in entry.items() if name != "remaining"}  # as it once was
    laws = {name: {**entry["laws"][name], "aic": aic} for name, aic in criteria.items()}
    for law in laws.values():
        law.pop("weight", None)
    drawn = figure(partial(sweep_figures.optimal_lr, entry=entry | {"laws": laws}))
    ends = {text.get_text(): text.get_color() for text in drawn.axes[0].texts}
    law, gray = COLOR["law"], COLOR["rejected"]
    assert ends == {"constant": law, "√B": law, "linear": gray}
    remaining = {"laws": laws, "remaining": ["sqrt"]}
    drawn = figure(partial(sweep_figures.optimal_lr, entry=entry | remaining))
    ends = {text.get_text(): text.get_color() for text in drawn.axes[0].texts}
    assert ends == {"constant": gray, "√B": law, "linear": gray}


def test_the_band_spans_what_remains_and_the_mean_lies_inside(fitted):
    entry = fitted[1][0]
    names = ["constant", "sqrt"]
    laws = {name: entry["laws"][name] | {"aic": 1.0, "weight": 0.5} for name in names}
    entry = entry | {"laws": laws, "remaining": names}
    [axes] = figure(partial(sweep_figures.optimal_lr, entry=entry)).axes
    heavy = max(axes.lines, key=lambda line: line.get_linewidth())
    sizes = np.asarray(heavy.get_xdata())
    curves = [sweep_figures.law_curve(entry, name, sizes) for name in ("constant", "sqrt")]
    assert heavy.get_ydata() == pytest.approx(np.sqrt(curves[0] * curves[1]))
    band = np.asarray(axes.collections[-1].get_paths()[0].vertices)
    assert band[:, 1].max() == pytest.approx(np.max(curves))
    assert band[:, 1].min() == pytest.approx(np.min(curves))


def test_a_point_says_its_value_where_the_pointer_rests(fitted):
    entry = fitted[1][0]
    markup = svg.element(Panel("", partial(sweep_figures.optimal_lr, entry=entry)), "it")
    titles = re.findall("<title>(.*?)</title>", markup)
    assert len(titles) == len(SIZES) and re.fullmatch(r"B = 4: 0\.04\d+ \[.*\]", titles[0])


def test_basins_pass_through_their_optima(fitted):
    """A ring for each batch size, at its best rate and on the lowest point of its curve."""
    entry = fitted[1][0]
    [axes] = figure(partial(sweep_figures.basins, entry=entry)).axes
    rings = [line for line in axes.lines if line.get_markersize() == 9]
    curves = [line for line in axes.lines if line.get_linestyle() == "-"]
    assert len(rings) == len(curves) == len(SIZES)
    for ring, curve, point in zip(rings, curves, entry["optimal_lr"], strict=True):
        assert ring.get_xdata() == pytest.approx([point["lr"]])
        assert ring.get_ydata() == pytest.approx([np.min(curve.get_ydata())], rel=0.01)
        assert ring.get_ydata() == pytest.approx([point["steps"]], rel=0.01)


def test_an_optimum_beyond_the_grid_is_an_arrow(fitted):
    entry = fitted[1][0]
    points = [
        point | {"bound": bound}
        for point, bound in zip(entry["optimal_lr"], (1, -1, 0, 0), strict=True)
    ]
    [axes] = figure(partial(sweep_figures.optimal_lr, entry=entry | {"optimal_lr": points})).axes
    markers = [container[0].get_marker() for container in axes.containers]
    assert markers == ["^", "v", "o", "o"]


def test_cells_that_were_not_run_differ_from_those_that_diverged(tmp_path):
    store_sweep(tmp_path, broken=(256,))
    [entry] = store_fits(tmp_path, targets=(None,))
    sweep = sweeps.open_sweep(tmp_path)
    sweep["diverged"].loc[{"batch_size": 4, "learning_rate": sweep.learning_rate[0]}] = np.nan
    sweep["loss"].loc[{"batch_size": 4, "learning_rate": sweep.learning_rate[0]}] = np.nan
    cells = sweep_sections.loss_cells(sweep, "adam", None)
    assert cells is not None
    assert (cells.diverged.sel(batch_size=256)).all() and int(cells.diverged.sum()) == 9
    drawn = figure(partial(loss_map.loss_map, cells=cells, entry=entry))
    assert {"not run", "diverged"} <= set(legend(drawn))
    fates = {}
    for cell in drawn.axes[0].patches:
        fates.setdefault(str(cell.get_gid()).rpartition(": ")[2], []).append(cell)
    blank, hatched = fates["not run"], fates["diverged"]
    assert len(blank) == 1 and not blank[0].get_hatch() and blank[0].get_fill()
    assert len(hatched) == 9 and all(cell.get_hatch() for cell in hatched)
    assert {tuple(cell.get_facecolor()) for cell in hatched} == {(0, 0, 0, 0)}
    assert (
        sweep_sections.loss_cells(sweep.where(sweep.batch_size == 256, drop=True), "adam", None)
        is None
    )


def test_where_no_law_is_named_the_map_shows_the_one_that_predicts_best(fitted):
    sweep, entries = fitted
    cells = sweep_sections.loss_cells(sweep, "adam", 1.5)
    assert cells is not None
    errors: dict[str, Any] = dict.fromkeys(entries[1]["laws"], 0.5)
    errors["power"] = 0.2
    for error, law in ((0.1, "constant"), (0.9, "power"), (None, "power")):
        errors["constant"] = error
        laws = {
            name: law | {"held_out_rmse_log": errors[name]}
            for name, law in entries[1]["laws"].items()
        }
        entry = entries[1] | {"best_law": None, "laws": laws}
        drawn = figure(partial(loss_map.loss_map, cells=cells, entry=entry))
        assert f"fitted: {plain(law)}" in legend(drawn)


def test_a_law_without_parameters_has_no_curve(fitted):
    entry = {"laws": {"power": {"params": {"max_lr": None, "exponent": 1.0}}, "nameless": ONCE}}
    for name in ("power", "nameless", "absent"):
        assert np.isnan(sweep_figures.law_curve(entry, name, np.ones(3))).all()


def test_edges_of_cells_lie_halfway():
    assert loss_map.edges(np.array([1, 4, 16])) == pytest.approx([0.5, 2, 8, 32])
    assert loss_map.edges(np.array([3.0])) == pytest.approx([3 / 2**0.5, 3 * 2**0.5])


def test_estimates_of_one_step_are_drawn_as_they_are(row):
    [axes] = figure(partial(checkpoint_figures.one_step, checkpoint=row)).axes
    line = next(line for line in axes.lines if "measured directions" in str(line.get_label()))
    assert line.get_ydata() == pytest.approx([0.9 * best(size) for size in SIZES])
    assert line.get_color() == COLOR["measured"]


def test_nothing_to_draw_means_no_legend(tmp_path):
    """A legend without entries is a warning, which fails the test."""
    store_sweep(tmp_path, broken=SIZES)
    entries = store_fits(tmp_path)
    whole = measurement()
    numbers = [name for name, values in whole.data_vars.items() if values.dtype == float]
    empty = whole.assign({name: whole[name] * np.nan for name in numbers if name != "loss"})
    row = empty.isel(checkpoint=0).sel(optimizer="adam")
    nothing = dict.fromkeys(checkpoint_figures.COEFFICIENTS, np.nan)
    for draw in (
        partial(sweep_figures.optimal_lr, entry=entries[0]),
        partial(sweep_figures.optimal_lr_by_target, entries=[]),
        partial(sweep_figures.basins, entry=entries[0]),
        partial(sweep_figures.data_against_time, entries=[]),
        partial(checkpoint_figures.noise_along_training, measured=empty, entries=[]),
        partial(checkpoint_figures.layer_noise, measured=empty),
        partial(checkpoint_figures.validity, measured=empty.isel(checkpoint=[])),
        partial(checkpoint_figures.one_step, checkpoint=row),
        partial(checkpoint_figures.branches, checkpoint=row),
        partial(checkpoint_figures.closed_forms, batch_sizes=SIZES, **nothing),
    ):
        with warnings.catch_warnings(action="error"):
            assert legend(figure(draw)) == []


@pytest.mark.parametrize(
    ("changed", "left_out"),
    [
        ({}, set()),
        (
            {"off_diagonal": -400.0, "b_noise": np.inf, "max_lr": np.inf},
            {"large batches", "small batches: the surge"},
        ),
        ({"off_diagonal": -100.0}, {"large batches"}),
    ],
)
def test_closed_forms_of_any_summary(changed, left_out):
    """Of a minimum and of saddles, with and without what only a measurement knows."""
    names = {"one signal-to-noise ratio for all", "small batches: the surge", "large batches"}
    row = measurement(**changed).isel(checkpoint=0)
    summary = {name: float(row[name]) for name in checkpoint_figures.COEFFICIENTS}
    draw = partial(checkpoint_figures.closed_forms, batch_sizes=SIZES, **summary)
    drawn = figure(draw)
    assert set(legend(drawn)) == names - left_out
    assert all(np.nanmin(line.get_ydata()) > 0 for line in drawn.axes[0].lines)
    drawn = figure(partial(draw, exact=np.ones(4), true=np.ones(4)))
    assert {"exact, every μ and σ", "true one-step optimum"} < set(legend(drawn))


def test_a_stored_curve_is_drawn_by_the_law_that_has_its_parameters(row):
    """Whatever the law is called, and nothing where the registry has lost it."""
    for names, drawn in ((["max_lr", "exponent"], True), (["max_lr", "lost"], False)):
        stored = row.drop_vars("measured_curve")
        stored = stored.assign(measured_curve=("parameter", [0.1, 0.5]), parameter=names)
        shown = legend(figure(partial(checkpoint_figures.one_step, checkpoint=stored)))
        assert ("power through the measured" in shown) == drawn


def test_an_interval_without_an_end_is_cut(row):
    estimate = xr.DataArray(
        [[2.0, 1.0, np.inf]], dims=("x", "bound"), coords={"bound": ["value", "low", "high"]}
    )
    value, low, high = checkpoint_figures._bounds(estimate)
    assert (value, low, high) == (2.0, 1.0, 2.0 * checkpoint_figures.ENDLESS)
