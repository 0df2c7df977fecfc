"""Meets every kind of bad or awkward input: each is answered rightly, or refused in a sentence.

    python scripts/check_inputs.py                  # all kinds, about 2 minutes on two cores
    python scripts/check_inputs.py --only=table     # one kind

Prints a row for each input as it is met: exit code, sentence, seconds, and the most memory that its
process held. Ends with exit code 1 where one shows a traceback, is accepted where it should be
refused, says something else than it should, or takes more than 30 s or 2 GiB to be refused.
"""

import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterable

from absl import app, flags, logging
from inputs import commands, configs, files, models, specs, tables
from inputs.case import Input, Outcome, fault, meet, sentence

from surge.cli import parsed

SHOWN = 180  # letters of a sentence
HEADER = (
    "| kind | input | exit code | sentence | s | MiB | fault |",
    "|---|---|---:|---|---:|---:|---|",
)


def inputs() -> list[Input]:
    """All of them, the quick kinds first."""
    kinds = configs, specs, commands, tables, files, models
    return [one for kind in kinds for one in kind.inputs()]


def row(one: Input, outcome: Outcome) -> str:
    """A line of the table."""
    said = sentence(outcome.said)
    cells = (
        one.kind,
        one.name.replace("|", "\\|"),
        str(outcome.code),
        said if len(said) <= SHOWN else f"{said[:SHOWN]}...",
        f"{outcome.seconds:.1f}",
        f"{outcome.memory / 2**20:.0f}",
        fault(one, outcome) or "–",
    )
    return f"| {' | '.join(cells)} |"


def closing(met: Iterable[tuple[Input, Outcome]]) -> list[str]:
    """Counts by kind, and what is wrong."""
    met = list(met)
    lines = []
    for kind in dict.fromkeys(one.kind for one, _ in met):
        of_kind = [(one, outcome) for one, outcome in met if one.kind == kind]
        refused = [outcome for one, outcome in of_kind if one.refused]
        faults = sum(bool(fault(*each)) for each in of_kind)
        lines.append(
            f"{kind}: {len(of_kind)} inputs, {len(refused)} to be refused"
            f" (at most {max((one.seconds for one in refused), default=0):.1f} s and"
            f" {max((one.memory for one in refused), default=0) / 2**20:.0f} MiB), {faults} faults"
        )
    wrong = Counter(fault(*each) for each in met)
    del wrong[""]
    counts = ", ".join(f"{count} {what}" for what, count in wrong.most_common()) or "none"
    return [*lines, f"{len(met)} inputs in all; faults: {counts}"]


def main(_: list[str]) -> None:
    warnings.simplefilter("ignore", DeprecationWarning)
    warnings.filterwarnings("error", "os.fork")  # after a device was touched a child never ends
    logging.set_verbosity(logging.WARNING)
    started = time.monotonic()
    chosen = [one for one in inputs() if one.kind in _ONLY.value or not _ONLY.value]
    print(*HEADER, sep="\n", flush=True)
    met = []
    for one in chosen:
        met.append((one, meet(one)))
        print(row(*met[-1]), flush=True)
    print("", *closing(met), f"{time.monotonic() - started:.0f} s", sep="\n")
    sys.exit(any(fault(*each) for each in met))


if __name__ == "__main__":
    _ONLY = flags.DEFINE_list("only", [], "kinds of inputs; empty for all")
    app.run(main, flags_parser=parsed)
