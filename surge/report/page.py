"""report.html: one self-contained page, drawn from the workdir's files and nothing else."""

import base64
import html
import io
import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np
import xarray as xr
from matplotlib.layout_engine import ConstrainedLayoutEngine

from surge.report import figures, verdicts
from surge.report.summary import goal, interval, number, representative, verdict
from surge.workdir import files, sweeps

STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem;color:#222}
h1{margin-bottom:0}h2{margin-top:3rem;border-top:1px solid #ddd;padding-top:1rem}
figure{margin:1.5rem 0}img{max-width:100%}figcaption{color:#555;font-size:.9rem}p,figcaption{max-width:62rem}
table{border-collapse:collapse;font-size:.85rem;margin:.7rem 0;display:block;overflow-x:auto}
td,th{padding:.15rem .6rem;text-align:right;border-bottom:1px solid #eee;white-space:nowrap}
td:first-child,th:first-child{text-align:left}.finding{font-weight:600}summary{color:#555;font-size:.9rem}
pre{background:#f6f6f6;padding:.8rem;overflow-x:auto;font-size:.8rem}
"""
PREDICTIONS = ("measured", "independent")  # of what a checkpoint estimates, without looking
DASH = (
    "A dash: the step has no best rate, since it does not descend or the loss does not curve upwards along it; the "
    "paper's formula also says nothing of an optimizer that does not take the sign of the gradient."
)
NO_K = "infinite: the curvature of steps does not grow with B"
NO_BRANCH = "no room in the budget, no measured rate to start from, or on the edge of the grid"
SHOWN = (  # variables of measure.nc
    *(
        "loss",
        "step",
        "noise_scale",
        "layer_noise",
        "validity",
        "validity_share",
        "zero_share",
        "drift",
    ),
    *(f"{name}_lr" for name in (*figures.ESTIMATES, "branch")),
    *("measured_curve", "measured_surge", "measured_peak", "measured_examples", "branch_examples"),
    *(*figures.COEFFICIENTS, "r"),
)


def _table(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    def row(cells: Iterable[Any], tag: str) -> str:
        return (
            "<tr>" + "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"
        )

    return "<table>" + row(header, "th") + "".join(row(cells, "td") for cells in rows) + "</table>"


def _estimate(bounds: Iterable[float], undefined: str = "–") -> str:
    """A value with its interval."""
    value, low, high = (files.finite_or_none(float(each)) for each in bounds)
    return undefined if value is None else f"{number(value)} {interval(low, high)}"


class _Page:
    """Collects HTML and writes each figure both into the page and to figures/NAME.png."""

    def __init__(self, workdir: Path):
        self.workdir = workdir
        self.name = workdir.resolve().name
        self.parts: list[str] = []

    def add(self, markup: str) -> None:
        self.parts.append(markup)

    def sentence(self, text: str, kind: str = "") -> None:
        self.add(f'<p class="{kind}">{html.escape(text)}</p>')

    def fold(self, title: str, markup: str) -> None:
        """What few will read, behind its title."""
        self.add(f"<details><summary>{html.escape(title)}</summary>{markup}</details>")

    def figure(self, name: str, caption: str, panels: Mapping[str, Callable[[Any], Any]]) -> None:
        """Draws panels side by side, each below its title."""
        # No wider than what leaves its text legible on the page.
        size, layout = (min(5.2 * len(panels), 13), 5), ConstrainedLayoutEngine(wspace=0.05)
        canvas = matplotlib.figure.Figure(figsize=size, layout=layout)
        for axes, (title, draw) in zip(
            np.atleast_1d(canvas.subplots(1, len(panels))), panels.items(), strict=True
        ):
            draw(axes)
            axes.set_title(title, fontsize=10)
        buffer = io.BytesIO()
        canvas.savefig(buffer, format="png", dpi=130)
        file = "".join(each if each.isalnum() or each in "._-" else "_" for each in name)
        files.write_bytes(self.workdir / "figures" / f"{file}.png", buffer.getvalue())
        data = base64.b64encode(buffer.getvalue()).decode()
        self.add(
            f'<figure><img alt="{html.escape(name)}" src="data:image/png;base64,{data}">'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        )


def write(workdir: Path | str) -> None:
    """Writes figures/*.png and report.html from what the workdir holds: fit.json, and sweep and
    measure if there.

    Raises:
      ResultError: neither fit.json nor measure.nc is there, or a file is damaged.
    """
    workdir = Path(workdir)
    entries = files.read_fits(workdir)
    measured = (
        files.read_dataset(workdir / "measure.nc", SHOWN)
        if (workdir / "measure.nc").exists()
        else None
    )
    sweep = sweeps.open_sweep(workdir) if (workdir / "sweep").exists() else None
    if not entries and measured is None:
        raise files.ResultError(
            f"{workdir} holds nothing to report: run the stages measure, sweep, fit first"
        )
    page = _Page(workdir)
    _findings(page, entries)
    for optimizer, entry in representative(entries).items():
        group = [each for each in entries if each["optimizer"] == optimizer]
        _optimizer_section(page, optimizer, entry, group, sweep, measured)
    if measured is not None:
        _checkpoint_section(page, measured, entries, sweep)
    if (computed := measured if sweep is None else sweep) is not None:
        _provenance(page, computed.attrs)
    body = "\n".join(page.parts)
    files.write_bytes(
        workdir / "report.html",
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>surge: {html.escape(page.name)}</title><style>{STYLE}</style>{body}</html>\n".encode(),
    )


def _findings(page: _Page, entries: list[dict[str, Any]]) -> None:
    page.add(f"<h1>Learning rate against batch size</h1><p>{html.escape(page.name)}</p>")
    for optimizer, entry in representative(entries).items():
        page.sentence(f"{optimizer}: {verdict(entry)}.", "finding")


def _optimizer_section(
    page: _Page,
    optimizer: str,
    entry: dict[str, Any],
    group: list[dict[str, Any]],
    sweep: xr.Dataset | None,
    measured: xr.Dataset | None,
) -> None:
    page.add(f"<h2>{html.escape(optimizer)}</h2>")
    panels, by_steps = {}, entry["judged_by"] == "steps"
    caption = (
        f"Judged by {f'steps to {goal(entry)}' if by_steps else 'loss at the end of the run'}."
    )
    loss = _loss_map(sweep, optimizer, entry["target_loss"])
    checkpoint = _nearest(measured, optimizer, entry["target_loss"], loss)
    if loss is None:
        page.sentence("No map of the loss: no sweep of it is here, or every run diverged.")
    else:
        draw = partial(figures.heat_map, loss=loss, entry=entry, checkpoint=checkpoint)
        panels["loss over batch size and learning rate"] = draw
        when = (
            "where the first learning rate of its batch size gets there"
            if by_steps
            else "at the end"
        )
        caption += f" Colors: mean loss over seeds {when}, up to the upper quartile; gray: diverged, or not run."
    if checkpoint is not None:
        caption += f" Predictions are for one step from the checkpoint at loss {float(checkpoint.loss):.3g}."
    if any(point["lr"] for point in entry["optimal_lr"]):
        panels["optimal learning rate and fitted laws"] = partial(figures.optimal_lr, entry=entry)
        caption += " Rings and points: the optimum, with its 95% interval; hollow points on the grid's edge."
    if panels:
        page.figure(f"{optimizer}-optimal-lr", caption, panels)
    page.add(_optima_table([entry], checkpoint) + _laws_table(entry))
    if loss is not None:
        page.fold("Loss over batch size and learning rate", _loss_table(loss))
    if by_steps:
        _targets_section(page, optimizer, group)


def _loss_map(
    sweep: xr.Dataset | None, optimizer: str, target: float | None
) -> xr.DataArray | None:
    """Loss [batch_size, learning_rate], unless none is finite."""
    if sweep is None or optimizer not in sweep.optimizer:
        return None
    loss = sweeps.loss_when_first_arrives(sweep, optimizer, target)
    return loss if loss.size else None


def _nearest(
    measured: xr.Dataset | None, optimizer: str, target: float | None, loss: xr.DataArray | None
) -> xr.Dataset | None:
    """The checkpoint whose loss is nearest to the target, or to the lowest loss where there is
    none."""
    if measured is None or optimizer not in measured.optimizer or loss is None:
        return None
    distance = np.abs(measured.loss.values - (float(loss.min()) if target is None else target))
    return measured.sel(optimizer=optimizer).isel(checkpoint=int(distance.argmin()))


def _targets_section(page: _Page, optimizer: str, group: list[dict[str, Any]]) -> None:
    if any(point["lr"] for entry in group for point in entry["optimal_lr"]):
        page.figure(
            f"{optimizer}-data-against-time",
            "Steps and examples to each target loss at the best learning rate of each batch size, with the fitted "
            "hyperbola where it is defined; and the optimum at each target.",
            {
                "examples against steps": partial(figures.data_against_time, entries=group),
                "the optimum at each target": partial(figures.optimal_lr_by_target, entries=group),
            },
        )
    page.add(_noise_table(group))
    page.fold("The optimum at each target", _optima_table(group))


def _optima_table(entries: list[dict[str, Any]], checkpoint: xr.Dataset | None = None) -> str:
    def row(entry: dict[str, Any], point: dict[str, Any]) -> tuple[Any, ...]:
        size = point["batch_size"]
        cells = size, number(point["lr"]), interval(point["low"], point["high"])
        if entry["judged_by"] == "steps":
            cells = (goal(entry), *cells, number(point["steps"]), number(point["examples"]))
        if checkpoint is not None:
            here = checkpoint.reindex(batch_size=[size]).isel(batch_size=0)
            cells += tuple(_estimate(here[f"{name}_lr"].values) for name in PREDICTIONS)
        return *cells, point.get("why", "")

    by_steps = entries[0]["judged_by"] == "steps"
    header = ["batch size", "optimal lr", "95% interval"]
    header = ["judged by steps to", *header, "steps", "examples"] if by_steps else header
    header += [f"{name}, one step" for name in PREDICTIONS if checkpoint is not None]
    return _table(
        [*header, "note"], (row(entry, point) for entry in entries for point in entry["optimal_lr"])
    )


def _loss_table(loss: xr.DataArray) -> str:
    header = ["learning rate", *(f"B = {size}" for size in loss.batch_size.values)]
    rows = ((rate, loss.sel(learning_rate=rate)) for rate in loss.learning_rate.values)
    return _table(
        header,
        ((number(float(rate)), *(number(float(each)) for each in row)) for rate, row in rows),
    )


def _laws_table(entry: dict[str, Any]) -> str:
    def row(name: str, law: dict[str, Any]) -> tuple[str, ...]:
        each = ((key, value, law["intervals"][key]) for key, value in law["params"].items())
        params = ", ".join(
            f"{key} = {number(value)} {interval(*ends)}" for key, value, ends in each
        )
        held_out = number(law["held_out_rmse_log"])
        if law.get("held_out_se") is not None:  # a fit.json of an earlier version has none
            held_out += f" ± {number(law['held_out_se'], 2)}"
        title = name.replace("_", " ") + (" (best)" if name == entry["best_law"] else "")
        return title, params, number(law["aic"]), held_out

    return _table(
        (
            "law",
            "parameters with 95% intervals",
            "AICc",
            "held-out error in log lr ± its standard error",
        ),
        (row(name, law) for name, law in entry["laws"].items()),
    )


def _noise_table(group: list[dict[str, Any]]) -> str:
    header = (
        "target",
        "B_noise from S(B)",
        "95% interval",
        "S_min, steps",
        "E_min, examples",
        "peak",
        "note",
    )
    rows = ((goal(entry), entry["noise_scale"], verdict(entry)) for entry in group)
    return _table(
        header,
        (
            (
                target,
                number(noise["b_noise"]),
                interval(noise["low"], noise["high"]),
                number(noise["s_min"]),
                number(noise["e_min"]),
                peak,
                noise["why"],
            )
            for target, noise, peak in rows
        ),
    )


def _checkpoint_section(
    page: _Page, measured: xr.Dataset, entries: list[dict[str, Any]], sweep: xr.Dataset | None
) -> None:
    page.add("<h2>From single checkpoints</h2>")
    for sentence in verdicts.one_step(measured):
        page.sentence(sentence, "finding")
    same = [entry for entry in entries if entry["optimizer"] == measured.attrs["optimizer"]]
    page.figure(
        "noise-along-training",
        "Noise scales from per-example gradients at checkpoints, with 95% intervals, each its own quantity; of single "
        "layers, from the first to the last dark to light; and up to which batch size the small-batch law holds for a "
        "parameter: far below the bound. An interval without an upper end is cut at ten times its value.",
        {
            "noise scales": partial(figures.noise_along_training, measured=measured, entries=same),
            "single layers": partial(figures.layer_noise, measured=measured),
            "reach of the small-batch law": partial(figures.validity, measured=measured),
        },
    )
    page.add(_noise_scales_table(measured) + _drift_table(measured) + _cost_table(measured, sweep))
    page.fold("Noise scales of single layers", _layers_table(measured))
    page.fold("Share of parameters by πσ²/2μ²", _shares_table(measured))
    for optimizer in measured.optimizer.values:
        page.add(f"<h3>{html.escape(str(optimizer))}</h3>")
        for index in range(measured.sizes["checkpoint"]):
            _one_step_section(
                page,
                f"{optimizer}-one-step-{index}",
                measured.isel(checkpoint=index),
                str(optimizer),
            )


def _one_step_section(page: _Page, name: str, row: xr.Dataset, optimizer: str) -> None:
    checkpoint = row.sel(optimizer=optimizer)
    lr = {
        each: checkpoint[f"{each}_lr"].sel(bound="value").values
        for each in (*figures.ESTIMATES, "branch")
    }
    found = {each for each, values in lr.items() if np.isfinite(values).any()}
    title = f"step {int(checkpoint.step)}, training loss {float(checkpoint.loss):.3g}"
    panels = {title: partial(figures.one_step, checkpoint=checkpoint)}
    if "independent" in found:
        laws = {each: float(checkpoint[each]) for each in figures.COEFFICIENTS}
        panels["closed forms of sign descent"] = partial(
            figures.closed_forms,
            batch_sizes=checkpoint.batch_size.values,
            exact=lr["independent"],
            true=lr["oracle"],
            **laws,
        )
    if "branch" in found:
        panels["runs that branch here"] = partial(figures.branches, checkpoint=checkpoint)
    page.figure(
        name,
        "Estimates of the learning rate that lowers the loss most in one step. Bands: 95%.",
        panels,
    )
    why = str(checkpoint.measured_peak_why.values)
    peak = _estimate(checkpoint.measured_peak.values, "none seen") + (f" ({why})" if why else "")
    page.sentence(f"Peak of the measured law: {peak}.")
    why = str(checkpoint.measured_surge_why.values) or NO_K
    b_noise = _estimate(checkpoint.measured_surge.sel(surge_parameter="b_noise").values, why)
    page.sentence(f"B_noise = N/K' of the small-batch surge, both measured: {b_noise}.")
    page.add(_one_step_table(checkpoint))
    if not all(np.isfinite(lr[each]).all() for each in figures.ESTIMATES):
        page.sentence(DASH)
    if "independent" in found:
        page.add(_coefficients_table(checkpoint))
    if "branch" in found:
        page.add(_branch_table(checkpoint))
    else:
        page.sentence(f"No best learning rate of runs that branch here: {NO_BRANCH}.")


def _noise_scales_table(measured: xr.Dataset) -> str:
    def row(index: int) -> list[str]:
        checkpoint = measured.isel(checkpoint=index)
        scales = zip(checkpoint.noise_scale.values, checkpoint.noise_scale_why.values, strict=True)
        cells = [_estimate(bounds, str(why)) for bounds, why in scales]
        cells += [_estimate(bounds) for bounds in checkpoint.validity.values]
        return [
            str(int(checkpoint.step)),
            number(float(checkpoint.loss)),
            *cells,
            f"{float(checkpoint.zero_share):.2%}",
        ]

    scales = [str(each) for each in measured.scale.values]
    bounds = [f"πσ²/2μ², {quantile:.0%}" for quantile in measured["quantile"].values]
    header = ("step", "loss", *scales, *bounds, "gradients exactly zero")
    return _table(header, (row(index) for index in range(measured.sizes["checkpoint"])))


def _layers_table(measured: xr.Dataset) -> str:
    def row(layer: str) -> list[str]:
        each = measured.sel(layer=layer)
        cells = zip(each.layer_noise.values, each.layer_noise_why.values, strict=True)
        return [layer, *(_estimate(bounds, str(why)) for bounds, why in cells)]

    return _table(
        ["layer", *_losses(measured)], (row(str(layer)) for layer in measured.layer.values)
    )


def _shares_table(measured: xr.Dataset) -> str:
    rows = zip(
        measured.validity_bin.values,
        measured.validity_share.transpose("validity_bin", ...).values,
        strict=True,
    )
    return _table(
        ["from", *_losses(measured)],
        ((number(edge), *map("{:.2%}".format, row)) for edge, row in rows),
    )


def _losses(measured: xr.Dataset) -> list[str]:
    return [f"loss {loss:.3g}" for loss in measured.loss.values]


def _drift_table(measured: xr.Dataset) -> str:
    def row(name: str) -> tuple[str, ...]:
        each = measured.sel(quantity=name)
        return (
            name,
            _estimate(each.drift.values, str(each.drift_why.values)),
            str(int(each.drift_n)),
        )

    header = ("along training", "exponent p of loss^p", "checkpoints")
    return _table(header, (row(str(name)) for name in measured.quantity.values))


def _cost_table(measured: xr.Dataset, sweep: xr.Dataset | None) -> str:
    """Examples differentiated for one checkpoint's answer, next to what the sweep took."""

    def row(optimizer: str) -> tuple[str, ...]:
        each = measured.sel(optimizer=optimizer)
        costs = [float(each[f"{name}_examples"].mean()) for name in ("measured", "branch")]
        if sweep is None or optimizer not in sweep.optimizer:
            return optimizer, *(number(cost) for cost in costs), "not run", "–"
        whole = sweeps.examples_trained(sweep.sel(optimizer=optimizer))
        return (
            optimizer,
            *(number(cost) for cost in costs),
            number(whole),
            f"{costs[0] / whole:.2%}",
        )

    header = ("examples differentiated", "measured law", "branch runs", "sweep", "measured / sweep")
    return _table(header, (row(str(name)) for name in measured.optimizer.values))


def _coefficients_table(checkpoint: xr.Dataset) -> str:
    values = [float(checkpoint[name]) for name in (*figures.COEFFICIENTS, "r")]
    header = (
        "closed forms",
        "Σ|μ|",
        "D = Σ H_ii",
        "O = s'Hs' − D",
        "|μ|/σ",
        "B_noise",
        "ε_max",
        "r = D/O",
    )
    cells = ("∞: no surge" if np.isinf(each) else number(each) for each in values)
    return _table(header, [("at this checkpoint", *cells)])


def _branch_table(checkpoint: xr.Dataset) -> str:
    def cell(size: int, horizon: int) -> str:
        return _estimate(
            checkpoint.branch_lr.sel(batch_size=size, horizon=horizon).values, NO_BRANCH
        )

    horizons, sizes = checkpoint.horizon.values.tolist(), checkpoint.batch_size.values.tolist()
    header = ("batch size", *(f"best after K = {horizon}" for horizon in horizons))
    return _table(
        header, ((size, *(cell(size, horizon) for horizon in horizons)) for size in sizes)
    )


def _one_step_table(checkpoint: xr.Dataset) -> str:
    def ratio(name: str, size: int) -> str:
        values = [
            float(checkpoint[f"{each}_lr"].sel(batch_size=size, bound="value"))
            for each in (name, "oracle")
        ]
        return number(values[0] / values[1]) if np.isfinite(values).all() else "–"

    return _table(
        ("batch size", "independent", "measured", "true", "independent / true", "measured / true"),
        (
            (
                size,
                *(
                    _estimate(checkpoint[f"{name}_lr"].sel(batch_size=size).values)
                    for name in figures.ESTIMATES
                ),
                ratio("independent", size),
                ratio("measured", size),
            )
            for size in checkpoint.batch_size.values.tolist()
        ),
    )


def _provenance(page: _Page, attributes: Mapping[str, Any]) -> None:
    versions = ", ".join(
        f"{name} {version}" for name, version in json.loads(attributes["versions"]).items()
    )
    page.add("<h2>How this was made</h2>")
    page.sentence(f"{versions}; {attributes['devices']}")
    if "mixed" in attributes:
        page.sentence(f"Not all pieces of the sweep were made alike; {attributes['mixed']}")
    page.fold(
        "config",
        f"<pre>{html.escape(json.dumps(json.loads(attributes['config']), indent=1))}</pre>",
    )
