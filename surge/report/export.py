"""Results as files for other programs: tables of numbers, tables for LaTeX, figures as PDF."""

import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from surge.report import drawing
from surge.report.findings import Findings
from surge.report.markup import LONGEST, Drawing, Fold, Section, Table, file_name, slug
from surge.report.reading import Entry, standing
from surge.workdir import files
from surge.workdir.files import ResultError

LATEX = {  # what is no letter of LaTeX, and what it is there
    "\\": r"\textbackslash{}",
    **{letter: rf"\{letter}" for letter in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "–": "--",
    "²": "$^2$",
    "½": r"$\frac{1}{2}$",
    "√": r"$\sqrt{\,}$",
    "∞": r"$\infty$",
    "±": r"$\pm$",
    "→": r"$\to$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "−": "$-$",
    "ε": r"$\epsilon$",
    "κ": r"$\kappa$",
    "α": r"$\alpha$",
    "μ": r"$\mu$",
    "σ": r"$\sigma$",
    "Σ": r"$\Sigma$",
    "χ": r"$\chi$",
    "π": r"$\pi$",
    "·": r"$\cdot$",
}
Rows = list[dict[str, Any]]


def write(
    folder: Path, findings: Findings, sections: Sequence[Section], kinds: Iterable[str]
) -> None:
    """Writes what a workdir holds in each of some kinds.

    Args:
      folder: where the files go.
      findings: of the workdir, whose numbers csv and parquet have.
      sections: of its page: latex has their tables but those in folds, pdf their figures.
      kinds: of KINDS.

    Raises:
      ResultError: an unknown kind, or parquet without pyarrow.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise ResultError(f"--export={kind} is unknown: choose among {', '.join(KINDS)}")
        for name, content in KINDS[kind](findings, sections):
            files.write_bytes(folder / name, content)


def frames(findings: Findings) -> dict[str, pd.DataFrame]:
    """Plain tables of all numbers: optima, laws with their parameters, noise scales, runs."""
    entries = findings.entries
    told = {
        "optima": [row for entry in entries for row in _optima(entry)],
        "laws": [row for entry in entries for row in _laws(entry)],
        "parameters": [row for entry in entries for row in _parameters(entry)],
        "noise_scales": [_noise_scale(entry) for entry in entries],
    }
    tables = {name: pd.DataFrame(rows) for name, rows in told.items() if rows}
    if findings.sweep is not None:
        tables["runs"] = _runs(findings.sweep)
    return tables


def _labels(entry: Entry) -> dict[str, Any]:
    return {"optimizer": entry["optimizer"], "target_loss": entry["target_loss"]}


def _optima(entry: Entry) -> Rows:
    return [_labels(entry) | point for point in entry["optimal_lr"]]


def _laws(entry: Entry) -> Rows:
    weights = standing(entry)
    return [
        _labels(entry)
        | {"law": name, "stands": name in weights, "weight": weights.get(name)}
        | {key: law.get(key) for key in ("score", "held_out_rmse_log", "held_out_se")}
        for name, law in entry["laws"].items()
    ]


def _parameters(entry: Entry) -> Rows:
    rows = []
    for law, fit in entry["laws"].items():
        told = {name: [value, *fit["intervals"][name]] for name, value in fit["params"].items()}
        for name, bounds in (told | fit.get("derived", {})).items():
            numbers = dict(zip(("value", "low", "high"), bounds, strict=True))
            rows.append(_labels(entry) | {"law": law, "parameter": name} | numbers)
    return rows


def _noise_scale(entry: Entry) -> dict[str, Any]:
    peak = {f"peak_{name}": entry["b_peak"].get(name) for name in ("value", "low", "high")}
    return _labels(entry) | entry["noise_scale"] | peak | {"p_fall": entry["b_peak"].get("p_fall")}


def _runs(sweep: xr.Dataset) -> pd.DataFrame:
    """The last loss of every run, and whether it diverged."""
    ran = sweep.diverged
    last = np.isfinite(sweep.loss).cumsum("eval").argmax("eval")
    told = {"loss": sweep.loss.isel(eval=last), "diverged": ran}
    if "examples" in sweep:
        told["examples"] = sweep.examples.max("eval")
    kept = xr.Dataset(told).drop_vars("eval", errors="ignore")
    table = kept.to_dataframe().reset_index()
    return table[np.isfinite(table["diverged"])].reset_index(drop=True)


def _csv(findings: Findings, sections: Sequence[Section]) -> Iterable[tuple[str, bytes]]:
    for name, table in frames(findings).items():
        yield f"{name}.csv", table.to_csv(index=False).encode()


def _parquet(findings: Findings, sections: Sequence[Section]) -> Iterable[tuple[str, bytes]]:
    for name, table in frames(findings).items():
        buffer = io.BytesIO()
        try:
            table.to_parquet(buffer, index=False)
        except ImportError:
            raise ResultError("--export=parquet needs pyarrow: pip install pyarrow") from None
        yield f"{name}.parquet", buffer.getvalue()


def _latex(findings: Findings, sections: Sequence[Section]) -> Iterable[tuple[str, bytes]]:
    tables = [block for section in sections for block in section.blocks if isinstance(block, Table)]
    for index, table in enumerate(tables):
        words = slug(table.caption.encode("ascii", "ignore").decode())[:LONGEST].strip("-.")
        yield f"{index:02d}-{words}.tex", latex(table).encode()


def _pdf(findings: Findings, sections: Sequence[Section]) -> Iterable[tuple[str, bytes]]:
    for block in _drawings(sections):
        for panel in block.panels:
            yield f"{file_name(panel.name)}.pdf", drawing.pdf(panel)


KINDS: dict[str, Callable[..., Iterable[tuple[str, bytes]]]] = {
    "csv": _csv,
    "parquet": _parquet,
    "latex": _latex,
    "pdf": _pdf,
}


def _drawings(parts: Sequence[Any]) -> Iterable[Drawing]:
    """All figures, those in folds too."""
    for part in parts:
        if isinstance(part, Drawing):
            yield part
        elif isinstance(part, Section | Fold):
            yield from _drawings(part.blocks)


def latex(table: Table) -> str:
    """A table for LaTeX with the package booktabs, in ASCII."""
    lean = table.lean()
    lines = [" & ".join(map(_escaped, row)) + r" \\" for row in (lean.header, *lean.rows)]
    return "\n".join(
        [
            f"% {table.caption.encode('ascii', 'replace').decode()}",
            rf"\begin{{tabular}}{{l{'r' * (len(lean.header) - 1)}}}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def _escaped(cell: Any) -> str:
    escaped = "".join(LATEX.get(letter, letter) for letter in str(cell))
    return escaped.encode("ascii", "replace").decode()
