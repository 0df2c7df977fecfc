"""How a program begins and ends: its own flags, help, and one sentence for each mistake.

Flags are defined on values of the program's own, so that its module can be imported beside others
and beside a user's flags. What takes long to import is imported late: Ctrl-C is heeded before.
"""

from __future__ import annotations

import contextlib
import io
import os
import runpy
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from logging import WARNING, LogRecord
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from absl import flags
    from ml_collections import ConfigDict

EXAMPLE = "give one, like --config=configs/mnist1d.py or --config=surge:mnist1d"
MISTAKE, INTERRUPTED, CLOSED_PIPE, TERMINATED = 2, 130, 141, 143  # exit codes, as shells have them
PACKAGE = str(Path(__file__).parent)
HELP = ("--help", "-help", "-h", "--helpshort", "--helpfull")


def fail(sentence: object, code: int = MISTAKE) -> NoReturn:
    """Ends the program with one sentence on stderr."""
    print("surge: " + " ".join(str(sentence).split()), file=sys.stderr)
    sys.exit(code)


def run(program: Callable[[Sequence[str]], None]) -> None:
    """Runs a program on the command line; Ctrl-C and a reader that has gone end it quietly."""
    signal.signal(signal.SIGINT, _interrupted)
    from absl import flags

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # an ASCII terminal has no √
    flags.FLAGS.mark_as_parsed()  # or logging says that nobody parsed them
    log_ours()
    try:
        program(sys.argv)
        sys.stdout.flush()
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nowhere, stream.fileno())  # what Python flushes as it ends has a place to go
        sys.exit(CLOSED_PIPE)


def log_ours() -> None:
    """Shows our own lines of the log, and warnings of others."""
    from absl import logging

    logging.use_absl_handler()
    logging.get_absl_handler().addFilter(_is_ours)
    logging.set_verbosity(logging.INFO)


def _is_ours(record: LogRecord) -> bool:
    # JAX tells at INFO of accelerators that are not there.
    return record.levelno >= WARNING or record.pathname.startswith(PACKAGE)


def _interrupted(*_: object) -> NoReturn:
    """Ends at once: files are written whole or not at all."""
    # An exception may be raised where nobody passes it on, as in a callback.
    sentence = "surge: interrupted: the same command goes on from what is finished\n"
    with contextlib.suppress(OSError, ValueError):  # nobody may be there to read it
        os.write(sys.stderr.fileno(), sentence.encode())
    os._exit(INTERRUPTED)


def parse(values: flags.FlagValues, argv: Sequence[str], usage: str | None) -> list[str]:
    """Parses a command line into `values`; what is wrong in it ends in one sentence."""
    from absl import flags

    if set(HELP) & set(argv):
        print(f"{usage}\n{values.main_module_help()}")
        sys.exit(0)
    try:
        return values(list(argv))
    except flags.Error as error:
        fail(error)


def parsed(argv: Sequence[str]) -> list[str]:
    """Parses the command line of a script, whose flags are absl's own.

    A script that is told to end ends its children too.
    """
    from absl import flags

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    return parse(flags.FLAGS, argv, sys.modules["__main__"].__doc__)


def shipped(argv: Sequence[str]) -> list[str]:
    """A command line with a path in the place of surge:NAME, a config that comes with surge."""
    return [_with_path(argument) for argument in argv]


def _with_path(argument: str) -> str:
    flag, equals, value = argument.rpartition("=")
    if not value.startswith("surge:") or flag not in ("", "--config", "-config"):
        return argument
    name = value.removeprefix("surge:")
    stem, colon, variant = name.partition(":")
    configs = {path.stem: path for path in sorted(_configs().glob("*.py"))}
    if stem not in configs:
        fail(f"surge comes with no config {stem!r}: choose {', '.join(configs)}")
    return f"{flag}{equals}{configs[stem]}{colon}{variant}"


def _configs() -> Path:
    """Where the configs are: in the package, once it is installed, else beside it."""
    package = Path(__file__).parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def config_fault(argv: Sequence[str]) -> str:
    """What is wrong with the file of --config or the fields of --config.FIELD, or ""."""
    from absl import flags
    from ml_collections import ConfigDict

    values = flags.FlagValues()
    flags.DEFINE_string("config", None, "", flag_values=values)
    values(list(argv), known_only=True)
    if values.config is None:
        return f"--config is missing: {EXAMPLE}"
    if not values.config:
        return f"--config= names no file: {EXAMPLE}"
    path, colon, variant = values.config.partition(":")
    if not Path(path).is_file():
        return f"{path} {'is a folder' if Path(path).is_dir() else 'does not exist'}: {EXAMPLE}"
    try:
        get_config = runpy.run_path(path).get("get_config")
        if get_config is None:
            return f"{path} defines no get_config(): a config file returns its ConfigDict from it"
        config = get_config(variant) if colon else get_config()
    except Exception as error:  # a config file is a program: it may raise anything
        return _raised(path, error)
    if not isinstance(config, ConfigDict):
        kind = type(config).__name__
        return f"{path}: get_config() must return an ml_collections.ConfigDict, not {kind}"
    return _unknown_field(config, argv)


def _raised(path: str, error: Exception) -> str:
    if isinstance(error, ValueError) and path in str(error):  # written for the user
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == path]
    where = f"{path}, line {lines[-1]}" if lines else path
    return f"{where}: {type(error).__name__}: {error}"


def _unknown_field(config: ConfigDict, argv: Sequence[str]) -> str:
    from ml_collections import ConfigDict

    from surge.fields import no_field

    given = [argument for argument in argv if argument.startswith("--config.")]
    for path in (argument.removeprefix("--config.").partition("=")[0] for argument in given):
        node = config
        for name in path.split("."):
            if not isinstance(node, ConfigDict) or name not in node:
                names = list(node) if isinstance(node, ConfigDict) else []
                return no_field(path, name, names)
            node = node[name]
    return ""
