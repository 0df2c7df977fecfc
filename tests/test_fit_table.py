"""Bring your own sweep: tables as users have them."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from surge import results


def fit(*arguments):
    command = [sys.executable, "-m", "surge.fit_table", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200)


def ragged(rng, seeds=3):
    """Two optimizers on unlike grids, a decade past their peaks: rows shuffled, repeated, diverged, missing."""
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
    table = pd.DataFrame(rows, columns=["opt", "bs", "lr", "run", "final"]).sample(frac=0.97, random_state=0)
    return pd.concat([table, table.iloc[:5]])


def test_a_ragged_table_is_fitted_for_each_group(tmp_path):
    table = ragged(np.random.default_rng(0))
    table.to_csv(tmp_path / "runs.csv", index=False)
    flags = ["--batch_size=bs", "--learning_rate=lr", "--loss=final", "--group=opt", f"--workdir={tmp_path / 'out'}"]
    done = fit(tmp_path / "runs.csv", *flags)
    assert done.returncode == 0, done.stderr
    entries = {entry["optimizer"]: entry for entry in results.read_json(tmp_path / "out" / "fit.json")["fits"]}
    for name, peak in (("adam", 64), ("lion", 256)):
        assert entries[name]["b_peak"]["low"] <= peak <= entries[name]["b_peak"]["high"]
        assert entries[name]["noise_scale"]["b_noise"] is None and entries[name]["noise_scale"]["why"]
    assert "data:image/png" in (tmp_path / "out" / "report.html").read_text()
    assert "adam" in done.stdout and "B_peak" in done.stdout


def test_steps_and_tokens_give_the_noise_scale(tmp_path):
    rng, rows = np.random.default_rng(0), []
    for size in 2 ** np.arange(3, 12):
        for rate in 2.0 ** (np.arange(-10, 0) / 2):
            steps = 100 * (1 + 90 / size) * np.exp(0.3 * np.log(rate / 0.15) ** 2 + 0.02 * rng.normal())
            rows.append((size, rate, steps, steps * size))
    path = tmp_path / "runs.tsv"
    pd.DataFrame(rows, columns=["batch_size", "learning_rate", "steps", "tokens"]).to_csv(path, sep="\t", index=False)
    for column in ("steps", "tokens"):
        done = fit(path, f"--{column}={column}", f"--workdir={tmp_path / column}")
        assert done.returncode == 0, done.stderr
        noise = results.read_json(tmp_path / column / "fit.json")["fits"][0]["noise_scale"]
        assert noise["b_noise"] == pytest.approx(90, rel=0.15) and noise["low"] < 90 < noise["high"]


@pytest.mark.parametrize(
    ("text", "flags", "words"),
    [
        ("bs,lr,loss\n8,0.1,1\n", ["--batch_size=batch"], "has no column 'batch': it has bs, lr, loss"),
        ("bs,lr,loss\n8,0.1,1\n", ["--batch_size=bs", "--learning_rate=lr"], "give either --loss or"),
        ("bs,lr,loss\n8,-1,1\n", ["--batch_size=bs", "--learning_rate=lr", "--loss=loss"], "'lr' must be above 0"),
        ("bs,lr,loss\n", ["--batch_size=bs", "--learning_rate=lr", "--loss=loss"], "has no rows"),
        (None, [], "does not exist"),
        ("", [], "not a table"),
        ("a", ["--sedd=3"], "sedd"),
    ],
)
def test_mistakes_end_in_one_sentence(tmp_path, text, flags, words):
    path = tmp_path / "runs.csv"
    if text is not None:
        path.write_text(text)
    failed = fit(path, f"--workdir={tmp_path / 'out'}", *flags)
    assert failed.returncode != 0 and words in failed.stderr and "Traceback" not in failed.stderr
    assert len(failed.stderr.strip().splitlines()) == 1
