"""The page, from stored results: whole, of an older version, empty, undefined and damaged."""

import base64
import datetime
import html
import json
import re
import shutil
import xml.etree.ElementTree as ElementTree
import zlib

import pytest
import xarray as xr
from stored import SIZES, measurement, store_fits, store_sweep

from surge.report import page, summary
from surge.report.answer import FEW
from surge.report.findings import Findings
from surge.report.markup import file_name
from surge.theory import rivals
from surge.workdir import files, sweeps

ONE_STEP = "One step from single checkpoints"
RESULTS = ("fashion_mnist", "moe", "text")


def markup(workdir):
    return (workdir / "report.html").read_text()


def text(workdir):
    """What a reader reads, on one line."""
    unread = "<style>.*?</style>|<script>.*?</script>|<svg.*?</svg>"
    body = re.sub(unread, " ", markup(workdir), flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub("<[^>]+>", " ", body)))


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A sweep with its fits, to copy."""
    workdir = tmp_path_factory.mktemp("fitted")
    store_sweep(workdir)
    store_fits(workdir)
    return workdir


@pytest.fixture
def swept(fitted, tmp_path):
    """A copy to change."""
    return shutil.copytree(fitted, tmp_path / "swept")


@pytest.fixture(scope="module")
def reported(fitted, tmp_path_factory):
    workdir = shutil.copytree(fitted, tmp_path_factory.mktemp("reported") / "whole")
    files.write_dataset(workdir / "measure.nc", measurement())
    page.write(workdir)
    return workdir


def test_the_page_asks_for_nothing(reported):
    asked = r"https?://|<link|@import|url\((?!#)| src=|fetch\(|XMLHttpRequest|import\("
    assert not re.search(asked, markup(reported))
    assert len(markup(reported)) < 5e5


def unpacked(workdir):
    """The page with the pictures in its folds, as its script shows them."""

    def picture(match):
        return zlib.decompress(base64.b64decode(match[1])).decode()

    return re.sub('<div class="picture" data-packed="([^"]*)">', picture, markup(workdir))


def test_every_panel_is_on_the_page_and_a_file_of_its_own(reported):
    pictures = sorted((reported / "figures").glob("*.svg"))
    assert len(pictures) == unpacked(reported).count("<svg") > 10
    assert 0 < markup(reported).count("<svg") < len(pictures)
    for picture in pictures:
        root = ElementTree.parse(picture).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert root.find(".//{*}text") is not None, picture  # text that can be read and found


def test_identifiers_are_unique_and_every_reference_has_one(reported):
    whole = unpacked(reported)
    identifiers = re.findall(r'\bid="([^"]*)"', whole)
    assert len(identifiers) == len(set(identifiers))
    references = re.findall(r'(?:url\(|href=")#([^")]*)', whole)
    assert references and set(references) <= set(identifiers)


def test_the_page_can_be_read_without_seeing(reported):
    body = markup(reported)
    assert body.count("<main>") == body.count("<h1>") == body.count("<nav ") == 1
    tables = body.count("<table>")
    assert tables == body.count("<caption>") == body.count("<thead>") > 5
    assert unpacked(reported).count('role="img" aria-label="') == body.count("<figure ") > 10
    assert 'aria-label=""' not in body and body.count("<figcaption>") == body.count("<figure ")
    captions = re.findall("<(?:figcaption|caption><span)>(.*?)</", body)
    assert len(captions) == len(set(captions))


def test_the_answer_comes_first(reported):
    said = text(reported)
    start = said.index("What was found")
    answered = said[start : said.index("Noise along training", start)]
    assert (
        "adam: the best rate rises" in answered
        and "κ" in answered
        and "beyond that nothing was tried" in answered
    )
    assert "Best learning rate with 95% interval" in answered


def test_one_step_estimates_predict_nothing(reported):
    said = text(reported).lower()
    assert "predict" not in said
    start = markup(reported).index('id="One-step-from-single-checkpoints"')
    assert "one-step" not in markup(reported)[:start].partition("<nav")[0]
    folded = markup(reported)[start:].partition("</section>")[0]
    assert folded.count("<details>") == 4 <= folded.count("<figure")  # two checkpoints of each


def test_numbers_stand_in_tables(reported):
    said = text(reported)
    for number in ("0.0471 [", "50.0 [40.0, ∞]", "25.00%", "100 [80, ∞]", "256"):
        assert number in said, number


def test_undefined_numbers_have_their_reason(reported):
    said = text(reported)
    for why in (
        "no normalisation layers",
        "the mean may be zero",
        "no best rate where the budget has no room",
        "none seen (no significant fall)",
        "defined at fewer than three losses",
        "does not take the sign",
    ):
        assert why in said, why
    assert not re.search(r"\b(nan|None|inf)\b", said)


def test_what_the_user_named_is_escaped(swept):
    entry = files.read_fits(swept)[0]
    files.write_json(swept / "fit.json", {"fits": [entry | {"optimizer": "<b>&'\""}]})
    page.write(swept)
    assert "<b>" not in markup(swept) and "<b>&'\"" in text(swept)
    for picture in (swept / "figures").glob("*.svg"):
        ElementTree.parse(picture)


@pytest.mark.parametrize("name", RESULTS)
def test_published_results_of_an_earlier_version_still_draw(pytestconfig, tmp_path, name):
    published = pytestconfig.rootpath / "docs" / "results" / name / "fit.json"
    (tmp_path / "fit.json").write_bytes(published.read_bytes())
    page.write(tmp_path)
    assert "the best rate" in text(tmp_path)
    assert any("the best rate" in line for line in summary.lines(tmp_path))


def test_a_measurement_without_one_variable_still_draws():
    whole = measurement()
    titles = {section.title for section in page.sections_of(Findings([], None, whole))}
    for missing in set(whole.data_vars) - {*files.MEASURED}:
        findings = Findings([], None, whole.drop_vars([missing]))
        kept = {section.title for section in page.sections_of(findings)}
        assert kept == titles - ({ONE_STEP} if missing == "measured_lr" else set()), missing


def test_a_measurement_of_loss_and_step_alone_is_said_where_it_is_from(tmp_path):
    least = measurement()[[*files.MEASURED]]
    files.write_dataset(tmp_path / "measure.nc", least)
    page.write(tmp_path)
    assert "Noise along training" not in text(tmp_path) and "surge 0.1" in text(tmp_path)


def test_a_new_law_shows_on_the_page_from_the_registry_alone(swept, monkeypatch):
    entry = files.read_fits(swept)[0]
    law = rivals.LAWS["power"]._replace(name="bent_twice")
    monkeypatch.setitem(rivals.LAWS, "bent_twice", law)
    entry["laws"]["bent_twice"] = entry["laws"]["power"] | {"aic": 5.0}
    files.write_json(swept / "fit.json", {"fits": [entry]})
    page.write(swept)
    assert "bent twice" in text(swept)
    assert "bent twice" in (swept / "figures" / "best-rate-adam.svg").read_text()


def test_a_law_that_the_registry_has_lost_is_a_row_without_a_curve(swept):
    entry = files.read_fits(swept)[0]
    entry["laws"]["forgotten"] = entry["laws"]["power"]
    files.write_json(swept / "fit.json", {"fits": [entry]})
    page.write(swept)
    assert "forgotten" in text(swept)
    assert "forgotten" not in (swept / "figures" / "best-rate-adam.svg").read_text()


def test_many_groups_are_folded(swept):
    entry = files.read_fits(swept)[0]
    entries = [entry | {"optimizer": f"group={index}"} for index in range(6)]
    files.write_json(swept / "fit.json", {"fits": entries})
    page.write(swept)
    found = markup(swept).partition("<nav")[0]
    assert "group=4" not in found.partition("<details>")[0] and "group=4" in found
    assert "and 2 more groups, in the report" in summary.lines(swept)


def test_of_very_many_groups_the_later_ones_are_lean(swept):
    """Their best rates and basins are drawn, the map and the laws that are ruled out are not."""
    entry = files.read_fits(swept)[0]
    names = [f"group={index}" for index in range(13)]
    files.write_json(swept / "fit.json", {"fits": [entry | {"optimizer": name} for name in names]})
    page.write(swept)
    told = markup(swept)
    for index, name in enumerate(names):
        assert f'id="{file_name(f"best-rate-{name}")}"' in told
        assert f'id="{file_name(f"{name}-basins")}"' in told
        laws = told.partition(f"{name}: laws fitted")[2].partition("</table>")[0]
        assert ("ruled out" in laws) == (index < FEW)
    assert "The other 9" in told and told.count("group=12") < told.count("group=0")


def test_what_is_missing_and_how_a_table_was_read_come_first(swept):
    entries = files.read_fits(swept)
    entries[0]["remark"] = "no run of adam reaches loss 2"
    about = {"missing": ["adam-b8", "adam-b512"], "remarks": ["3 of 9 rows count as diverged"]}
    files.write_fits(swept, entries, **about)
    page.write(swept)
    start = text(swept).partition("adam: the best rate")[0]
    assert "incomplete: 2 of its pieces are missing (adam-b8 and adam-b512)" in start
    assert "No run of adam reaches loss 2." in start and "3 of 9 rows count as diverged." in start


def test_a_sweep_that_diverged_has_a_sentence_for_a_map(tmp_path):
    store_sweep(tmp_path, broken=SIZES)
    store_fits(tmp_path)
    page.write(tmp_path)
    assert "every run diverged" in text(tmp_path) and not (tmp_path / "figures").exists()


def test_one_learning_rate_is_a_row_of_cells(tmp_path):
    store_sweep(tmp_path, rates=(0.1,))
    store_fits(tmp_path, targets=(None,))
    page.write(tmp_path)
    assert "Loss over batch size and learning rate" in text(tmp_path)


def test_where_it_was_made_is_said(tmp_path):
    files.write_dataset(tmp_path / "measure.nc", measurement(losses=(3.0,)))
    page.write(tmp_path)
    assert "measured directions within a factor 1.11" in text(tmp_path)
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    assert f"versions: surge 0.1; devices: 2 x cpu; written: {today}." in text(tmp_path)


def test_what_was_measured_is_said_in_one_line(swept):
    config = {"task": "surge.tasks.mlp:mnist1d", "task_args": {"widths": [100, 50]}, "seeds": 3}
    for size in SIZES:
        path = sweeps.sweep_path(swept, "adam", size)
        attributes = {"config": json.dumps(config), "parameters": 12345, "commit": "abc123"}
        files.write_dataset(path, sweeps.read_piece(path).assign_attrs(attributes))
    page.write(swept)
    expected = (
        "mnist1d (12,345 parameters, widths 100 and 50). "
        "adam at batch sizes 4 to 256 with 3 seeds. "
        "108 runs, 2,350,000 examples in all, on 2 x cpu. "
        "The scale is small: a model of 12,345 parameters."
    )
    assert expected in text(swept)


def test_where_the_numbers_come_from_is_said(swept):
    config = {"seed": 7, "seeds": 3}
    for size in SIZES:
        path = sweeps.sweep_path(swept, "adam", size)
        attributes = {"config": json.dumps(config), "commit": "abc123"}
        files.write_dataset(path, sweeps.read_piece(path).assign_attrs(attributes))
    page.write(swept)
    expected = (
        "versions: surge 0.1; commit: abc123; devices: 2 x cpu; seeds: 7, runs 0 to 2; written:"
    )
    assert expected in text(swept)


def test_pieces_made_unlike_are_said_so(swept):
    path = sweeps.sweep_path(swept, "adam", 4)
    files.write_dataset(path, sweeps.read_piece(path).assign_attrs(devices="8 x TPU v4"))
    page.write(swept)
    expected = "Not all pieces of the sweep were made alike; devices: 2 x cpu and 8 x TPU v4"
    assert expected in text(swept)


@pytest.mark.parametrize(
    "content", ["{}", "[]", '{"fits": 3}', '{"fits": [{"optimizer": "adam"}]}', '{"fits": [']
)
def test_a_damaged_fit_is_named(tmp_path, content):
    (tmp_path / "fit.json").write_text(content)
    with pytest.raises(files.ResultError, match=r"fit\.json cannot be read .*: delete that file"):
        page.write(tmp_path)


@pytest.mark.parametrize("name", ["measure.nc", "sweep/adam-b8.nc"])
def test_a_foreign_file_is_named(reported, tmp_path, name):
    for stored in ("fit.json", "measure.nc"):
        (tmp_path / stored).write_bytes((reported / stored).read_bytes())
    files.write_dataset(tmp_path / name, xr.Dataset({"temperature": ("day", [1.0, 2.0])}))
    expected = rf"{name} cannot be read \(it is of another kind, without .*loss"
    with pytest.raises(files.ResultError, match=expected):
        page.write(tmp_path)
