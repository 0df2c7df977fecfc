"""Tables of runs as people have them: every spelling of one table is that table."""

import gzip
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from surge.tables import reading
from surge.tables.reading import number, read
from surge.workdir.files import ResultError

CELLS = [(32, 1e-4, 2.5), (32, 1e-3, 2.25), (32768, 1e-3, 2.125)]
FRAME = pd.DataFrame(CELLS, columns=["bs", "lr", "loss"])


def as_text(separator=",", write=str, header="bs lr loss"):
    lines = [separator.join(header.split())]
    lines += [separator.join(map(write, row)) for row in CELLS]
    return "\n".join(lines) + "\n"


SPELLINGS = {
    "plain.csv": as_text(),
    "tabs.tsv": as_text("\t"),
    "semicolons.csv": as_text(";"),
    "pipes.csv": as_text("|"),
    "blanks.csv": as_text(" ; "),
    "columns.txt": as_text("  "),
    "decimal_comma.csv": as_text(";", lambda cell: f"{cell:f}".replace(".", ",")),
    "decimal_comma.tsv": as_text("\t", lambda cell: str(cell).replace(".", ",")),
    "comment.csv": "# exported 2026-01-01\n# by hand\n" + as_text(),
    "numpy.txt": "# " + as_text(" "),
    "rows.jsonl": FRAME.to_json(orient="records", lines=True),
    "rows.json": FRAME.to_json(orient="records"),
    "columns.json": FRAME.to_json(),
    "index.csv": FRAME.to_csv(),
    "mark.csv": "\ufeff" + as_text(),
    "lines.csv": "\n\n" + as_text().replace("\n", "\r\n"),
    "quoted.csv": as_text(write=lambda cell: f'"{cell}"'),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_is_the_same_table(tmp_path, name):
    path = tmp_path / name
    path.write_text(SPELLINGS[name], encoding="utf-8")
    found = read(path)
    assert list(found.columns) == ["bs", "lr", "loss"]
    assert found.to_numpy(float) == pytest.approx(FRAME.to_numpy())


@pytest.mark.parametrize("name", ["plain.csv", "rows.jsonl"])
def test_compressed(tmp_path, name):
    path = tmp_path / f"{name}.gz"
    path.write_bytes(gzip.compress(SPELLINGS[name].encode()))
    assert read(path).to_numpy(float) == pytest.approx(FRAME.to_numpy())
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(ResultError, match="is not a table"):
        read(path)


def test_thousands_are_not_decimals(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text('bs,lr,loss\n"1,024",0.1,2.5\n"32,768",0.1,2.25\n')
    assert read(path)["bs"].tolist() == [1024, 32768]


def test_nested_records_become_columns(tmp_path):
    path = tmp_path / "runs.jsonl"
    path.write_text('{"config": {"lr": 0.1, "bs": 8}, "summary": {"loss": 2.5}}\n')
    found = read(path)
    assert found.iloc[0].to_dict() == {"config.lr": 0.1, "config.bs": 8, "summary.loss": 2.5}


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
    found = read(path)
    assert found[["bs", "lr", "loss"]].to_numpy().tolist() == [[8, 0.1, 1.5]]
    assert list(found.columns) == ["bs", "lr", "loss", "opt"]


def test_one_column_is_one_column(tmp_path):
    (tmp_path / "runs.csv").write_text("losses\n1\n2\n")
    assert list(read(tmp_path / "runs.csv").columns) == ["losses"]


def test_parquet_is_read_where_its_engine_is_installed(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    path = tmp_path / "runs.parquet"
    FRAME.to_parquet(path)
    assert read(path).equals(FRAME)
    FRAME.set_index("bs").to_parquet(path)
    assert read(path).equals(FRAME)

    def missing(_):
        raise ImportError("Unable to find a usable engine")

    monkeypatch.setattr(pd, "read_parquet", missing)
    with pytest.raises(ResultError, match="pip install pyarrow"):
        read(path)


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
        (b"bs,lr,lr,loss\n8,0.1,1,1\n", "has 2 columns 'lr'"),
    ],
)
def test_what_is_not_a_table_is_refused(tmp_path, content, words):
    path = tmp_path / "runs.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ResultError, match=words):
        read(path)


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        *(
            ("32k", 32000),
            ("32 K", 32000),
            ("0.5M", 5e5),
            ("32Ki", 32768),
            ("2B", 2e9),
            ("87.5%", 0.875),
        ),
        *(("1e-3", 1e-3), ("3.E-4", 3e-4), (".5", 0.5), ("2^15", 32768), ("2**-10", 2**-10)),
        *((7, 7), (0.25, 0.25), (" 8 ", 8)),
        *((each, math.nan) for each in ("", "fast", "k", "1.2.3", "8 GPUs", "e5", None)),
    ],
)
def test_numbers_as_people_write_them(cell, value):
    assert number(cell) == pytest.approx(value, nan_ok=True)


@given(st.floats(1e-12, 1e12))
def test_a_number_is_itself(value):
    assert number(repr(value)) == value


def test_numbers_of_a_column():
    column = pd.Series(["1", "2k", None, "nan", "inf", "diverged"])
    assert reading.numbers(column) == pytest.approx([1, 2000] + 4 * [math.nan], nan_ok=True)
    assert reading.in_units(column) and not reading.in_units(pd.Series(["1", "x"]))


@pytest.mark.parametrize("heads", ["0.1 0.2 0.4", "lr=0.1 lr=0.2 lr=0.4"])
def test_a_wide_table_becomes_long(heads):
    names = heads.split()
    wide = pd.DataFrame([(8, 1.0, 2.0, 3.0), (16, 4.0, 5.0, 6.0)], columns=["bs", *names])
    assert reading.across(wide) == names and not reading.across(FRAME)
    long = reading.unpivoted(wide, "rate", "loss").sort_values(["bs", "rate"])
    assert long["rate"].tolist() == 2 * [0.1, 0.2, 0.4]
    assert long["loss"].to_numpy() == pytest.approx(np.arange(1.0, 7.0))
