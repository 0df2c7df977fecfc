"""The programs of surge by one name.

python -m surge main --config=surge:mnist1d     measure, sweep, fit and report one experiment
python -m surge suggest --from_batch_size=...   the learning rate at another batch size
python -m surge fit_table runs.csv --loss=...   fit a sweep that you already have
python -m surge show runs/mnist1d --compare=... one result beside another; --export for other tools

Each tells its flags with --help. `surge` is short for `python -m surge`.
"""

import importlib
import sys

from surge import cli

PROGRAMS = ("main", "suggest", "fit_table", "show")


def main() -> None:
    """Runs the program that the first argument names, on the arguments after it."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name in cli.HELP:
        print(__doc__)
        return
    if name == "--version":
        print(importlib.import_module("surge").__version__)
        return
    if name not in PROGRAMS:
        cli.fail(f"surge has no program {name!r}: choose {', '.join(PROGRAMS)}, or --help")
    sys.argv = [f"surge {name}", *rest]
    cli.run(importlib.import_module(f"surge.{name}").main)


if __name__ == "__main__":
    main()
