"""report.html: one self-contained page, drawn from the workdir's files and nothing else."""

import base64
import html
import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np
import xarray as xr

from surge import results
from surge.report import figures
from surge.report.summary import goal, interval, number, representative, verdict

STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#222}
h1{margin-bottom:0}h2{margin-top:3rem;border-top:1px solid #ddd;padding-top:1rem}
figure{margin:1.5rem 0}img{max-width:100%}figcaption{color:#555;font-size:.9rem}
table{border-collapse:collapse;font-size:.85rem;margin:.7rem 0;display:block;overflow-x:auto}
td,th{padding:.15rem .6rem;text-align:right;border-bottom:1px solid #eee;white-space:nowrap}
td:first-child,th:first-child{text-align:left}.finding{font-weight:600}
pre{background:#f6f6f6;padding:.8rem;overflow-x:auto;font-size:.8rem}
"""


def _table(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    def row(cells: Iterable[Any], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"

    return "<table>" + row(header, "th") + "".join(row(cells, "td") for cells in rows) + "</table>"


class _Page:
    """Collects HTML and writes each figure both into the page and to figures/NAME.png."""

    def __init__(self, workdir: Path):
        self.workdir = workdir
        self.parts: list[str] = []

    def add(self, markup: str) -> None:
        self.parts.append(markup)

    def figure(self, name: str, caption: str, *panels: Callable[[Any], Any], titles: Iterable[str] = ()) -> None:
        canvas = matplotlib.figure.Figure(figsize=(5.2 * len(panels), 4.2), layout="constrained")
        axes = np.atleast_1d(canvas.subplots(1, len(panels)))
        for panel, draw in zip(axes, panels, strict=True):
            mesh = draw(panel)
            if mesh is not None:
                canvas.colorbar(mesh, ax=panel, label="training loss")
        for panel, title in zip(axes, titles, strict=False):
            panel.set_title(title, fontsize=10)
        buffer = io.BytesIO()
        canvas.savefig(buffer, format="png", dpi=130)
        file = "".join(each if each.isalnum() or each in "._-" else "_" for each in name)
        results.write_bytes(self.workdir / "figures" / f"{file}.png", buffer.getvalue())
        data = base64.b64encode(buffer.getvalue()).decode()
        self.add(
            f'<figure><img alt="{html.escape(name)}" src="data:image/png;base64,{data}">'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        )


def write(workdir: Path | str) -> None:
    """Writes figures/*.png and report.html from what the workdir holds: fit.json, and sweep and measure if there.

    Raises:
      ResultError: neither fit.json nor measure.nc is there, or a file cannot be read.
    """
    workdir = Path(workdir)
    entries = results.read_json(workdir / "fit.json")["fits"] if (workdir / "fit.json").exists() else []
    measured = results.read_dataset(workdir / "measure.nc") if (workdir / "measure.nc").exists() else None
    sweep = results.open_sweep(workdir) if (workdir / "sweep").exists() else None
    if not entries and measured is None:
        raise results.ResultError(f"{workdir} holds nothing to report: run the stages measure, sweep, fit first")
    page = _Page(workdir)
    _findings(page, entries)
    for optimizer, entry in representative(entries).items():
        group = [each for each in entries if each["optimizer"] == optimizer]
        _optimizer_section(page, optimizer, entry, group, sweep)
    if measured is not None:
        _checkpoint_section(page, measured, entries, sweep)
    if sweep is not None:
        _provenance(page, sweep)
    body = "\n".join(page.parts)
    results.write_bytes(
        workdir / "report.html",
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>surge: {html.escape(workdir.name)}</title><style>{STYLE}</style>{body}</html>\n".encode(),
    )


def _findings(page: _Page, entries: list[dict[str, Any]]) -> None:
    page.add(f"<h1>Learning rate against batch size</h1><p>{html.escape(page.workdir.name)}</p>")
    for optimizer, entry in representative(entries).items():
        page.add(f'<p class="finding">{html.escape(optimizer)}: {html.escape(verdict(entry))}.</p>')


def _optimizer_section(
    page: _Page, optimizer: str, entry: dict[str, Any], group: list[dict[str, Any]], sweep: xr.Dataset | None
) -> None:
    target = entry["target_loss"]
    judged = "loss at the end of the run" if entry["judged_by"] == "loss" else f"steps to {goal(entry)}"
    page.add(f"<h2>{html.escape(optimizer)}</h2>")
    panels: list[Callable[[Any], Any]] = [lambda axes: figures.optimal_lr(axes, entry)]
    titles = ["optimal learning rate and fitted laws"]
    if sweep is not None and optimizer in sweep.optimizer:
        loss = results.loss_when_first_arrives(sweep, optimizer, target)
        panels.insert(0, lambda axes: figures.heat_map(axes, loss, entry))
        titles.insert(0, "loss over batch size and learning rate")
    caption = f"Judged by {judged}. Rings and points: optimum for each batch size, hollow on the grid's edge."
    page.figure(f"{optimizer}-optimal-lr", caption, *panels, titles=titles)
    page.add(_optima_table(entry) + _laws_table(entry))
    if entry["judged_by"] == "steps":
        page.figure(
            f"{optimizer}-data-against-time",
            "Steps and examples to each target loss at the best learning rate of each batch size; and the optimum "
            "at each target.",
            lambda axes: figures.data_against_time(axes, group),
            lambda axes: figures.optimal_lr_by_target(axes, group),
        )
        page.add(_noise_table(group))


def _optima_table(entry: dict[str, Any]) -> str:
    return _table(
        ("batch size", "optimal lr", "95% interval", "steps", "examples", "note"),
        (
            (
                point["batch_size"],
                number(point["lr"]),
                interval(point["low"], point["high"]),
                number(point["steps"]),
                number(point["examples"]),
                "on the grid's edge" if point["at_edge"] else point.get("why") or "",
            )
            for point in entry["optimal_lr"]
        ),
    )


def _laws_table(entry: dict[str, Any]) -> str:
    return _table(
        ("law", "parameters", "AICc", "held-out error in log lr"),
        (
            (
                name.replace("_", " ") + (" (best)" if name == entry["best_law"] else ""),
                ", ".join(f"{key} = {number(value)}" for key, value in (law["params"] or {}).items()),
                number(law["aic"]),
                number(law["held_out_rmse_log"]),
            )
            for name, law in entry["laws"].items()
        ),
    )


def _noise_table(group: list[dict[str, Any]]) -> str:
    return _table(
        ("target", "B_noise from S(B)", "95% interval", "S_min", "E_min", "peak of the optimum"),
        (
            (
                goal(entry),
                number(entry["noise_scale"]["b_noise"]),
                interval(entry["noise_scale"]["low"], entry["noise_scale"]["high"]),
                number(entry["noise_scale"]["s_min"]),
                number(entry["noise_scale"]["e_min"]),
                verdict(entry),
            )
            for entry in group
        ),
    )


def _checkpoint_section(
    page: _Page, measured: xr.Dataset, entries: list[dict[str, Any]], sweep: xr.Dataset | None
) -> None:
    page.add("<h2>From single checkpoints</h2>")
    for sentence in json.loads(measured.attrs["verdicts"]):
        page.add(f'<p class="finding">{html.escape(sentence)}</p>')
    same = [entry for entry in entries if entry["optimizer"] == measured.attrs["optimizer"]]
    page.figure(
        "noise-along-training",
        "Noise scales from per-example gradients at checkpoints, with 95% intervals, each its own quantity; of single "
        "layers, from the first to the last dark to light; and how far the small-batch law reaches.",
        lambda axes: figures.noise_along_training(axes, measured, same),
        lambda axes: figures.layer_noise(axes, measured),
        lambda axes: figures.validity(axes, measured),
    )
    page.add(_noise_scales_table(measured) + _drift_table(measured) + _cost_table(measured, sweep))
    for optimizer in measured.optimizer.values:
        page.add(f"<h3>{html.escape(str(optimizer))}</h3>")
        for index in range(measured.sizes["checkpoint"]):
            checkpoint = measured.isel(checkpoint=index).sel(optimizer=optimizer)
            title = f"step {int(checkpoint.step)}, training loss {float(checkpoint.loss):.3g}"
            panels = [lambda axes, checkpoint=checkpoint: figures.one_step(axes, checkpoint)]
            caption = "Estimates of the learning rate that lowers the loss most in one step. Bands: 95%."
            if np.isfinite(checkpoint.independent_lr.sel(bound="value")).any():
                panels.append(lambda axes, checkpoint=checkpoint: figures.closed_forms(axes, checkpoint))
                caption += f" Beside: the closed forms for sign descent; r = D/O = {number(float(checkpoint.r))}."
            titles = [title, "closed forms"][: len(panels)]
            if np.isfinite(checkpoint.branch_lr.sel(bound="value")).any():
                panels.append(lambda axes, checkpoint=checkpoint: figures.branches(axes, checkpoint))
                titles.append("runs that branch here")
            page.figure(f"{optimizer}-one-step-{index}", caption, *panels, titles=titles)
            peak, low, high = (float(each) for each in checkpoint.measured_peak)
            why = str(checkpoint.measured_peak_why.values)
            found = f"{number(peak)} {interval(low, high if np.isfinite(high) else None)}" if peak < np.inf else "none"
            page.add(f"<p>Peak of the measured law: {html.escape(found + (f' ({why})' if why else ''))}.</p>")
            page.add(_one_step_table(checkpoint))


def _noise_scales_table(measured: xr.Dataset) -> str:
    def row(index: int) -> list[str]:
        checkpoint = measured.isel(checkpoint=index)
        cells = [str(int(checkpoint.step)), number(float(checkpoint.loss))]
        for scale in measured.scale.values:
            value, low, high = (float(each) for each in checkpoint.noise_scale.sel(scale=scale))
            why = str(checkpoint.noise_scale_why.sel(scale=scale).values)
            cells.append(why or f"{number(value)} {interval(low, high if np.isfinite(high) else None)}")
        for value, low, high in checkpoint.validity.values:
            cells.append(f"{number(value)} {interval(low, high if np.isfinite(high) else None)}")
        return [*cells, number(float(checkpoint.zero_share))]

    scales = [str(each) for each in measured.scale.values]
    bounds = [f"πσ²/2μ², {quantile:.0%}" for quantile in measured["quantile"].values]
    header = ("step", "loss", *scales, *bounds, "exact zeros")
    return _table(header, (row(index) for index in range(measured.sizes["checkpoint"])))


def _drift_table(measured: xr.Dataset) -> str:
    def row(name: str) -> tuple[str, ...]:
        each = measured.sel(quantity=name)
        value, low, high = (float(bound) for bound in each.drift)
        why = str(each.drift_why.values)
        return name, why or f"{number(value)} {interval(low, high)}", str(int(each.drift_n))

    header = ("along training", "exponent p of loss^p", "checkpoints")
    return _table(header, (row(str(name)) for name in measured.quantity.values))


def _cost_table(measured: xr.Dataset, sweep: xr.Dataset | None) -> str:
    """Examples differentiated for one checkpoint's answer, next to what the sweep took."""

    def row(optimizer: str) -> tuple[str, ...]:
        each = measured.sel(optimizer=optimizer)
        costs = [float(each[f"{name}_examples"].mean()) for name in ("measured", "branch")]
        if sweep is None or optimizer not in sweep.optimizer:
            return optimizer, *(number(cost) for cost in costs), "–", "–"
        whole = results.examples_trained(sweep.sel(optimizer=optimizer))
        return optimizer, *(number(cost) for cost in costs), number(whole), f"{costs[0] / whole:.2%}"

    header = ("examples differentiated", "measured law", "branch runs", "sweep", "measured / sweep")
    return _table(header, (row(str(name)) for name in measured.optimizer.values))


def _one_step_table(checkpoint: xr.Dataset) -> str:
    def cell(name: str, size: int) -> str:
        value, low, high = (
            float(checkpoint[f"{name}_lr"].sel(batch_size=size, bound=bound)) for bound in ("value", "low", "high")
        )
        return f"{number(value)} {interval(low, high)}" if np.isfinite(value) else "–"

    def ratio(name: str, size: int) -> str:
        values = [float(checkpoint[f"{each}_lr"].sel(batch_size=size, bound="value")) for each in (name, "oracle")]
        return number(values[0] / values[1]) if np.isfinite(values).all() else "–"

    return _table(
        ("batch size", "independent", "measured", "true", "independent / true", "measured / true"),
        (
            (
                size,
                *(cell(name, size) for name in figures.ESTIMATES),
                ratio("independent", size),
                ratio("measured", size),
            )
            for size in checkpoint.batch_size.values.tolist()
        ),
    )


def _provenance(page: _Page, sweep: xr.Dataset) -> None:
    config = json.dumps(json.loads(sweep.attrs["config"]), indent=1)
    page.add("<h2>How this was made</h2>")
    page.add(f"<p>{html.escape(sweep.attrs['versions'])}, {html.escape(sweep.attrs['devices'])}</p>")
    page.add(f"<details><summary>config</summary><pre>{html.escape(config)}</pre></details>")
