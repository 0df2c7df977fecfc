"""Tables of runs as people have them: what is read, what is refused, and what optima are right."""

import gzip
import io
import json
import zipfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from inputs.case import Input, program
from inputs.planted import (
    PLANTED,
    RATES,
    answered,
    are,
    fitted,
    noise_of_512,
    planted,
    refused,
    taken,
    write,
)
from surge import fit_table


def inputs() -> list[Input]:
    """All tables."""
    return [
        *_mixed(),
        *_histories(),
        *_no_tables(),
        *_bad_cells(),
        *_bad_flags(),
        *_spellings(),
        *_names(),
        *_fitted(),
    ]


def _mixed() -> list[Input]:
    """Two settings in one table, which nothing tells the fit."""
    pairs = {
        "N": ("10M", "1B"),
        "optimizer": ("adam", "lion"),
        "weight_decay": (0.0, 0.1),
        "depth": (12, 24),
        "tied": (True, False),
        "note": (None, "new data"),
        "momentum": (0.9, float("nan")),
    }
    return [
        refused(
            f"two values of {column} are mixed",
            pd.concat([planted(**{column: one}), planted(2.0, RATES[:5], **{column: other})]),
            f"--group={column}",
        )
        for column, (one, other) in pairs.items()
    ]


def history(column: str, ticks: Sequence[Any], **labels: Any) -> pd.DataFrame:
    """A row for each tick, on which the loss falls."""
    parts = [
        planted(**labels, **{column: tick}).assign(loss=planted()["loss"] + 1 / (index + 1))
        for index, tick in enumerate(ticks)
    ]
    return pd.concat(parts).sample(frac=1, random_state=0)


def _histories() -> list[Input]:
    """Rows that are no runs."""
    numbered = [
        refused(f"a row for each {column}", history(column, (0, 250, 500)), "rows are not runs")
        for column in ("step", "epoch", "global_step", "_step", "train/step", "iteration")
    ]
    twice = pd.concat([planted(seed=0), planted(seed=1).assign(seed=0, loss=2.0)])
    steps = history("step", (0, 250, 500))
    return [
        *numbered,
        refused(
            "a row for each step of named runs",
            history("step", (0, 250), run=[f"run {index}" for index in range(30)]),
            "--last, --best or --at=STEP",
        ),
        refused("a clock alone numbers rows", history("wall_time", (1.5, 2.25, 3.75)), "--step"),
        refused("one seed stands twice in a cell", twice, "rows are not runs", "--seed=seed"),
        refused("--at a step that is not there", steps, "near it 'step' holds", "--at=300"),
        refused("--last and --best", steps, "give one of", "--last", "--best"),
        refused("--last without a step", planted(), "give --step", "--last"),
        refused("--at=nan", steps, "--at", "--at=nan"),
        refused("--step of no column", steps, "no column 'stp'", "--last", "--step=stp"),
        refused("--step of words", steps.assign(step="end"), "step", "--last"),
    ]


def _no_tables() -> list[Input]:
    """Files that hold no table."""
    csv = planted().to_csv(index=False)
    wide = pd.DataFrame([range(5000)], columns=[f"column{index}x" for index in range(5000)])
    ragged = csv.replace("\n32,0.0002", ",extra,more\n32,0.0002")
    return [
        refused("nothing", "", "is not a table"),
        refused("blank lines", "\n\n\n", "is not a table"),
        refused("a header alone", csv.splitlines()[0] + "\n", "has no rows"),
        refused("latin-1", "lr,größe\n1,2\n".encode("latin-1"), "UTF-8"),
        refused("utf-16", csv.encode("utf-16"), "UTF-8"),
        refused("a picture", b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "UTF-8"),
        refused("zeros", bytes(1000), "has no rows"),
        refused("gzip that is none", csv.encode(), "is not a table", file="runs.csv.gz"),
        refused(
            "gzip cut short", gzip.compress(csv.encode())[:-20], "is not a table", file="r.csv.gz"
        ),
        refused("parquet that is none", csv.encode(), "arquet", file="runs.parquet"),
        refused("JSON cut short", planted().to_json()[:-9], "is not a table", file="runs.json"),
        refused("JSON of numbers", "[1, 2, 3]", "give --loss", file="runs.json"),
        refused("JSON of one number", "3", "runs.json", file="runs.json"),
        refused("JSON of nothing", "[]", "runs.json", file="runs.json"),
        refused("JSON of nested lists", "[" * 5000 + "]" * 5000, "runs.json", file="runs.json"),
        refused("JSON lines cut short", '{"lr": 1}\n{"lr"', "is not a table", file="runs.jsonl"),
        refused("a spreadsheet", _spreadsheet(), "UTF-8", file="runs.xlsx"),
        refused("a page", "<html><body>Sign in</body></html>\n<p>", "give --loss"),
        refused("rows longer than the header", ragged, "is not a table"),
        refused("an open quote", csv.replace("0.0002", '"0.0002', 1), ""),
        refused("two columns of one name", csv.replace("learning_rate", "loss"), "2 columns"),
        refused(
            "two columns that blanks told apart",
            csv.replace("rate", "rate, loss", 1).replace("\n", ",1\n"),
            "columns",
        ),
        refused("5,000 columns of other things", wide, "give --loss"),
        Input("table", "no file", program(fit_table.main, "no.csv", "--workdir=out"), "not exist"),
        Input("table", "a folder", program(fit_table.main, ".", "--workdir=out"), "give the table"),
    ]


def _spreadsheet() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("xl/workbook.xml", "<x>é</x>", zipfile.ZIP_DEFLATED)
        archive.writestr("noise", np.random.default_rng(0).bytes(500))
    return file.getvalue()


def _with(column: str, cell: Any, row: int = 3, **columns: Any) -> pd.DataFrame:
    """The planted table with one cell changed."""
    table = planted(**columns).astype({column: object})
    table.loc[row, column] = cell
    return table


def _bad_cells() -> list[Input]:
    """Cells that are no batch size, rate or loss."""
    cells = {
        "batch_size": (-32, 0, "many", "-32k", float("inf"), "1e400", True),
        "learning_rate": (-1e-3, 0.0, "fast", "1e-3?", "0,1,2", float("inf"), "1e-400"),
    }
    wrong = [
        refused(f"{column} {cell!r}", _with(column, cell), "must be above 0")
        for column, values in cells.items()
        for cell in values
    ]
    whole = {
        "all diverged, in words": "diverged",
        "all diverged, as nan": "nan",
        "all infinite": float("inf"),
        "losses of 1e300": "1e300",
        "losses of no number": "",
        "dates for losses": "2026-01-01",
        "lists for losses": "[1, 2]",
    }
    return [
        *wrong,
        *(
            refused(name, planted().assign(loss=cell), "holds no number")
            for name, cell in whole.items()
        ),
        refused(
            "true and false for losses",
            planted().assign(loss=planted()["loss"] > 2.6),
            "holds no number",
        ),
        refused("all crashed", planted().assign(batch_size=None), "nothing to fit"),
        refused(
            "steps below 0",
            planted().rename(columns={"loss": "steps"}).assign(steps=-1),
            "holds no number above 0",
        ),
    ]


def _bad_flags() -> list[Input]:
    """Flags that contradict each other or the table."""
    table = planted(width=64, seed=0)
    flags = {
        "--loss=los": "no column 'los'",
        "--batch_size=": "batch_size",
        "--batch_size=loss": "given twice",
        "--learning_rate=batch_size --batch_size=batch_size": "given twice",
        "--group=batch_size": "group",
        "--group=nowhere": "no column 'nowhere'",
        "--steps=loss --tokens=width": "not both",
        "--where=width": "must read COL=VALUE",
        "--where=height=3": "must read COL=VALUE",
        "--where=width=65": "leaves no row",
        "--diverged_above=nan": "diverged_above",
        "--diverged_above=2 --maximize": "diverged_above",
        "--diverged_above=-1": "holds no number",
        "--diverged_above=high": "diverged_above",
        "--sequence_length=0": "sequence_length",
        "--sequence_length=-2048": "sequence_length",
        "--sequence_length=nan": "sequence_length",
        "--sequence_length=inf": "sequence_length",
        "--covariate=width": "add --group=width",
        "--covariate=nowhere": "covariate",
        "--group=width --covariate=width --where=width=x": "leaves no row",
        "--sedd=seed": "sedd",
        "more.csv": "give one table",
        "--workdir=": "workdir",
        "--workdir=runs.csv": "is a file",
        "--workdir=gs://bucket/fits": "remote address",
    }
    judged = planted().assign(val_loss=2.0, train_loss=1.0).drop(columns="loss")
    return [
        *(
            refused(f"fit_table {line}", table, words, *line.split())
            for line, words in flags.items()
        ),
        refused("two losses", judged, "it may be val_loss or train_loss"),
        refused("no loss", judged[["batch_size", "learning_rate"]], "give --loss"),
        refused("no batch size", planted()[["learning_rate", "loss"]], "give --batch_size"),
        refused("two rates", planted(lr=1.0).rename(columns={"learning_rate": "max_lr"}), "may be"),
        refused(
            "a covariate of words",
            pd.concat([planted(model=name) for name in ("a", "b")]),
            "must be above 0",
            *("--group=model", "--covariate=model"),
        ),
        Input("table", "fit_table alone", program(fit_table.main), "give one table of runs"),
        Input("table", "no --workdir", program(fit_table.main, "a.csv"), "--workdir is missing"),
        Input("table", "a workdir of surge main", _owned, "holds a run of surge.main"),
    ]


def _owned() -> None:
    Path("out").mkdir()
    Path("out/config.json").write_text("{}")
    write(planted(), "runs.csv")
    program(fit_table.main, "runs.csv", "--workdir=out")()


def _spellings() -> list[Input]:
    """One table, as programs and people write it."""
    csv = planted().to_csv(index=False)
    text = partial(planted().to_csv, index=False)
    records = [
        {"config": {"lr": rate, "bs": size}, "summary": {"loss": loss}}
        for size, rate, loss in planted().itertuples(index=False)
    ]
    percent = planted().assign(
        learning_rate=[f"{100 * rate:.4f}%" for rate in planted().learning_rate]
    )
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("runs.csv", csv)
    powers = planted().assign(
        batch_size=[f"2^{size.bit_length() - 1}" for size in planted().batch_size]
    )
    return [
        taken("decimal commas", text(sep=";", decimal=",")),
        taken("decimal commas, tabs", text(sep="\t", decimal=","), "runs.tsv"),
        taken("semicolons", text(sep=";")),
        taken("pipes", text(sep="|")),
        taken("blanks", text(sep=" "), "runs.txt"),
        taken("a comment above the header", "# exported\n" + csv),
        taken("a header that is a comment", "# " + text(sep=" "), "runs.txt"),
        taken("a byte order mark", csv.encode("utf-8-sig")),
        taken("line ends of another system", csv.replace("\n", "\r\n")),
        taken("a blank last line", csv + "\n\n"),
        taken("numbers in quotes", text(quoting=1)),
        taken("an index column", planted().to_csv()),
        taken("gzip", gzip.compress(csv.encode()), "runs.csv.gz"),
        taken("zip", zipped.getvalue(), "runs.zip"),
        taken("JSON lines", planted().to_json(orient="records", lines=True), "runs.jsonl"),
        taken("JSON records", planted().to_json(orient="records"), "runs.json"),
        taken("JSON columns", planted().to_json(), "runs.json"),
        taken("nested JSON", "\n".join(map(json.dumps, records)), "runs.jsonl"),
        taken("rates in percent", percent),
        taken("batch sizes as powers", powers),
        taken("rows in reverse", planted()[::-1]),
        taken("a crashed row", pd.concat([planted(), pd.DataFrame({"loss": [9.0]})])),
        taken(
            "rates that differ by rounding",
            planted().assign(learning_rate=planted().learning_rate * (1 + 1e-9 * np.arange(30))),
        ),
        taken(
            "batch sizes in tokens",
            planted().assign(batch_size=planted().batch_size * 2048),
            sequence_length=2048,
        ),
        taken(
            "batch sizes in k",
            planted().assign(batch_size=[f"{size}k" for size in planted().batch_size]),
            sequence_length=1000,
        ),
        taken(
            "accuracies",
            planted().assign(loss=-planted().loss).rename(columns={"loss": "acc"}),
            loss="acc",
            maximize=True,
        ),
        taken("sizes down, rates across", _wide("batch_size", "learning_rate")),
        taken("rates down, sizes across", _wide("learning_rate", "batch_size")),
        taken(
            "names across",
            _wide("batch_size", "learning_rate").rename(
                columns={rate: f"lr={rate}" for rate in RATES}
            ),
        ),
        taken(
            "the last of each history",
            history("step", (0, 1)).assign(loss=lambda table: table.loss - 0.5),
            pick="last",
        ),
    ]


def _wide(down: str, across: str) -> pd.DataFrame:
    wide = planted().pivot(index=down, columns=across, values="loss").reset_index()
    return wide.rename_axis(columns=None)


def _names() -> list[Input]:
    """Columns under other names that are plain."""
    names = {
        "batch_size": ("bs", "BS", "Batch Size", "train/batch_size", "params_batch_size", "batch"),
        "learning_rate": ("lr", "LR", "Learning-Rate", "config.lr", "params_lr", "peak_lr", "eta"),
        "loss": ("val_loss", "Loss", "eval/loss", "final_loss", "summary.loss", "value"),
    }
    return [
        taken(f"{column} as {name!r}", planted().rename(columns={column: name}))
        for column, others in names.items()
        for name in others
    ]


def _fitted() -> list[Input]:
    """Tables that are fitted whole."""
    best = list(PLANTED.values())
    models = pd.concat([planted(2.0, [*RATES, 6.4e-3], width=1024), planted(width=256)])
    size = 4.0 ** np.arange(2, 8)
    tuned = pd.DataFrame(
        {
            "batch_size": size,
            "learning_rate": [0.001, 0.002, 0.004, 0.006, 0.004, 0.002],
            "steps": 1000 * (1 + 512 / size),
        }
    )
    far = planted(rates=[1e-4, 3e-4, 1e-3, 2e-3])
    far["loss"] = 2 + 0.1 * np.log(far["learning_rate"] / 0.004) ** 2
    broken = planted().astype({"loss": object})
    broken.loc[broken["learning_rate"] == 3.2e-3, "loss"] = "diverged"
    accuracy = planted().assign(val_accuracy=3 - planted().loss).drop(columns="loss")
    flat = planted().assign(loss=2.5)
    return [
        fitted("planted", planted(), "optima are right", are(best)),
        fitted("grouped", models, "width=256", are(best, [2 * lr for lr in best]), "--group=width"),
        fitted("an accuracy", accuracy, "optima", are(best), "--loss=val_accuracy", "--maximize"),
        fitted("an accuracy unsaid", accuracy, "add --maximize", answered, "--loss=val_accuracy"),
        fitted("already tuned", tuned, "optima", noise_of_512),
        fitted("beyond the last rate", far, "≥ 0.002", are([2e-3] * 5)),
        fitted("words for diverged runs", broken, "5 of 30 rows count as diverged", are(best)),
        fitted("one row", planted()[:1], "optima", answered),
        fitted("one batch size", planted()[:6], "optima", are(best[:1])),
        fitted("two rates", planted(rates=RATES[2:4]), "optima", answered),
        fitted("a loss that is the same everywhere", flat, "optima", answered),
        fitted("losses of 1e50", planted().assign(loss=1e50 * planted().loss), "optima", are(best)),
        fitted("losses below 0", planted().assign(loss=planted().loss - 9), "optima", are(best)),
        fitted(
            "rates of 1e-300",
            planted().assign(learning_rate=1e-297 * planted().learning_rate),
            "optima",
            answered,
        ),
        fitted(
            "names with markup", planted(model="<script>../x"), "optima", are(best), "--group=model"
        ),
    ]
