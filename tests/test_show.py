"""One result beside another, and what other programs are given."""

import math
import re
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from stored import SIZES, measurement, store_fits, store_sweep

from surge.report import comparison, drawing, export, page
from surge.report.markup import Table
from surge.show import show
from surge.workdir import files
from surge.workdir.files import ResultError


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results") / "first"
    store_sweep(folder)
    store_fits(folder)
    files.write_dataset(folder / "measure.nc", measurement(losses=(3.0,)))
    return folder


@pytest.fixture
def other(workdir, tmp_path):
    """The same with all rates twice as high at the largest batch size."""
    folder = shutil.copytree(workdir, tmp_path / "second")
    entries = files.read_fits(folder)
    for entry in entries:
        for name in ("lr", "low", "high"):
            entry["optimal_lr"][-1][name] *= 2
    files.write_fits(folder, entries)
    return folder


def entry(log_rates, error=0.1):
    points = [
        {
            "batch_size": size,
            "lr": math.exp(rate),
            "low": math.exp(rate - 1.96 * error),
            "high": math.exp(rate + 1.96 * error),
            "error": error,
        }
        for size, rate in zip(SIZES, log_rates, strict=True)
    ]
    return {"optimal_lr": points}


def test_chance_alone_rarely_sets_two_results_apart():
    """Of equal rates with the errors they claim, 5% of pairs at most have any difference."""
    rng = np.random.default_rng(0)
    trials = 600
    apart = held = 0
    for _ in range(trials):
        one, other = (entry(0.1 * rng.normal(size=len(SIZES))) for _ in range(2))
        found = comparison.ratios(one, other)
        apart += any(ratio.differs for ratio in found)
        held += sum(ratio.low <= 1 <= ratio.high for ratio in found)
    assert apart / trials < 0.08
    assert held / (trials * len(SIZES)) == pytest.approx(0.95, abs=0.02)


def test_a_difference_that_was_planted_is_told(workdir, other):
    [written] = show(workdir, other, ())
    assert written == workdir / "compare-second.html"
    told = re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", written.read_text()))
    expected = r"at 1 of \d common batch sizes .* beyond chance: 2\.00 \[.*?\] times at B = 256\."
    assert re.search(expected, told)
    assert "Their configs are the same." in told
    [written] = show(other, workdir, ())
    assert "0.500 [" in written.read_text()


def test_equal_results_are_not_set_apart(workdir, tmp_path):
    same = shutil.copytree(workdir, tmp_path / "same")
    [written] = show(workdir, same, ())
    assert "nothing beyond chance sets them apart at the" in written.read_text()


def test_unlike_results_say_so(workdir, other, tmp_path):
    entries = files.read_fits(other)
    renamed = [entry | {"optimizer": "lion"} for entry in entries]
    files.write_fits(other, renamed)
    [written] = show(workdir, other, ())
    assert "no optimizer or group in common" in written.read_text()
    unlike = [entry | {"judged_by": "loss", "target_loss": None} for entry in entries]
    files.write_fits(other, unlike)
    [written] = show(workdir, other, ())
    assert "judged by unlike things" in written.read_text()


def test_numbers_are_those_of_the_fits(workdir, tmp_path):
    findings = page.results(workdir)
    export.write(tmp_path, findings, (), ["csv", "parquet"])
    for name, whole in export.frames(findings).items():
        for table in (
            pd.read_csv(tmp_path / f"{name}.csv"),
            pd.read_parquet(tmp_path / f"{name}.parquet"),
        ):
            assert list(table.columns) == list(whole.columns) and len(table) == len(whole) > 0
    optima = pd.read_csv(tmp_path / "optima.csv")
    for fit in findings.entries:
        own = optima[optima["target_loss"] == fit["target_loss"]]
        assert own["lr"].tolist() == pytest.approx([point["lr"] for point in fit["optimal_lr"]])
    laws = findings.entries[0]["laws"]
    parameters = pd.read_csv(tmp_path / "parameters.csv")
    own = parameters[(parameters["target_loss"] == 2.0) & (parameters["law"] == "surge")]
    told = own.set_index("parameter")["value"].to_dict()
    assert told == pytest.approx(laws["surge"]["params"])


def test_runs_are_those_of_the_sweep(workdir):
    findings = page.results(workdir)
    runs = export.frames(findings)["runs"]
    sweep = findings.sweep
    assert sweep is not None
    assert len(runs) == sweep.diverged.notnull().sum()
    some = runs[(runs["batch_size"] == 64) & (runs["seed"] == 1)].set_index("learning_rate")
    last = sweep.loss.sel(optimizer="adam", batch_size=64, seed=1).isel(eval=-1)
    assert some["loss"].to_numpy() == pytest.approx(last.values)


def test_tables_for_latex_are_ascii_with_as_many_columns():
    table = Table("κ of √B", ("batch_size", "ε, 95%", "note"), [(4, "≥ 0.1 ± ∞", ""), (8, "–", "")])
    lines = export.latex(table).splitlines()
    assert lines[0] == "% ? of ?B" and lines[1] == r"\begin{tabular}{lr}"  # without empty columns
    assert r"batch\_size & $\epsilon$, 95\% \\" in lines
    assert r"4 & $\geq$ 0.1 $\pm$ $\infty$ \\" in lines and r"8 & -- \\" in lines
    assert all(ord(letter) < 128 for line in lines for letter in line)


def test_no_letter_of_a_page_is_lost_in_latex(workdir, tmp_path):
    findings = page.results(workdir)
    export.write(tmp_path, findings, page.sections_of(findings), ["latex"])
    tables = [path.read_text() for path in tmp_path.glob("*.tex")]
    assert len(tables) > 5
    for table in tables:
        assert "?" not in table.partition("\n")[2]  # but for the caption's comment


def test_figures_are_as_wide_as_a_column(workdir, tmp_path):
    findings = page.results(workdir)
    [adam, *_] = page.sections_of(findings)
    export.write(tmp_path, findings, [adam], ["pdf"])
    [picture] = tmp_path.glob("*.pdf")
    content = picture.read_bytes()
    box = re.search(rb"/MediaBox \[ 0 0 ([\d.]+)", content)
    assert picture.name == "best-rate-adam.pdf" and content.startswith(b"%PDF")
    assert box is not None and float(box[1]) == pytest.approx(72 * drawing.COLUMN)


def test_the_program_writes_what_it_is_asked_for(workdir, tmp_path):
    folder = shutil.copytree(workdir, tmp_path / "mine")
    command = [sys.executable, "-m", "surge.show", str(folder), "--export=csv"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.strip() == str(folder / "export"), done.stderr
    assert (folder / "export" / "optima.csv").exists() and not (folder / "report.html").exists()


def test_mistakes_are_one_sentence(workdir, tmp_path):
    for arguments, expected in (
        ((tmp_path / "none", None, ()), "is no workdir"),
        ((workdir, tmp_path / "none", ()), "is no workdir"),
        ((workdir, workdir, ()), "compared with itself"),
        ((workdir, None, ("csv", "xls")), "--export=xls is unknown: choose among csv, parquet"),
        ((tmp_path, None, ()), "holds nothing to report"),
    ):
        with pytest.raises(ResultError, match=expected):
            show(*arguments)


def test_parquet_without_its_library_is_one_sentence(workdir, tmp_path, monkeypatch):
    def missing(*_, **__):
        raise ImportError

    monkeypatch.setattr(pd.DataFrame, "to_parquet", missing)
    with pytest.raises(ResultError, match="needs pyarrow"):
        export.write(tmp_path, page.results(workdir), (), ["parquet"])
