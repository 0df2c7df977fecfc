"""Moves of the batch size that come next after a sweep, with the rates they ask for."""

import math
from collections.abc import Mapping
from pathlib import Path

from surge.evidence import of_workdir
from surge.report.findings import Move
from surge.report.reading import Entry, known, representative
from surge.suggestion import suggestion
from surge.workdir.files import ResultError, read_fits

STEP = 4  # times the batch size: what a machine that is added or taken away makes of it


def typical_moves(workdir: Path, specs: Mapping[str, str]) -> list[Move]:
    """Three moves for each optimizer of a workdir.

    Down and up from the middle of its sweep, and beyond its end.

    Args:
      workdir: with fit.json.
      specs: optimizer label -> spec. Of others, and of those that `surge.suggest` does not know,
        there are no moves.
    """
    moves = []
    for label, entry in representative(read_fits(workdir)).items():
        if label in specs:
            moves += _moves(workdir, label, specs[label], entry)
    return moves


def _moves(workdir: Path, label: str, spec: str, entry: Entry) -> list[Move]:
    points = [point for point in entry["optimal_lr"] if known(point)]
    if not points:
        return []
    start = points[len(points) // 2]
    size = start["batch_size"]
    last = max(point["batch_size"] for point in entry["optimal_lr"])
    targets = [target for target in (size // STEP, size * STEP, last * STEP) if target >= 1]
    try:
        evidence = of_workdir(workdir, label)
        said = [
            suggestion(
                evidence,
                from_batch_size=size,
                from_lr=start["lr"],
                to_batch_size=target,
                optimizer=spec,
            )
            for target in dict.fromkeys(targets)
        ]
    except (ValueError, ResultError):  # an optimizer of the user's own, which has no rules
        return []
    return [
        Move(
            label,
            size,
            start["lr"],
            one.to_batch_size,
            (one.lr, one.low, one.high),
            one.why if math.isnan(one.lr) else "",
            {name: rule.lr for name, rule in one.alternatives.items()},
        )
        for one in said
    ]
