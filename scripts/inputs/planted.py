"""A table whose optima are planted, and what surge must make of one: refuse, read or fit it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from inputs.case import Input, program
from surge import fit_table
from surge.tables.reading import read
from surge.tables.tidy import tidy
from surge.workdir.files import read_json

PLANTED = {32: 3e-4, 64: 4.2e-4, 128: 6e-4, 256: 8.5e-4, 512: 1.2e-3}
RATES = [1e-4, 2e-4, 4e-4, 8e-4, 1.6e-3, 3.2e-3]
NEAR = 0.05  # relative error of an optimum that is right

Content = pd.DataFrame | str | bytes


def planted(scale: float = 1.0, rates: Sequence[float] = RATES, **labels: Any) -> pd.DataFrame:
    """One run a cell: loss 2.5 at the planted optimum times `scale`, a parabola in the log rate."""
    rows = [
        (size, rate, 2.5 + 0.1 * np.log(rate / (scale * best)) ** 2)
        for size, best in PLANTED.items()
        for rate in rates
    ]
    return pd.DataFrame(rows, columns=["batch_size", "learning_rate", "loss"]).assign(**labels)


def write(content: Content, file: str) -> None:
    """A table as the file that it is in."""
    if isinstance(content, pd.DataFrame):
        content = content.to_csv(index=False)
    Path(file).write_bytes(content if isinstance(content, bytes) else content.encode())


def refused(name: str, content: Content, words: str, *flags: str, file: str = "runs.csv") -> Input:
    """A table that `fit_table` must refuse."""

    def act() -> None:
        write(content, file)
        program(fit_table.main, file, "--workdir=out", *flags)()

    return Input("table", name, act, words)


def taken(name: str, content: Content, file: str = "runs.csv", **named: Any) -> Input:
    """A spelling of the planted table, which must be read as it."""

    def act() -> str:
        write(content, file)
        runs = tidy(read(Path(file)), **named)
        right = tidy(planted())
        pd.testing.assert_frame_equal(runs.rows, right.rows, rtol=1e-3)
        return "read as planted; " + "; ".join(runs.remarks)

    return Input("table", name, act, "read as planted", refused=False)


def fitted(
    name: str, content: Content, words: str, judge: Callable[[Any], bool], *flags: str
) -> Input:
    """A table that `fit_table` must fit, to entries that are right, saying `words`."""

    def act() -> str:
        write(content, "runs.csv")
        program(fit_table.main, "runs.csv", "--workdir=out", *flags)()
        entries = read_json("out/fit.json")["fits"]
        assert judge(entries), entries
        assert "<svg" in Path("out/report.html").read_text()
        return "optima are right"

    return Input("table", name, act, words, refused=False)


def are(*wanted: Sequence[float]) -> Callable[[Any], bool]:
    """Whether the optima of each entry are these; None where one is not asked for."""

    def judge(entries: Any) -> bool:
        found = [[point["lr"] for point in entry["optimal_lr"]] for entry in entries]
        return len(found) == len(wanted) and all(map(_near, found, wanted))

    return judge


def _near(found: Sequence[float], wanted: Sequence[float]) -> bool:
    return len(found) == len(wanted) and np.allclose(found, wanted, rtol=NEAR)


def noise_of_512(entries: Any) -> bool:
    """Whether the noise scale is that of the rates that somebody has tuned."""
    return bool(np.isclose(entries[0]["noise_scale"]["b_noise"], 512, rtol=0.01))


def answered(_: Any) -> bool:
    """Any entries will do: it is the words that are asked for."""
    return True
