"""report.html: one self-contained page, drawn from the workdir's files and nothing else."""

from collections.abc import Sequence
from pathlib import Path

from surge.report import answer, checkpoint_sections, drawing, markup, sweep_sections
from surge.report.findings import Findings, Move
from surge.report.reading import representative
from surge.workdir import files, sweeps
from surge.workdir.files import ResultError

TITLE = "Learning rate against batch size"


def write(workdir: Path | str, moves: Sequence[Move] = ()) -> None:
    """Writes figures/*.svg and report.html from what the workdir holds: fit.json, and sweep and
    measure if there.

    Args:
      workdir: with fit.json, or measure.nc, or both.
      moves: what they say of other batch sizes.

    Raises:
      ResultError: neither fit.json nor measure.nc is there, or a file is damaged.
    """
    workdir = Path(workdir)
    findings = _read(workdir)._replace(moves=moves)
    page, images = markup.render(TITLE, workdir.resolve().name, sections_of(findings))
    for name, image in images.items():
        files.write_bytes(workdir / "figures" / f"{name}.svg", drawing.standalone(image).encode())
    files.write_bytes(workdir / "report.html", page.encode())


def _read(workdir: Path) -> Findings:
    entries = files.read_fits(workdir)
    path = workdir / "measure.nc"
    measured = files.read_dataset(path, files.MEASURED) if path.exists() else None
    if not entries and measured is None:
        raise ResultError(
            f"{workdir} holds nothing to report: run the stages measure, sweep, fit first"
        )
    sweep = None
    if (workdir / "sweep").exists():
        sweep = sweeps.open_sweep(workdir)
    elif (workdir / "runs.csv").exists():
        sweep = sweeps.open_runs(workdir / "runs.csv")
    return Findings(entries, sweep, measured)


def sections_of(findings: Findings) -> list[markup.Section]:
    """The page in order: the answer, each optimizer, then what checkpoints say."""
    parts = [answer.answer(findings)]
    for name, entry in representative(findings.entries).items():
        group = [other for other in findings.entries if other["optimizer"] == name]
        parts.append(sweep_sections.optimizer(findings, name, entry, group))
    parts += [
        section
        for make in (checkpoint_sections.noise, checkpoint_sections.one_step)
        if (section := make(findings)) is not None
    ]
    if findings.attributes:
        parts.append(answer.provenance(findings))
    return parts
