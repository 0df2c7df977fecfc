"""How a program ends when the user made a mistake: one sentence, exit code 2, no traceback."""

import difflib
import runpy
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from absl import flags
from ml_collections import ConfigDict

EXAMPLE = "give one, like --config=configs/mnist1d.py"


def fail(sentence: object) -> NoReturn:
    """Ends the program with one sentence on stderr."""
    print("surge: " + " ".join(str(sentence).split()), file=sys.stderr)
    sys.exit(2)


def parsed(argv: Sequence[str]) -> list[str]:
    """Parses the command line; what is wrong in it ends in one sentence."""
    try:
        return flags.FLAGS(list(argv))
    except flags.Error as error:
        fail(error)


def config_fault(argv: Sequence[str]) -> str:
    """What is wrong with the config file that --config names, or with the fields that
    --config.FIELD names; or ""."""
    values = flags.FlagValues()
    flags.DEFINE_string("config", None, "", flag_values=values)
    values(list(argv), known_only=True)
    if not values.config:
        return (
            f"--config is missing: {EXAMPLE}"
            if values.config is None
            else f"--config= names no file: {EXAMPLE}"
        )
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
        return f"{path}: get_config() must return an ml_collections.ConfigDict, not {type(config).__name__}"
    return _unknown_field(config, argv)


def _raised(path: str, error: Exception) -> str:
    if isinstance(error, ValueError) and path in str(error):  # written for the user
        return str(error)
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == path
    ]
    where = f"{path}, line {lines[-1]}" if lines else path
    return f"{where}: {type(error).__name__}: {error}"


def _unknown_field(config: ConfigDict, argv: Sequence[str]) -> str:
    for path in (
        each.removeprefix("--config.").partition("=")[0]
        for each in argv
        if each.startswith("--config.")
    ):
        node = config
        for name in path.split("."):
            if not isinstance(node, ConfigDict) or name not in node:
                fields = list(node) if isinstance(node, ConfigDict) else []
                near = difflib.get_close_matches(name, fields) or fields
                return f"the config has no field {path}: did you mean {' or '.join(near) or 'its parent'}?"
            node = node[name]
    return ""
