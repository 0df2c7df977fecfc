"""Bring your own sweep: tables as users have them."""

import re
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

from surge import fit_table
from surge.fit_table import fits, read
from surge.report import summary
from surge.report.formats import estimate, number
from surge.report.markup import unbroken
from surge.workdir import files

COLUMNS = {"batch_size": "bs", "learning_rate": "lr", "loss": "loss"}


def fit(*arguments):
    command = [sys.executable, "-m", "surge.fit_table", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200)


def ragged(rng, seeds=3):
    """Two optimizers on unlike grids, a decade past their peaks: rows shuffled, repeated, diverged,
    missing."""
    rows = []
    for optimizer, peak in (("adam", 64.0), ("lion", 256.0)):
        for size in peak * 2.0 ** np.arange(-4, 6 if optimizer == "adam" else 5):
            best = 0.01 * 2 / (np.sqrt(peak / size) + np.sqrt(size / peak))
            for power in range(-24, -6 if optimizer == "adam" else -8):
                rate = 2.0 ** (power / 2)
                for seed in range(seeds):
                    x = np.log(rate / best)
                    loss = 1 + 0.2 * x**2 + 0.02 * rng.normal()
                    rows.append((optimizer, int(size), rate, seed, loss if x < 2 else "diverged"))
    table = pd.DataFrame(rows, columns=["opt", "bs", "lr", "run", "final"]).sample(
        frac=0.97, random_state=0
    )
    return pd.concat([table, table.iloc[:5]])


def test_a_ragged_table_is_fitted_for_each_group(tmp_path):
    table = ragged(np.random.default_rng(0))
    table.to_csv(tmp_path / "runs.csv", index=False)
    flags = [
        "--batch_size=bs",
        "--learning_rate=lr",
        "--loss=final",
        "--group=opt",
        f"--workdir={tmp_path / 'out'}",
    ]
    done = fit(tmp_path / "runs.csv", *flags)
    assert done.returncode == 0, done.stderr
    entries = {
        entry["optimizer"]: entry
        for entry in files.read_json(tmp_path / "out" / "fit.json")["fits"]
    }
    for name, peak in (("opt=adam", 64), ("opt=lion", 256)):
        assert entries[name]["b_peak"]["low"] <= peak <= entries[name]["b_peak"]["high"]
        assert (
            entries[name]["noise_scale"]["b_noise"] is None and entries[name]["noise_scale"]["why"]
        )
    law = entries["opt=adam"]["laws"]["surge"]
    report = (tmp_path / "out" / "report.html").read_text()
    assert "<svg" in report
    assert f"± {number(law['held_out_se'], 2)}</td>" in report  # of the held-out error
    shown = unbroken(estimate([law["params"]["b_noise"], *law["intervals"]["b_noise"]]))
    assert f"b_noise = {shown}" in report
    diverged = (table["final"] == "diverged").sum()
    assert f"{diverged} of {len(table)} rows count as diverged" in done.stdout
    assert "opt=adam" in done.stdout and "B_peak" in done.stdout


def runs(seeds=1, sizes=9):
    """Steps to a target and a loss of each run: B_noise 90, and an optimum that rises as √B."""
    rng, axes = (
        np.random.default_rng(0),
        (2 ** np.arange(3, 3 + sizes), 2.0 ** (np.arange(-14, 2) / 2), range(seeds)),
    )
    size, rate, seed = (each.ravel() for each in np.meshgrid(*axes, indexing="ij"))
    badness = 0.3 * np.log(rate / (0.005 * np.sqrt(size))) ** 2 + 0.02 * rng.normal(size=len(size))
    steps = 100 * (1 + 90 / size) * np.exp(badness)
    columns = {
        "bs": size,
        "lr": rate,
        "seed": seed,
        "loss": 1 + badness,
        "steps": steps,
        "tokens": steps * size,
    }
    return pd.DataFrame(columns)


def tried(entry):
    return [
        (point["batch_size"], round(point["lr"], 9), point["n"]) for point in entry["optimal_lr"]
    ]


def test_steps_and_tokens_give_the_noise_scale(tmp_path):
    path = tmp_path / "runs.tsv"
    runs().to_csv(path, sep="\t", index=False)
    done = fit(
        path,
        "--batch_size=bs",
        "--learning_rate=lr",
        "--steps=steps",
        f"--workdir={tmp_path / 'out'}",
    )
    assert done.returncode == 0, done.stderr
    (by_steps,) = files.read_json(tmp_path / "out" / "fit.json")["fits"]
    noise = by_steps["noise_scale"]
    assert noise["b_noise"] == pytest.approx(90, rel=0.15) and noise["low"] < 90 < noise["high"]
    (by_tokens,) = fits(runs(), batch_size="bs", learning_rate="lr", tokens="tokens")
    assert by_tokens["noise_scale"]["b_noise"] == pytest.approx(noise["b_noise"], rel=1e-6)


def test_a_loss_beside_steps_is_what_runs_are_judged_by(tmp_path):
    (entry,) = fits(runs(), **COLUMNS)
    (both,) = fits(runs(), **COLUMNS, steps="steps")
    assert both == entry and both["judged_by"] == "loss"
    assert "judged by loss" in both["noise_scale"]["why"]
    remarks = fit_table._remarks([both], {"loss": "loss", "steps": "steps", "tokens": None})
    assert len(remarks) == 1 and "'steps' is not used" in remarks[0]


def test_groups_of_two_columns_are_fitted_apart():
    parts = [runs().assign(opt=opt, width=width) for opt in ("adam", "lion") for width in (64, 128)]
    table = pd.concat(parts).sample(frac=1, random_state=0)
    table["loss"] += (table["opt"] == "lion") * 10
    entries = fits(table, **COLUMNS, group=["opt", "width"])
    names = [f"opt={opt}, width={width}" for opt in ("adam", "lion") for width in (128, 64)]
    assert sorted(entry["optimizer"] for entry in entries) == names
    assert [tried(entry) for entry in entries] == [tried(fits(runs(), **COLUMNS)[0])] * 4


def test_a_group_that_all_diverged_is_undefined():
    table = pd.concat([runs().assign(opt="adam"), runs().assign(opt="sgd", loss="nan")])
    adam, sgd = fits(table, **COLUMNS, group=["opt"])
    assert adam["failed"] == 0 and tried(adam) == tried(fits(runs(), **COLUMNS)[0])
    assert sgd["failed"] == sgd["runs"] == len(runs())
    assert sgd["best_law"] is None and sgd["b_peak"]["value"] is None and sgd["b_peak"]["why"]
    assert all(point["lr"] is None and point["why"] for point in sgd["optimal_lr"])


def test_the_closing_summary_has_a_dash_for_what_is_undefined(tmp_path):
    table = pd.concat([runs().assign(opt="adam"), runs().assign(opt="sgd", loss="nan")])
    files.write_json(tmp_path / "fit.json", {"fits": fits(table, **COLUMNS, group=["opt"])})
    header, first = summary.lines(tmp_path)[1:3]
    assert header.split() == ["B", "opt=adam", "opt=sgd"]
    assert first.split()[:2] == ["8", "0.0142"] and first.endswith("]  –")


def test_ragged_grids_missing_cells_and_repeated_cells():
    table = runs(seeds=3)
    ragged = table[(table["bs"] < 100) | (table["lr"] > 0.02)].sample(frac=0.9, random_state=1)
    repeated = pd.concat([ragged, ragged.iloc[:50]])
    (whole,), (holed,) = fits(table, **COLUMNS, seed="seed"), fits(repeated, **COLUMNS, seed="seed")
    assert holed["runs"] == len(ragged) + 50
    for one, other in zip(whole["optimal_lr"], holed["optimal_lr"], strict=True):
        assert one["lr"] == pytest.approx(other["lr"], rel=0.15)
        assert other["low"] <= other["lr"] <= other["high"]


def test_four_thousand_rows_take_seconds():
    table = runs(sizes=10, seeds=25)
    assert len(table) == 4000
    started = time.monotonic()
    (entry,) = fits(table, **COLUMNS, seed="seed")
    assert time.monotonic() - started < 20
    assert len(entry["laws"]) == 7


def test_rates_and_batch_sizes_that_differ_by_rounding_are_one_cell():
    table, rng = runs(seeds=3), np.random.default_rng(2)
    jittered = table.assign(
        lr=table["lr"] * (1 + 1e-9 * rng.normal(size=len(table))),
        bs=table["bs"] * (1 + 1e-9 * rng.normal(size=len(table))),
    )
    (one,), (other,) = fits(table, **COLUMNS), fits(jittered, **COLUMNS)
    assert [point["n"] for point in one["optimal_lr"]] == [
        point["n"] for point in other["optimal_lr"]
    ]
    for key in ("batch_size", "lr", "low", "high"):
        ours, theirs = ([point[key] for point in each["optimal_lr"]] for each in (one, other))
        assert ours == pytest.approx(theirs, rel=1e-6)


def test_seeds_may_be_words_or_blank():
    table = runs(seeds=3)
    named = table.assign(seed=table["seed"].map({0: "a", 1: "b", 2: "c"}))
    assert fits(named, **COLUMNS, seed="seed") == fits(table, **COLUMNS, seed="seed")
    blank = named.assign(seed=named["seed"].where(named["seed"] != "c"))
    assert tried(fits(blank, **COLUMNS, seed="seed")[0]) == tried(fits(table, **COLUMNS)[0])


def test_batch_sizes_below_one():
    table = runs()
    entries = fits(table.assign(bs=table["bs"] / 1e4), **COLUMNS)
    assert [point["batch_size"] for point in entries[0]["optimal_lr"]] == pytest.approx(
        2 ** np.arange(3, 12) / 1e4
    )


@pytest.mark.parametrize("separator", [",", ", ", "\t", ";", " ;"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_separators_blanks_and_a_byte_order_mark(tmp_path, separator, encoding):
    path = tmp_path / "runs.csv"
    path.write_text(
        separator.join(("bs", "lr", "loss", "opt "))
        + "\n"
        + f"8{separator}0.1{separator}1.5{separator}s\n"
    )
    path.write_text(path.read_text(), encoding=encoding)
    table = read(path, ["bs", "lr", "loss", "opt"])
    assert table[["bs", "lr", "loss"]].to_numpy().tolist() == [[8, 0.1, 1.5]]


def test_one_column_is_one_column(tmp_path):
    (tmp_path / "runs.csv").write_text("losses\n1\n2\n")
    with pytest.raises(files.ResultError, match="has no column 'lr': it has losses"):
        read(tmp_path / "runs.csv", ["lr"])


def test_parquet_is_read_where_its_engine_is_installed(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    path = tmp_path / "runs.parquet"
    runs().to_parquet(path)
    assert read(path, ["bs"]).equals(runs())

    def missing(_):
        raise ImportError("Unable to find a usable engine")

    monkeypatch.setattr(pd, "read_parquet", missing)
    with pytest.raises(files.ResultError, match="pip install pyarrow"):
        read(path, ["bs"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"bs,lr,loss\n", "has no rows"),
        (None, "does not exist"),
        (b"", "is not a table"),
        (b"bs,lr,loss\n8,0.1,1\n8,0.1,1,7,9\n", "is not a table"),
        (b"bs,lr,loss\n8,0.1,1,\n", "its rows have more columns than its header"),
        ("bs,lr,loss,naïve\n8,0.1,1,2\n".encode("latin-1"), "is not text in UTF-8"),
        ("bs,lr,loss\n8,0.1,1\n".encode("utf-16"), "is not text in UTF-8"),
        (b"bs,lr,lr ,loss\n8,0.1,1,1\n", "has 2 columns 'lr'"),
    ],
)
def test_what_is_not_a_table_is_refused(tmp_path, content, words):
    path = tmp_path / "runs.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(files.ResultError, match=words):
        read(path, ["bs", "lr", "loss"])


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"loss": None}, "give --loss, --steps or --tokens"),
        (
            {"loss": None, "steps": "steps", "tokens": "tokens"},
            "give --steps or --tokens, not both",
        ),
        ({"loss": "lr"}, "column 'lr' is given twice: for --learning_rate and for --loss"),
        (
            {"group": ["seed"], "seed": "seed"},
            "column 'seed' is given twice: for --seed and for --group",
        ),
        (
            {"learning_rate": "word"},
            "column 'word' must be above 0 in every row: row 1 holds 'fast'",
        ),
        ({"learning_rate": "zero"}, "column 'zero' must be above 0 in every row: row 1 holds '0'"),
        ({"loss": "word"}, "column 'word' holds no number"),
        ({"loss": None, "steps": "zero"}, "column 'zero' holds no number above 0"),
    ],
)
def test_flags_that_do_not_fit_the_table_are_refused(columns, words):
    with pytest.raises(files.ResultError, match=re.escape(words)):
        fits(runs().assign(word="fast", zero=0), **COLUMNS | columns)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--batch_size=batch"], "has no column 'batch': it has bs, lr, loss"),
        (["--sedd=3"], "sedd"),
    ],
)
def test_mistakes_end_in_one_sentence(tmp_path, flags, words):
    path = tmp_path / "runs.csv"
    path.write_text("bs,lr,loss\n8,0.1,1\n")
    failed = fit(path, f"--workdir={tmp_path / 'out'}", *flags)
    assert failed.returncode != 0 and words in failed.stderr and "Traceback" not in failed.stderr
    assert len(failed.stderr.strip().splitlines()) == 1
