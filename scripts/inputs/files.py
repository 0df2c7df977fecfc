"""Workdirs with a file that is damaged, foreign or missing, and caches that are broken."""

import atexit
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import xarray as xr

from inputs.case import Input, meet, program
from surge import fit_table, main, suggest

COMMAND = (
    "--config=surge:quadratic",
    "--config.batch_sizes=(1,4)",
    "--config.seeds=2",
    "--config.measure.directions=8",
    "--config.measure.examples=64",
    "--workdir=run",
)
PIECE = "sweep/sgd-b1.nc"
STATE = "checkpoints/step-0"

Damage = Callable[[Path], object]


@cache
def _whole() -> Path:
    """A workdir that has run through all stages, and a table's beside it; made once."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)  # inputs end without it: they are forks
    run = Input("file", "run", lambda: _run(folder), "", refused=False)
    outcome = meet(run)
    assert outcome.code == 0, outcome.said
    return folder


def _run(folder: Path) -> None:
    os.chdir(folder)
    rows = [f"{size},{rate},{size / rate}" for size in (1, 2, 4) for rate in (0.1, 0.2, 0.4)]
    Path("runs.csv").write_text("\n".join(["batch_size,lr,loss", *rows]))
    program(fit_table.main, "runs.csv", "--workdir=table")()
    program(main.main, *COMMAND)()


def damaged(name: str, words: str, stages: str, damage: Damage, refused: bool = True) -> Input:
    """A run that goes on in a workdir that something was done to."""

    def act() -> None:
        shutil.copytree(_whole() / "run", "run")
        damage(Path("run"))
        program(main.main, *COMMAND, f"--stages={stages}")()

    return Input("file", name, act, words, refused)


def flipped(path: str, share: float) -> Damage:
    """One bit, so far into a file."""

    def damage(workdir: Path) -> None:
        content = bytearray((workdir / path).read_bytes())
        content[int(share * (len(content) - 1))] ^= 1
        (workdir / path).write_bytes(content)

    return damage


def cut(path: str, share: float) -> Damage:
    """The end of a file is lost."""

    def damage(workdir: Path) -> None:
        content = (workdir / path).read_bytes()
        (workdir / path).write_bytes(content[: int(share * len(content))])

    return damage


def holds(path: str, content: str | bytes) -> Damage:
    """A file holds something else."""
    raw = content if isinstance(content, bytes) else content.encode()
    return lambda workdir: (workdir / path).write_bytes(raw)


def copied(source: str, target: str) -> Damage:
    """One file of a workdir in the place of another."""
    return lambda workdir: shutil.copy(workdir / source, workdir / target)


def edited(path: str, old: str, new: str) -> Damage:
    """A text in which somebody has changed a word."""

    def damage(workdir: Path) -> None:
        text = (workdir / path).read_text()
        assert old in text, path
        (workdir / path).write_text(text.replace(old, new, 1))

    return damage


def inputs() -> list[Input]:
    """All of them; the workdir that they are copies of is made first."""
    _whole()
    return [*_sweeps(), *_measurements(), *_fits(), *_states(), *_others()]


def _sweeps() -> list[Input]:
    """Pieces of a sweep."""
    read = "cannot be read"
    foreign = bytes(xr.Dataset({"temperature": ("day", [1.0])}).to_netcdf(engine="h5netcdf"))
    return [
        *(
            damaged(f"a bit of a piece, at {share:.0%}", read, "fit", flipped(PIECE, share))
            for share in (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
        ),
        damaged("a bit of a piece, the sweep goes on", read, "sweep", flipped(PIECE, 0.4)),
        damaged("a piece cut short", read, "fit", cut(PIECE, 0.5)),
        damaged("a piece without its seal's end", read, "fit", cut(PIECE, 0.999)),
        damaged("an empty piece", read, "fit", holds(PIECE, "")),
        damaged("text for a piece", read, "fit", holds(PIECE, "loss 1.0")),
        damaged("a piece of another kind", "another kind", "fit", holds(PIECE, foreign)),
        damaged("a measurement for a piece", "another kind", "fit", copied("measure.nc", PIECE)),
        damaged("a piece of another optimizer", read, "fit", copied("sweep/sign_sgd-b1.nc", PIECE)),
        damaged("a piece of another batch size", read, "fit", copied("sweep/sgd-b4.nc", PIECE)),
        damaged("a folder for a piece", "sweep/sgd-b1.nc", "fit", _folder),
        damaged(
            "no piece at all", "holds no sweep", "fit", lambda run: shutil.rmtree(run / "sweep")
        ),
        damaged("a missing piece", "incomplete", "fit", lambda run: (run / PIECE).unlink(), False),
        damaged("a half-written piece", "done", "fit", holds("sweep/.x.nc.1.part", "x"), False),
    ]


def _folder(run: Path) -> None:
    (run / PIECE).unlink()
    (run / PIECE).mkdir()


def _measurements() -> list[Input]:
    """measure.nc."""
    read = "measure.nc cannot be read"
    return [
        *(
            damaged(
                f"a bit of measure.nc, at {share:.0%}", read, "report", flipped("measure.nc", share)
            )
            for share in (0.05, 0.25, 0.5, 0.75, 0.95)
        ),
        damaged("measure.nc cut short", read, "report", cut("measure.nc", 0.5)),
        damaged("an empty measure.nc", read, "report", holds("measure.nc", "")),
        damaged("a piece for measure.nc", read, "report", copied(PIECE, "measure.nc")),
        damaged("an empty measure.nc, measured again", read, "measure", holds("measure.nc", "")),
    ]


def _fits() -> list[Input]:
    """fit.json."""
    read = "fit.json cannot be read"
    contents = {
        "empty": "",
        "a list": "[]",
        "an empty object": "{}",
        "a number": "3",
        "fits of another kind": '{"fits": [{}]}',
        "fits of no list": '{"fits": {"adam": 1}}',
        "null": "null",
        "binary": bytes(range(256)),
        "endless brackets": "[" * 100_000,
    }
    return [
        *(
            damaged(f"fit.json: {name}", read, "report", holds("fit.json", content))
            for name, content in contents.items()
        ),
        damaged("fit.json cut short", read, "report", cut("fit.json", 0.5)),
        damaged("fit.json, one word changed", read, "report", edited("fit.json", "sgd", "sdg")),
        *(
            damaged(
                f"a bit of fit.json, at {share:.0%}", read, "report", flipped("fit.json", share)
            )
            for share in (0.2, 0.4, 0.6)
        ),
    ]


def _states() -> list[Input]:
    """Saved states that are to be measured again."""
    again = "checkpoints"

    def without(damage: Damage) -> Damage:
        def both(run: Path) -> None:
            (run / "measure.nc").unlink()
            damage(run)

        return both

    def files_of(run: Path) -> list[Path]:
        return [path for path in (run / STATE).rglob("*") if path.is_file()]

    def emptied(run: Path) -> None:
        for path in files_of(run):
            path.write_bytes(b"")

    def half(run: Path) -> None:
        for path in files_of(run):
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    def bits(run: Path) -> None:
        path = max(files_of(run), key=lambda path: path.stat().st_size)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    index = "checkpoints/states.json"
    return [
        damaged("states of empty files", again, "measure", without(emptied)),
        damaged("states of half files", again, "measure", without(half)),
        damaged("a bit of a state", again, "measure", without(bits)),
        damaged("an index of states cut short", again, "measure", without(cut(index, 0.5))),
        damaged("an index of states: a list", again, "measure", without(holds(index, "[]"))),
        damaged("an index of states: empty", again, "measure", without(holds(index, "{}"))),
        damaged(
            "an index of other states", again, "measure", without(edited(index, '"loss"', '"lost"'))
        ),
        damaged(
            "no states at all",
            "checkpoints done",
            "measure",
            without(lambda run: shutil.rmtree(run / "checkpoints")),
            refused=False,
        ),
    ]


def _others() -> list[Input]:
    """Configs of a workdir, tables of one, locks and caches."""
    return [
        damaged("config.json cut short", "config.json", "fit", cut("config.json", 0.5)),
        damaged("config.json: a list", "config.json", "fit", holds("config.json", "[]")),
        damaged(
            "another config", "holds results of a different", "fit", edited("config.json", "1", "7")
        ),
        Input("file", "another seed", _another_seed, "seed was 0 and is now 1"),
        Input("file", "a bit of a table's fit.json", _suggested, "fit.json cannot be read"),
        Input("file", "a workdir in use", _in_use, "is in use by"),
        Input("file", "broken programs in the cache", _programs, "done in", refused=False),
        Input("file", "broken data in the cache", _data, "(40,)", refused=False),
    ]


def _another_seed() -> None:
    shutil.copytree(_whole() / "run", "run")
    program(main.main, *COMMAND, "--config.seed=1", "--stages=fit")()


def _suggested() -> None:
    shutil.copytree(_whole() / "table", "table")
    flipped("fit.json", 0.5)(Path("table"))
    asked = ("--from_batch_size=1", "--from_lr=0.1", "--to_batch_size=4")
    program(suggest.main, *asked, "--workdir=table")()


def _in_use() -> None:
    from surge.workdir import claim

    with claim.lock_workdir(Path("run")):
        program(main.main, *COMMAND, "--stages=fit")()


def _programs() -> None:
    import jax

    cache_folder = Path("programs").absolute()
    cache_folder.mkdir()
    jax.config.update("jax_compilation_cache_dir", str(cache_folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    program(main.main, *COMMAND, "--stages=sweep")()
    stored = [path for path in cache_folder.rglob("*") if path.is_file()]
    assert stored
    for path in stored:
        path.write_bytes(b"broken")
    jax.clear_caches()
    shutil.rmtree("run")
    program(main.main, *COMMAND, "--stages=sweep")()


def _data() -> str:
    os.environ["SURGE_CACHE"] = str(Path("cache").absolute())
    from surge.tasks.data import mnist1d_arrays

    Path("cache").mkdir()
    Path("cache/mnist1d-20-0.npz").write_bytes(b"PK broken")
    train, _ = mnist1d_arrays(20, 0)
    assert np.isfinite(train["x"]).all()
    return json.dumps(str(train["x"].shape[1:]))
