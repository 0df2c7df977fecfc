"""report.html: one self-contained page, drawn from the workdir's files and nothing else."""

import datetime
from collections.abc import Sequence
from pathlib import Path

from surge.report import markup, noise_sections, one_step_sections, svg, sweep_sections
from surge.report.answer import FEW, answer
from surge.report.findings import Findings, Move
from surge.report.markup import Fold, Prose, Section
from surge.report.provenance import provenance
from surge.report.reading import representative
from surge.workdir import files, sweeps
from surge.workdir.files import ResultError

TITLE = "Learning rate against batch size"
MANY = 12  # optimizers or groups, beyond which only the first few have all pictures
WITHOUT_MAPS = (
    "Of so many, these are without the map of the loss, the table of every cell and the laws that "
    "are ruled out; a report of one alone has them."
)


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
    findings = results(workdir)._replace(moves=moves)
    write_sections(workdir, "report.html", sections_of(findings))


def write_sections(workdir: Path, name: str, sections: Sequence[Section]) -> None:
    """Writes a page of these sections, and its pictures beside it."""
    page, images = markup.render(TITLE, workdir.resolve().name, sections)
    for image_name, image in images.items():
        picture = svg.standalone(image).encode()
        files.write_bytes(workdir / "figures" / f"{image_name}.svg", picture)
    files.write_bytes(workdir / name, page.encode())


def results(workdir: Path | str) -> Findings:
    """All that a workdir holds, which a notebook shows; raises ResultError as `write` does."""
    workdir = Path(workdir)
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
    about = files.read_about(workdir)
    return Findings(entries, sweep, measured, about=about, date=_date(workdir))


def _date(workdir: Path) -> str:
    """When the newest result was written."""
    results = [workdir / "fit.json", workdir / "measure.nc", *workdir.glob("sweep/*.nc")]
    newest = max(path.stat().st_mtime for path in results if path.exists())
    return datetime.datetime.fromtimestamp(newest, datetime.UTC).date().isoformat()


def sections_of(findings: Findings) -> list[Section]:
    """The page in order: the answer, each optimizer, then what checkpoints say."""
    parts = [answer(findings), *_optimizers(findings)]
    parts += [
        section
        for make in (noise_sections.noise, one_step_sections.one_step)
        if (section := make(findings)) is not None
    ]
    if findings.attributes:
        parts.append(provenance(findings))
    return parts


def _optimizers(findings: Findings) -> list[Section]:
    """A section for each of the first few, the others folded in one."""
    chosen = representative(findings.entries)
    parts = []
    for index, (name, entry) in enumerate(chosen.items()):
        group = [other for other in findings.entries if other["optimizer"] == name]
        lean = len(chosen) > MANY and index >= FEW
        parts.append(sweep_sections.optimizer(findings, name, entry, group, lean=lean))
    if len(parts) <= FEW:
        return parts
    folds = [Fold(part.title, part.blocks) for part in parts[FEW:]]
    note = [Prose(WITHOUT_MAPS, "note")] if len(parts) > MANY else []
    return [*parts[:FEW], Section(f"The other {len(folds)}", [*note, *folds])]
