"""Draws the page of a workdir again, beside another one, or exports what it holds.

python -m surge.show runs/mnist1d [--compare=runs/other] [--export=csv,parquet,latex,pdf]

The workdir is one of surge.main or surge.fit_table; nothing is trained or fitted. With --compare
the page is compare-OTHER.html; what is exported lies in the folder export.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from surge.cli import fail, parse, run
from surge.report import comparison, export, page
from surge.report.findings import Findings
from surge.workdir import claim
from surge.workdir.files import ResultError


def own_flags() -> flags.FlagValues:
    """The flags of the program."""
    values = flags.FlagValues()
    flags.DEFINE_string(
        "compare", None, "Another workdir, to show beside this one.", flag_values=values
    )
    flags.DEFINE_list(
        "export", [], f"Kinds of files: {', '.join(export.KINDS)}.", flag_values=values
    )
    return values


def show(workdir: Path, compare: Path | None, kinds: Sequence[str]) -> list[Path]:
    """Writes what is asked for, the page itself where nothing is.

    Returns:
      Pages and folders that were written.

    Raises:
      ResultError: a workdir without results, one in use, or an unknown kind.
    """
    for folder in filter(None, (workdir, compare)):
        if not folder.is_dir():
            raise ResultError(f"{folder} is no workdir: give the folder of a finished run")
    written = []
    with claim.lock_workdir(workdir):
        findings = page.results(workdir)
        if compare is not None:
            results = _named(workdir, compare)
            name = f"compare-{compare.resolve().name}.html"
            page.write_sections(workdir, name, comparison.sections(results))
            written.append(workdir / name)
        if kinds:
            export.write(workdir / "export", findings, page.sections_of(findings), kinds)
            written.append(workdir / "export")
        if not written:
            page.write(workdir)
            written.append(workdir / "report.html")
    return written


def _named(*workdirs: Path) -> dict[str, Findings]:
    """What two workdirs hold, by their names, or by their paths where these are the same."""
    names = [workdir.resolve().name for workdir in workdirs]
    if names[0] == names[1]:
        names = [str(workdir) for workdir in workdirs]
    if names[0] == names[1]:
        raise ResultError(f"{names[0]} is compared with itself: give another --compare")
    return {name: page.results(workdir) for name, workdir in zip(names, workdirs, strict=True)}


def main(argv: Sequence[str]) -> None:
    """The program, `argv` being its name and its arguments."""
    values = own_flags()
    argv = parse(values, argv, __doc__)
    if len(argv) != 2:
        fail("give one workdir: python -m surge.show runs/mnist1d --compare=runs/other")
    compare = Path(values.compare) if values.compare else None
    try:
        written = show(Path(argv[1]), compare, values.export)
    except (ResultError, OSError) as error:
        fail(error)
    print("\n".join(map(str, written)))


if __name__ == "__main__":
    run(main)
