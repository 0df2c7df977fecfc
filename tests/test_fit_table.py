"""Bring your own sweep: tables as users have them."""

import re
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

from surge import fit_table
from surge.fit_table import write
from surge.report import summary
from surge.report.formats import estimate, number
from surge.report.markup import unbroken
from surge.tables.pooling import sentence
from surge.tables.tidy import fits, tidy
from surge.theory.rivals import LAWS
from surge.workdir import claim, files, sweeps

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
    assert f"B_noise = {shown}" in report
    diverged = (table["final"] == "diverged").sum()
    assert f"{diverged} of {len(table)} rows count as diverged" in done.stdout
    assert "opt=adam" in done.stdout and "The best rate peaks at B = " in done.stdout


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
    said = [
        remark for remark in tidy(runs(), **COLUMNS, steps="steps").remarks if "steps" in remark
    ]
    assert len(said) == 1 and "'steps' is not used" in said[0]


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
    entries = fits(table, **COLUMNS, group=["opt"])
    files.write_json(tmp_path / "fit.json", {"fits": entries})
    header, first = summary.lines(tmp_path)[1:3]
    assert header.split() == ["B", "opt=adam", "opt=sgd"]
    shown = number(entries[0]["optimal_lr"][0]["lr"])
    assert first.split()[:2] == ["8", shown] and first.endswith("]  –")


def test_ragged_grids_missing_cells_and_repeated_cells():
    table = runs(seeds=3)
    ragged = table[(table["bs"] < 100) | (table["lr"] > 0.02)].sample(frac=0.9, random_state=1)
    # Where seeds tell runs, a row that stands twice is one run and not two.
    repeated = pd.concat([ragged, ragged.iloc[:50]])
    (whole,), (holed,) = fits(table, **COLUMNS, seed="seed"), fits(repeated, **COLUMNS, seed="seed")
    assert holed["runs"] == len(ragged)
    for one, other in zip(whole["optimal_lr"], holed["optimal_lr"], strict=True):
        assert one["lr"] == pytest.approx(other["lr"], rel=0.15)
        assert other["low"] <= other["lr"] <= other["high"]


def test_four_thousand_rows_take_seconds():
    table = runs(sizes=10, seeds=25)
    assert len(table) == 4000
    started = time.monotonic()
    (entry,) = fits(table, **COLUMNS, seed="seed")
    assert time.monotonic() - started < 20
    assert list(entry["laws"]) == list(LAWS)


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
    (one,), (other,) = (fits(each, **COLUMNS, seed="seed") for each in (blank, table))
    assert tried(one) == tried(other)


def test_batch_sizes_below_one():
    table = runs()
    entries = fits(table.assign(bs=table["bs"] / 1e4), **COLUMNS)
    assert [point["batch_size"] for point in entries[0]["optimal_lr"]] == pytest.approx(
        2 ** np.arange(3, 12) / 1e4
    )


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


PLANTED = {32: 3e-4, 64: 4.2e-4, 128: 6e-4, 256: 8.5e-4, 512: 1.2e-3}
RATES = [1e-4, 2e-4, 4e-4, 8e-4, 1.6e-3, 3.2e-3]


def planted(scale=1.0, rates=RATES, **labels):
    """One run a cell: loss 2.5 at the planted optimum times `scale`, a parabola in the log rate."""
    rows = [
        (size, rate, 2.5 + 0.1 * np.log(rate / (scale * best)) ** 2)
        for size, best in PLANTED.items()
        for rate in rates
    ]
    return pd.DataFrame(rows, columns=["batch_size", "learning_rate", "loss"]).assign(**labels)


def optima(entry):
    return [point["lr"] for point in entry["optimal_lr"]]


def same_runs(one, other):
    return one.rows.equals(other.rows)


def test_two_models_in_one_table_are_not_mixed_in_silence():
    table = pd.concat([planted(2.0, N="10M"), planted(0.5, RATES[:3], N="1B")])
    with pytest.raises(files.ResultError, match=r"'N'.*10M, 1B.*--group=N.*--where=N=10M.*--pool"):
        tidy(table)
    small, big = fits(table, group=["N"])
    assert [small["optimizer"], big["optimizer"]] == ["N=10M", "N=1B"]
    assert optima(small)[:4] == pytest.approx([6e-4, 8.4e-4, 1.2e-3, 1.7e-3], rel=0.02)
    assert optima(big)[:2] == pytest.approx([1.5e-4, 2.1e-4], rel=0.15)
    assert same_runs(tidy(table, where=["N=1B"]), tidy(planted(0.5, RATES[:3])))
    assert len(tidy(table, pool=True).rows) == len(table)


@pytest.mark.parametrize("values", [("adam", "lion"), (0.0, 0.1), (12, 24), (None, "wd")])
def test_whatever_tells_runs_apart_is_named(values):
    table = pd.concat([planted(setting=value) for value in values])
    with pytest.raises(files.ResultError, match="--group=setting"):
        tidy(table)


def test_a_setting_that_differs_between_cells_is_named():
    """Each cell has one run, and half of the rates of each batch size are of another model."""
    table = planted()
    table["depth"] = np.where(np.arange(len(table)) % 7 < 3, 2, 4)
    with pytest.raises(files.ResultError, match="--group=depth"):
        tidy(table)


def test_what_is_measured_or_follows_from_the_cell_is_no_setting():
    rng = np.random.default_rng(0)
    table = pd.concat([planted(seed=seed) for seed in range(3)], ignore_index=True)
    table = table.assign(
        accuracy=rng.random(len(table)).round(2),
        grad_norm=rng.random(len(table)),
        runtime=rng.integers(60, 90, len(table)),
        Name=[f"run{index}" for index in range(len(table))],
        devices=table["batch_size"] / 32,
        min_lr=table["learning_rate"] / 10,
        ratio=table["learning_rate"] / table["batch_size"],
        project="ours",
        State="finished",
    )
    assert len(tidy(table, seed="seed").rows) == len(table)


def test_rates_that_somebody_has_tuned_are_taken_as_tuned():
    """One rate for each B, steps 1000 (1 + 512/B), and rates that rise to a peak and fall."""
    size = 4.0 ** np.arange(2, 8)
    lr = [0.001, 0.002, 0.004, 0.006, 0.004, 0.002]
    table = pd.DataFrame(
        {"batch_size": size, "learning_rate": lr, "steps": 1000 * (1 + 512 / size)}
    )
    (entry,) = fits(table)
    assert optima(entry) == lr and all(point["bound"] == 0 for point in entry["optimal_lr"])
    assert "its error is assumed" in entry["optimal_lr"][0]["why"]
    assert entry["noise_scale"]["b_noise"] == pytest.approx(512, rel=1e-3)
    peak = entry["b_peak"]
    assert peak["value"] == pytest.approx(1024, rel=0.3) and peak["low"] < 1024 < peak["high"]


def test_an_optimum_beyond_the_rates_is_a_bound_and_no_number():
    """The best rate is .004 and the highest one .002."""
    table = planted(rates=[1e-4, 3e-4, 1e-3, 2e-3])
    distance = np.log(table["learning_rate"] / 0.004)
    (entry,) = fits(table.assign(loss=2 + 0.1 * distance**2))
    for point in entry["optimal_lr"]:
        assert point["lr"] == pytest.approx(0.002) and point["bound"] == 1


def test_no_wrong_law_is_named_of_four_batch_sizes():
    """The truth is B^(1/3), which is not the square root."""
    rng = np.random.default_rng(3)
    rows = [
        (size, rate, seed, 2.5 + 0.1 * np.log(rate / (1e-4 * size ** (1 / 3))) ** 2 + 0.02 * draw)
        for size in (32, 64, 128, 256)
        for rate in RATES
        for seed, draw in enumerate(rng.normal(size=3))
    ]
    columns = ["batch_size", "learning_rate", "seed", "loss"]
    (entry,) = fits(pd.DataFrame(rows, columns=columns), seed="seed")
    assert entry["best_law"] in (None, "power")


def test_higher_is_better_where_it_is_said_and_suspected_where_it_is_not():
    losses = planted()
    table = losses.assign(val_accuracy=3 - losses["loss"]).drop(columns="loss")
    named = {"loss": "val_accuracy"}
    assert optima(fits(table, **named, maximize=True)[0]) == pytest.approx(
        list(PLANTED.values()), rel=0.02
    )
    said = " ".join(tidy(table, **named).remarks)
    assert "--maximize" in said and "both ends of the grid" in said
    assert not any("maximize" in remark for remark in tidy(table, **named, maximize=True).remarks)
    assert not any("maximize" in remark for remark in tidy(losses).remarks)
    with pytest.raises(files.ResultError, match="--diverged_above"):
        tidy(table, **named, maximize=True, diverged_above=3.0)


def test_rows_in_any_order_are_the_same_runs():
    rng = np.random.default_rng(1)
    table = pd.concat([planted() for _ in range(5)], ignore_index=True)
    table["loss"] += 0.02 * rng.normal(size=len(table))
    by_loss, shuffled = table.sort_values("loss"), table.sample(frac=1, random_state=0)
    assert same_runs(tidy(by_loss), tidy(shuffled))
    assert fits(by_loss) == fits(shuffled) == fits(table)


def test_crashed_rows_are_skipped_and_counted():
    table = pd.concat([planted(State="finished"), pd.DataFrame({"State": ["crashed"]})])
    runs_ = tidy(table)
    assert same_runs(runs_, tidy(planted()))
    assert runs_.remarks[0].startswith("1 of 31 rows have no batch size or learning rate")
    (stopped := planted(State="finished")).loc[3, "State"] = "crashed"
    assert "1 rows of 'State' crashed count with the value they have" in tidy(stopped).remarks[0]
    assert len(tidy(stopped, where=["State=finished"]).rows) == 29


def test_words_for_a_run_that_diverged_are_counted():
    table = planted().astype({"loss": object})
    table.loc[table["learning_rate"] == 3.2e-3, "loss"] = "diverged"
    runs_ = tidy(table)
    assert runs_.remarks == ["5 of 30 rows count as diverged or short of the target"]
    assert runs_.rows["value"].isna().sum() == 5
    spike = planted()
    spike.loc[5, "loss"] = 1e9
    assert tidy(spike, diverged_above=1e3).rows["value"].isna().sum() == 1


def history(table, steps=(0, 250, 500)):
    """A row for each step, on which the loss falls, and rises again at the last one."""
    parts = [
        table.assign(step=step, loss=table["loss"] + 1 - index * 0.5 + (index == 2) * 0.2)
        for index, step in enumerate(steps)
    ]
    return pd.concat(parts).sample(frac=1, random_state=0)


@pytest.mark.parametrize("run", [True, False])
def test_rows_of_a_history_are_not_runs(run):
    table = planted()
    if run:
        table["run"] = [f"run {index}" for index in range(len(table))]
    with pytest.raises(files.ResultError, match=r"rows are not runs.*--last, --best or --at=STEP"):
        tidy(history(table))
    shifts = {"last": 0.2, 250: 0.5, "best": 0.2, 0: 1.0}
    for pick, shift in shifts.items():
        picked = tidy(history(table), pick=pick).rows
        assert picked["value"].to_numpy() == pytest.approx(table["loss"] + shift)
    with pytest.raises(files.ResultError, match=r"--at=300.*0, 250, 500"):
        tidy(history(table), pick=300)


def test_a_history_that_only_a_clock_tells_is_no_set_of_replicates():
    rng = np.random.default_rng(0)
    parts = [
        planted(wall_time=rng.random(30) + tick).assign(loss=planted()["loss"] + 1 / (tick + 1))
        for tick in range(4)
    ]
    with pytest.raises(files.ResultError, match=r"falls with 'wall_time'; give --step=wall_time"):
        tidy(pd.concat(parts))
    last = tidy(pd.concat(parts), pick="last", step="wall_time").rows["value"]
    assert last.to_numpy() == pytest.approx(planted()["loss"] + 0.25)
    replicates = pd.concat([planted(runtime=rng.random(30)) for _ in range(4)])
    replicates["loss"] += 0.01 * rng.normal(size=len(replicates))
    assert len(tidy(replicates).rows) == 120


def test_an_export_of_a_search():
    table = planted().rename(
        columns={"loss": "value", "batch_size": "params_bs", "learning_rate": "params_lr"}
    )
    table = table.assign(number=range(30), duration="0 days 00:10:00", state="COMPLETE")
    table.loc[4, "state"] = "PRUNED"
    runs_ = tidy(table)
    assert same_runs(runs_, tidy(planted()))
    assert runs_.remarks[0].endswith("--where=state=COMPLETE leaves them out")


def test_a_run_that_ended_before_the_step_has_failed():
    table = history(planted(run=range(30)))
    ended = table[~((table["run"] == 7) & (table["step"] > 0))]
    assert tidy(ended, pick=500).rows["value"].isna().tolist() == [i == 7 for i in range(30)]
    assert tidy(ended, pick="last").rows["value"][7] == pytest.approx(planted()["loss"][7] + 1)


def test_a_seed_that_stands_twice_proves_that_rows_are_not_runs():
    table = pd.concat([planted(seed=seed) for seed in range(2)], ignore_index=True)
    doubled = pd.concat([table, table.assign(loss=table["loss"] + 0.1)])
    with pytest.raises(files.ResultError, match=r"rows are not runs.*seed 0 stands in more than"):
        tidy(doubled, seed="seed")
    assert len(tidy(doubled.assign(N=[1] * 60 + [2] * 60), seed="seed", group=["N"]).rows) == 120


def test_a_run_of_two_rows_at_one_step_needs_a_name():
    table = history(pd.concat([planted(), planted()]))
    with pytest.raises(files.ResultError, match=r"two rows at one step.*--seed=COL"):
        tidy(table, pick="last")


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        ({"batch_size": "bs", "learning_rate": "lr"}, None),
        ({"learning_rate": "params_learning_rate", "batch_size": "params_batch_size"}, None),
        ({"learning_rate": "config.lr", "loss": "summary/val_loss"}, None),
        ({"loss": "metric"}, "give --loss, --steps or --tokens"),
        ({"batch_size": "size"}, "give --batch_size"),
    ],
)
def test_plain_names_are_guessed(names, shown):
    table = planted().rename(columns=names)
    if shown is None:
        assert same_runs(tidy(table), tidy(planted()))
    else:
        with pytest.raises(files.ResultError, match=shown):
            tidy(table)


def test_two_candidates_are_named_and_not_chosen():
    table = planted().rename(columns={"loss": "val_loss"}).assign(train_loss=1.0)
    with pytest.raises(files.ResultError, match="give --loss: it may be val_loss or train_loss"):
        tidy(table)
    assert same_runs(tidy(table, loss="val_loss"), tidy(planted()))


@pytest.mark.parametrize("down", ["batch_size", "learning_rate"])
def test_wide_tables(down):
    across = "learning_rate" if down == "batch_size" else "batch_size"
    wide = planted().pivot(index=down, columns=across, values="loss").reset_index()
    assert same_runs(tidy(wide), tidy(planted()))


def test_batch_sizes_in_tokens():
    table = planted()
    tokens = table.assign(batch_size=table["batch_size"] * 2048)
    assert same_runs(tidy(tokens, sequence_length=2048), tidy(table))
    units = table.assign(batch_size=[f"{size}k" for size in table["batch_size"]])
    runs_ = tidy(units)
    assert runs_.remarks == ["k in 'batch_size' is read as 1,000"]
    assert runs_.rows["batch_size"].unique().tolist() == [size * 1000 for size in PLANTED]


@pytest.mark.parametrize("condition", ["loss", "size=32", "batch_size=33"])
def test_a_condition_that_no_row_meets_is_refused(condition):
    with pytest.raises(files.ResultError, match=f"--where={condition} "):
        tidy(planted(), where=[condition])


def test_one_row_of_a_history_is_picked_in_one_way():
    given = {"last": True, "best": False, "at": None}
    assert fit_table.picked(given) == "last" and fit_table.picked(given | {"last": False}) is None
    assert fit_table.picked(given | {"last": False, "at": 0.0}) == 0.0
    with pytest.raises(files.ResultError, match="give one of --last, --best and --at"):
        fit_table.picked(given | {"at": 0.0})


def test_groups_are_labelled_as_written_and_ordered_by_value():
    table = pd.concat([planted(width=width) for width in (1024, 256)])
    groups = tidy(table, group=["width"]).rows["group"]
    assert groups.unique().tolist() == ["width=256", "width=1024"]
    blank = pd.concat([planted(width=256), planted()])
    assert [entry["optimizer"] for entry in fits(blank, group=["width"])] == [
        "width=256",
        "width=nan",
    ]


def test_groups_together_tell_how_the_knee_moves_with_a_covariate(tmp_path):
    """√B up to a knee of 64 at 1e9 tokens, which grows as their square root; 5 token budgets."""
    rng = np.random.default_rng(0)
    tokens = 1e9 * 4.0 ** np.arange(-2, 3)
    rates = 2.0 ** (np.arange(-28, -4) / 2)
    rows = [
        (budget, size, rate, 2 + 0.1 * distance**2 + 0.01 * draw)
        for budget in tokens
        for size in 2.0 ** np.arange(3, 11)
        for rate in rates
        for draw in rng.normal(size=2)
        if abs(
            distance := np.log(rate / (1e-3 * min(1, size / (64 * (budget / 1e9) ** 0.5)) ** 0.5))
        )
        < 1.5
    ]
    table = pd.DataFrame(rows, columns=["D", "batch_size", "learning_rate", "loss"])
    runs_ = tidy(table, group=["D"], covariate=["D"])
    write(runs_, tmp_path, "runs.csv")
    stored = files.read_json(tmp_path / "fit.json")["pooled"]
    law = stored["laws"]["capped_sqrt"]
    assert stored["reference"]["D"] == pytest.approx(1e9) and len(stored["groups"]) == 5
    low, high = law["exponent_intervals"]["D"]
    assert low <= 0.5 <= high and high - low < 0.3
    low, high = law["intervals"]["b_knee"]
    assert low <= 64 <= high
    assert "5 groups together" in sentence(stored) and "D^" in sentence(stored)
    with pytest.raises(files.ResultError, match="--covariate=D must be among the groups"):
        tidy(table, pool=True, covariate=["D"])


def test_a_run_of_surge_main_is_never_overwritten(tmp_path):
    runs_ = tidy(planted())
    files.write_json(tmp_path / "config.json", {})
    with pytest.raises(files.ResultError, match=r"holds a run of surge.main \(config.json\)"):
        write(runs_, tmp_path, "runs.csv")
    assert not (tmp_path / "fit.json").exists()


def test_a_workdir_in_use_is_refused_and_a_table_may_be_fitted_again(tmp_path):
    runs_ = tidy(planted())
    with claim.lock_workdir(tmp_path), pytest.raises(files.ResultError, match="in use by"):
        write(runs_, tmp_path, "runs.csv")
    for _ in range(2):
        write(runs_, tmp_path, "runs.csv")
    stored = files.read_json(tmp_path / "fit.json")
    assert stored["table"] == "runs.csv" and len(stored["fits"]) == 1
    kept = pd.read_csv(tmp_path / "runs.csv")["loss"]
    assert kept.to_numpy() == pytest.approx(runs_.rows["value"])


def test_the_report_has_the_map_of_the_users_own_runs(tmp_path):
    table = planted().astype({"loss": object})
    table.loc[table["learning_rate"] == 3.2e-3, "loss"] = "diverged"
    write(tidy(table), tmp_path, "runs.csv")
    sweep = sweeps.open_runs(tmp_path / "runs.csv")
    assert sweep is not None
    assert sweep.loss.sel(batch_size=64, learning_rate=4e-4).item() == pytest.approx(
        table["loss"][8]
    )
    assert sweep.diverged.sum() == 5
    page = (tmp_path / "report.html").read_text()
    assert "in 25 cells; 5 diverged in every run." in page and "No map of the loss" not in page


def test_names_of_groups_are_escaped_into_names_of_files(tmp_path):
    names = ["a/b", "a_b", "a b", "a-b", "../x", "<script>", "é" * 200]
    table = pd.concat([planted(model=name) for name in names])
    write(tidy(table, group=["model"]), tmp_path / "out", "runs.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    figures = [path.name for path in (tmp_path / "out" / "figures").iterdir()]
    best_rates = [name for name in figures if name.startswith("best-rate-")]
    assert len(best_rates) == len(names)
    assert len(figures) == 3 * len(names)  # its optima, its basins and its map
    assert "=<script>" not in (tmp_path / "out" / "report.html").read_text()


def test_importing_the_program_defines_no_flags():
    code = (
        "from absl import flags; import surge.fit_table\n"
        "assert not {'seed', 'loss', 'workdir'} & set(flags.FLAGS)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
