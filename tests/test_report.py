"""The page and its figures, from stored results that other tests compute: whole, empty, undefined
and damaged."""

import re
from functools import partial

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure

from surge.entries import fit_entry
from surge.report import figures, page
from surge.theory.objective import FinalLoss, StepsTo
from surge.workdir import files, sweeps

SIZES = (4, 16, 64, 256)
RATES = tuple(2.0**power for power in range(-8, 1))
SEEDS = (0, 1, 2)
ATTRIBUTES = {"config": '{"grid": "dense"}', "versions": '{"surge": "0.1"}', "devices": "2 x cpu"}


def best(size):
    """A surge that peaks at 64."""
    return 0.1 * 2 / (np.sqrt(64 / size) + np.sqrt(size / 64))


def store_sweep(workdir, optimizer="adam", rates=RATES, broken=()):
    """Runs whose loss falls fastest at `best`, to the same 1.0 at any size; those of `broken` sizes
    all diverge."""
    rng = np.random.default_rng(0)
    steps = np.array([1, 4, 16, 64, 256])
    for size in SIZES:
        slowness = (
            1 + np.log(np.array(rates) / best(size))[:, None, None] ** 2
        )  # [learning_rate, seed, eval]
        noise = np.exp(0.02 * rng.normal(size=(1, len(SEEDS), 1)))
        loss = 1 + 2 * np.exp(-steps / (10 * slowness * noise * (1 + 60 / size)))
        diverged = np.full(loss.shape[:2], size in broken)
        loss = np.where(diverged[..., None], np.nan, loss)
        dataset = sweeps.piece_dataset(
            optimizer, size, rates, SEEDS, steps, loss, diverged, ATTRIBUTES
        )
        files.write_dataset(sweeps.sweep_path(workdir, optimizer, size), dataset)


def store_fits(workdir, optimizer="adam", targets=(2.0, 1.5)):
    sweep = sweeps.open_sweep(workdir)
    entries = [
        fit_entry(
            sweeps.rows(sweep, optimizer, objective),
            objective.judged_by,
            optimizer=optimizer,
            target_loss=objective.target_loss,
        )
        for objective in (FinalLoss() if target is None else StepsTo(target) for target in targets)
    ]
    files.write_json(workdir / "fit.json", {"fits": entries})
    return entries


def measurement(losses=(3.0, 1.6), optimizers=("adam", "sgd"), **changed):
    """What the measure stage stores: SGD has no independent law, the second horizon no room, one
    layer no number."""
    bounds = np.array([1.0, 0.8, np.inf])
    lr = np.broadcast_to(
        np.array([best(size) for size in SIZES])[:, None] * [1, 0.7, 1.5], (len(losses), 2, 4, 3)
    )
    adam = np.array([1, np.nan])[:, None, None]
    horizon = np.array([1, np.nan])[:, None]
    each = {
        "loss": ("checkpoint", list(losses)),
        "step": ("checkpoint", [10 * index for index in range(len(losses))]),
        "noise_scale": (
            ("checkpoint", "scale", "bound"),
            np.tile([100 * bounds, np.nan * bounds], (len(losses), 1, 1)),
        ),
        "noise_scale_why": (
            ("checkpoint", "scale"),
            [["", "no normalisation layers"]] * len(losses),
        ),
        "layer_noise": (
            ("checkpoint", "layer", "bound"),
            np.tile([50 * bounds, np.nan * bounds], (len(losses), 1, 1)),
        ),
        "layer_noise_why": (("checkpoint", "layer"), [["", "the mean may be zero"]] * len(losses)),
        "validity": (
            ("checkpoint", "quantile", "bound"),
            np.tile([10 * bounds], (len(losses), 1, 1)),
        ),
        "validity_share": (("checkpoint", "validity_bin"), np.full((len(losses), 4), 0.25)),
        "zero_share": ("checkpoint", np.zeros(len(losses))),
        "drift": (("quantity", "bound"), np.full((1, 3), np.nan)),
        "drift_n": ("quantity", [2]),
        "drift_why": ("quantity", ["defined at fewer than three losses"]),
        "independent_lr": (("checkpoint", "optimizer", "batch_size", "bound"), lr * adam * 1.1),
        "measured_lr": (("checkpoint", "optimizer", "batch_size", "bound"), lr * 0.9),
        "oracle_lr": (("checkpoint", "optimizer", "batch_size", "bound"), lr),
        "branch_lr": (
            ("checkpoint", "optimizer", "batch_size", "horizon", "bound"),
            lr[:, :, :, None] * horizon * adam[..., None],
        ),
        "measured_curve": (
            ("checkpoint", "optimizer", "parameter"),
            np.tile([0.1, 900.0, 0.1], (len(losses), 2, 1)),
        ),
        "measured_surge": (
            ("checkpoint", "optimizer", "surge_parameter", "bound"),
            np.tile([[0.1, 0.09, 0.11], [40.0, 30.0, 50.0]], (len(losses), 2, 1, 1)),
        ),
        "measured_surge_why": (("checkpoint", "optimizer"), [["", ""]] * len(losses)),
        "measured_peak": (
            ("checkpoint", "optimizer", "bound"),
            np.tile([np.inf, 9.0, np.inf], (len(losses), 2, 1)),
        ),
        "measured_peak_why": (
            ("checkpoint", "optimizer"),
            [["no significant fall"] * 2] * len(losses),
        ),
        "measured_examples": (("checkpoint", "optimizer"), np.full((len(losses), 2), 1e4)),
        "branch_examples": (("checkpoint", "optimizer"), np.full((len(losses), 2), 1e5)),
    }
    summary = {
        "mu_l1": 30.0,
        "trace": 100.0,
        "off_diagonal": 400.0,
        "snr": 0.1,
        "b_noise": 40.0,
        "max_lr": 0.1,
        "r": 0.25,
    }
    each |= {
        name: ("checkpoint", np.full(len(losses), value))
        for name, value in (summary | changed).items()
    }
    coords = {
        "optimizer": list(optimizers),
        "batch_size": list(SIZES),
        "surge_parameter": ["max_lr", "b_noise"],
        "horizon": [1, 4],
        "bound": ["value", "low", "high"],
        "scale": ["b_simple", "normalisation"],
        "layer": ["first", "last"],
        "quantile": [0.5],
        "quantity": ["r = D/O"],
        "validity_bin": np.logspace(0, 3, 4),
    }
    return xr.Dataset(
        each,
        coords,
        ATTRIBUTES | {"optimizer": "adam"},
    )


def axes():
    return Figure().subplots()


def labels(drawn):
    return (
        []
        if drawn.get_legend() is None
        else [text.get_text() for text in drawn.get_legend().get_texts()]
    )


def text(workdir):
    return re.sub("<[^>]+>", " ", (workdir / "report.html").read_text())


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("reported")
    store_sweep(workdir)
    store_fits(workdir)
    files.write_dataset(workdir / "measure.nc", measurement())
    page.write(workdir)
    return workdir


def test_the_page_needs_no_network(reported):
    markup = (reported / "report.html").read_text()
    assert not re.search("https?://|<link|<script|@import|url\\(", markup)
    sources = re.findall('src="(.{22})', markup)
    assert (
        set(sources) == {"data:image/png;base64,"}
        and len(sources) == len([*reported.glob("figures/*.png")]) == 7
    )


def test_numbers_stand_under_their_figures(reported):
    parts = (reported / "report.html").read_text().split("<figure>")[1:]
    assert len(parts) == 7 and all("<table>" in part for part in parts)
    said = text(reported)
    for number in ("0.0471 [", "50 [40, ∞]", "25.00%", "100 [80, ∞]", "B = 256"):
        assert number in said


def test_undefined_numbers_have_their_reason(reported):
    said = text(reported)
    assert (
        "no normalisation layers" in said
        and "the mean may be zero" in said
        and page.NO_BRANCH in said
    )
    assert (
        "none seen (no significant fall)" in said and "defined at fewer than three losses" in said
    )
    assert "does not take the sign" in said
    assert not re.search(r"\b(nan|None|inf)\b", said)


def test_the_map_of_the_loss_shows_what_the_nearest_checkpoint_predicts(reported):
    assert "from the checkpoint at loss 1.6" in text(reported)  # the targets are 2 and 1.5
    sweep, checkpoint = sweeps.open_sweep(reported), measurement().isel(checkpoint=1)
    loss, entry = (
        sweeps.loss_when_first_arrives(sweep, "adam", 1.5),
        files.read_fits(reported)[1],
    )
    predicted = {"adam": 2, "sgd": 1}  # no independent law for SGD
    for optimizer, count in predicted.items():
        figures.heat_map(drawn := axes(), loss, entry, checkpoint.sel(optimizer=optimizer))
        assert sum(label.startswith("predicted") for label in labels(drawn)) == count
        assert "swept optimum" in labels(drawn)
    line = next(each for each in drawn.lines if "measured" in str(each.get_label()))
    assert line.get_ydata() == pytest.approx([0.9 * best(size) for size in SIZES])


def test_where_no_law_is_named_the_map_shows_the_one_that_predicts_best(tmp_path):
    store_sweep(tmp_path)
    [entry] = store_fits(tmp_path, targets=(None,))
    loss = sweeps.loss_when_first_arrives(sweeps.open_sweep(tmp_path), "adam", None)
    errors = dict.fromkeys(entry["laws"], 0.5) | {"power": 0.2}
    for error, law in ((0.1, "constant"), (0.9, "power"), (None, "power")):
        errors["constant"] = error
        laws = {
            name: each | {"held_out_rmse_log": errors[name]} for name, each in entry["laws"].items()
        }
        figures.heat_map(drawn := axes(), loss, entry | {"best_law": None, "laws": laws})
        assert f"fitted: {law}" in labels(drawn)


def test_one_learning_rate_is_a_row_of_cells(tmp_path):
    store_sweep(tmp_path, rates=(0.1,))
    [entry] = store_fits(tmp_path, targets=(None,))
    loss = sweeps.loss_when_first_arrives(sweeps.open_sweep(tmp_path), "adam", None)
    figures.heat_map(drawn := axes(), loss, entry)
    assert drawn.get_ylim()[0] < 0.1 < drawn.get_ylim()[1]
    page.write(tmp_path)


def test_a_sweep_that_diverged_has_a_sentence_for_a_map(tmp_path):
    store_sweep(tmp_path, broken=SIZES)
    store_fits(tmp_path)
    page.write(tmp_path)
    assert "every run diverged" in text(tmp_path) and not (tmp_path / "figures").exists()


def test_a_batch_size_that_diverged_is_left_blank(tmp_path):
    store_sweep(tmp_path, broken=(256,))
    store_fits(tmp_path)
    page.write(tmp_path)
    assert len(list((tmp_path / "figures").glob("*.png"))) == 2


def test_nothing_to_draw_means_no_legend(tmp_path):
    """A legend without entries is a warning, which fails the test."""
    store_sweep(tmp_path, broken=SIZES)
    entries = store_fits(tmp_path)
    nothing = xr.full_like(measurement()[[*figures.COEFFICIENTS]], np.nan)
    empty = measurement().map(
        lambda each: each * np.nan if each.dtype == float and each.name != "loss" else each
    )
    row = empty.isel(checkpoint=0).sel(optimizer="adam")
    for draw in (
        partial(figures.optimal_lr, entry=entries[0]),
        partial(figures.optimal_lr_by_target, entries=[]),
        partial(figures.data_against_time, entries=[]),
        partial(figures.noise_along_training, measured=empty, entries=[]),
        partial(figures.layer_noise, measured=empty),
        partial(figures.validity, measured=empty.isel(checkpoint=[])),
        partial(figures.one_step, checkpoint=row),
        partial(figures.branches, checkpoint=row),
        partial(figures.closed_forms, batch_sizes=SIZES, **{name: np.nan for name in nothing}),
    ):
        draw(drawn := axes())
        assert labels(drawn) == []


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
    summary = {name: float(row[name]) for name in figures.COEFFICIENTS}
    figures.closed_forms(drawn := axes(), SIZES, **summary)
    assert set(labels(drawn)) == names - left_out
    assert all(np.nanmin(line.get_ydata()) > 0 for line in drawn.lines)
    figures.closed_forms(drawn := axes(), SIZES, **summary, exact=np.ones(4), true=np.ones(4))
    assert {"exact, every μ and σ", "true one-step optimum"} < set(labels(drawn))


def test_a_measurement_alone_makes_a_page(tmp_path):
    files.write_dataset(tmp_path / "measure.nc", measurement(losses=(3.0,)))
    page.write(tmp_path)
    assert "measured directions within a factor 1.11" in text(
        tmp_path
    ) and "surge 0.1; 2 x cpu" in text(tmp_path)


def test_pieces_made_unlike_are_said_so(tmp_path):
    store_sweep(tmp_path)
    path = sweeps.sweep_path(tmp_path, "adam", 4)
    files.write_dataset(path, sweeps.read_piece(path).assign_attrs(devices="8 x TPU v4"))
    store_fits(tmp_path)
    page.write(tmp_path)
    assert "not all pieces of the sweep were made alike; devices: 2 x cpu and 8 x TPU v4" in text(
        tmp_path
    ).lower().replace("tpu", "TPU")


@pytest.mark.parametrize(
    "content", ["{}", "[]", '{"fits": 3}', '{"fits": [{"optimizer": "adam"}]}', '{"fits": [']
)
def test_a_damaged_fit_is_named(tmp_path, content):
    (tmp_path / "fit.json").write_text(content)
    with pytest.raises(files.ResultError, match=r"fit\.json cannot be read .*: delete that file"):
        page.write(tmp_path)


@pytest.mark.parametrize("name", ["measure.nc", "sweep/adam-b8.nc"])
def test_a_foreign_file_is_named(reported, tmp_path, name):
    for each in ("fit.json", "measure.nc"):
        (tmp_path / each).write_bytes((reported / each).read_bytes())
    files.write_dataset(tmp_path / name, xr.Dataset({"temperature": ("day", [1.0, 2.0])}))
    with pytest.raises(
        files.ResultError, match=rf"{name} cannot be read \(it is of another kind, without .*loss"
    ):
        page.write(tmp_path)
