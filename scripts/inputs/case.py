"""One input, what came of it, and whether that was right.

Each input meets a process of its own, forked from one that has imported everything: it may leave
the signals, flags and memory of its process as it likes, and its time and memory are its own.
"""

import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from surge import cli
from surge.config import ConfigError
from surge.workdir.files import ResultError

PACKAGE = str(Path(cli.__file__).parent)
SECONDS = 30.0  # that a refusal may take
BYTES = 2 * 2**30  # that it may hold
LETTERS = 1000  # that its sentence may have
PATIENCE = 60.0  # seconds until an input is given up
TRACEBACK, NO_END = 1, 124  # exit codes


class Input(NamedTuple):
    """Something that people give to surge.

    Attributes:
      kind, name: of the input.
      act: gives it to surge, in an empty folder; what it returns is shown.
      words: that the sentence must hold, or the answer.
      refused: whether it must end in a sentence, not in an answer.
    """

    kind: str
    name: str
    act: Callable[[], Any]
    words: str
    refused: bool = True


class Outcome(NamedTuple):
    """What came of an input: 0 is an answer, 2 a sentence, 1 a traceback; memory in bytes."""

    code: int
    said: str
    seconds: float
    memory: int


def meet(one: Input) -> Outcome:
    """Gives an input to a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder) / "said"
        here = Path(folder) / "here"
        here.mkdir()
        started = time.monotonic()
        child = os.fork()
        if not child:
            _act(one, here, said)
        code, memory = _wait(child, started + PATIENCE)
        seconds = time.monotonic() - started
        return Outcome(code, said.read_text(errors="replace").strip(), seconds, memory)


def _wait(child: int, end: float) -> tuple[int, int]:
    """Exit code and peak memory in bytes of a child, killed at `end`."""
    killed = False
    while True:
        done, status, used = os.wait4(child, os.WNOHANG)
        if done:
            code = NO_END if killed else os.waitstatus_to_exitcode(status)
            return code, used.ru_maxrss * 1024
        if time.monotonic() > end and not killed:
            os.kill(child, 9)
            killed = True
        time.sleep(0.005)


def _act(one: Input, here: Path, said: Path) -> None:
    """The child: its answer, sentence or traceback is written, and it ends."""
    os.chdir(here)
    file = os.open(said, os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(file, stream)
    code = 0
    try:
        answer = one.act()
        if answer is not None:
            print(answer)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    except BaseException as error:
        code = cli.MISTAKE if is_sentence(error) else TRACEBACK
        print(error) if code == cli.MISTAKE else traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def is_sentence(error: BaseException) -> bool:
    """Whether surge raised it for its user: no error of a library that passed through."""
    if isinstance(error, ConfigError | ResultError):
        return True
    innermost = traceback.extract_tb(error.__traceback__)[-1].filename
    return isinstance(error, ValueError) and innermost.startswith(PACKAGE)


def fault(one: Input, outcome: Outcome) -> str:
    """What is wrong with what came of an input; "" where it is right."""
    if outcome.code == NO_END:
        return f"no end in {PATIENCE:g} s"
    if outcome.code == TRACEBACK or "Traceback (most recent call last)" in outcome.said:
        return "a traceback"
    if outcome.code not in (0, cli.MISTAKE):
        return f"exit code {outcome.code}"
    if one.refused and outcome.code == 0:
        return "accepted in silence"
    if not one.refused and outcome.code:
        return "refused"
    if one.words not in outcome.said:
        return f"does not say {one.words!r}"
    return _excess(outcome) if one.refused else ""


def _excess(outcome: Outcome) -> str:
    """What a refusal took too much of."""
    if outcome.seconds > SECONDS:
        return f"more than {SECONDS:g} s"
    if outcome.memory > BYTES:
        return "more than 2 GiB"
    if len(outcome.said) > LETTERS:
        return f"a sentence of {len(outcome.said)} letters"
    return ""


def sentence(said: str) -> str:
    """The line of all that was said that tells what came of it."""
    lines = said.splitlines() or [""]
    ours = [line for line in lines if line.startswith("surge: ")]
    shown = ours[-1] if ours else lines[-1] if "Traceback" in said else lines[0]
    return shown.replace("|", "\\|")


def program(main: Callable[[Sequence[str]], None], *arguments: str) -> Callable[[], None]:
    """A command line of one of the programs, as an act."""

    def act() -> None:
        sys.argv = ["surge", *arguments]
        cli.run(main)

    return act
