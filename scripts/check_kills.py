"""Is a sweep that was killed and taken up again the one that was never killed? To the last bit?

    python scripts/check_kills.py                 # 20 kills in 5 sweeps, some minutes
    python scripts/check_kills.py --kills=4 --sweeps=1

Each sweep of a noisy quadratic is killed (SIGKILL) at random moments after its first piece was
begun, and taken up by the same command each time; then it runs to its end. A line for each: the
pieces that were done at each kill, whether all values are those of a sweep that nobody killed, and
what else lies in its workdir. The exit code is 1 where they differ or something is left behind.
"""

import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from absl import app, flags

from surge.cli import parsed
from surge.workdir import sweeps

SMALL = (
    *("--config=configs/quadratic.py", "--stages=sweep", "--config.seeds=3"),
    *("--config.batch_sizes=(2,4,8,16,32,64)", "--config.max_examples=40000"),
)
ROOT = Path(__file__).parent.parent
LATEST = 0.5  # seconds after a piece was done: so late a kill comes at most


def command(workdir: Path) -> list[str]:
    """That starts a sweep, and takes it up again."""
    return [sys.executable, "-m", "surge.main", *SMALL, f"--workdir={workdir}"]


def pieces(workdir: Path) -> int:
    """How many are done."""
    return len(list((workdir / "sweep").glob("[!.]*.nc")))


def kill_once(workdir: Path, moment: random.Random) -> int:
    """Starts the sweep and kills it soon after its next piece; how many are done by then."""
    process = subprocess.Popen(command(workdir), cwd=ROOT, stderr=subprocess.DEVNULL)
    before = pieces(workdir)
    while process.poll() is None and pieces(workdir) == before:
        time.sleep(0.002)
    # Mostly at once: pieces are written one after the other within milliseconds.
    time.sleep(LATEST * moment.random() ** 4)
    process.kill()
    process.wait()
    return pieces(workdir)


def unfinished(workdir: Path) -> list[str]:
    """Names beside the pieces: of files that were being written, say."""
    return sorted(
        path.name
        for path in (workdir / "sweep").iterdir()
        if path.suffix != ".nc" or path.name.startswith(".")
    )


def main(argv: list[str]) -> None:
    del argv
    moment = random.Random(_SEED.value)
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        subprocess.run(command(whole), cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
        kept = {path.name for path in whole.iterdir()}
        print("| sweep | pieces done at each kill | identical | left behind |")
        print("| --- | --- | --- | --- |")
        for index in range(_SWEEPS.value):
            workdir = Path(folder) / str(index)
            share = _KILLS.value // _SWEEPS.value + (index < _KILLS.value % _SWEEPS.value)
            done = [kill_once(workdir, moment) for _ in range(share)]
            subprocess.run(command(workdir), cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
            same = sweeps.open_sweep(workdir).identical(sweeps.open_sweep(whole))
            left = sorted({path.name for path in workdir.iterdir()} - kept) + unfinished(workdir)
            wrong += not same or bool(left)
            told = ", ".join(map(str, done))
            print(f"| {index} | {told} | {same} | {', '.join(left) or 'nothing'} |", flush=True)
    sys.exit(int(wrong > 0))


if __name__ == "__main__":
    _KILLS = flags.DEFINE_integer("kills", 20, "In all.", lower_bound=1)
    _SWEEPS = flags.DEFINE_integer("sweeps", 5, "That they are shared among.", lower_bound=1)
    _SEED = flags.DEFINE_integer("seed", 0, "Of the moments.")
    app.run(main, flags_parser=parsed)
