"""The finding in the terminal: the answer's table and sentences, as plain lines."""

from pathlib import Path

from surge.report import verdicts
from surge.report.answer import FEW, rates_table
from surge.report.reading import judged, representative
from surge.workdir import files


def lines(workdir: Path) -> list[str]:
    """A closing summary: a table of B and ε_opt with interval, sentences for each optimizer, where
    the report is; of many groups the first few."""
    entries = representative(files.read_fits(workdir))
    if not entries:
        return []
    chosen = dict([*entries.items()][:FEW])
    table = rates_table(chosen)
    out = ["optimal learning rate by batch size:"]
    out += _aligned([("B", *table.header[1:]), *map(tuple, table.rows)])
    for optimizer, entry in chosen.items():
        out.append(f"{optimizer}, {judged(entry)}: {verdicts.answer(entry)}")
        said = (verdicts.kappa(entry), verdicts.peak(entry), verdicts.winner(entry))
        out += [f"  {sentence}" for sentence in said if sentence]
    if len(entries) > FEW:
        out.append(f"and {len(entries) - FEW} more groups, in the report")
    together = files.read_about(workdir).get("together")
    if together:
        out.append(together)
    if (workdir / "report.html").exists():
        out.append(f"report: {workdir / 'report.html'}")
    return out


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
