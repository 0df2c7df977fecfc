"""How a program ends when the user made a mistake: one sentence, exit code 2, no traceback."""

import sys
from collections.abc import Sequence
from typing import NoReturn

from absl import flags


def fail(sentence: object) -> NoReturn:
    """Ends the program with one sentence on stderr."""
    text = str(sentence).strip()
    if "Traceback" in text:  # raised inside a config file: its last line is the reason
        text = text.splitlines()[-1].partition(": ")[2]
    print("surge: " + " ".join(text.split()), file=sys.stderr)
    sys.exit(2)


def parsed(argv: Sequence[str]) -> list[str]:
    """Parses the command line; what is wrong in it ends in one sentence."""
    try:
        return flags.FLAGS(list(argv))
    except flags.Error as error:
        fail(error)
