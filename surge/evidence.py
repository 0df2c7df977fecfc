"""What a workdir or a table tells of how the learning rate moves with the batch size."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from surge.noise import Reading, logged
from surge.optimizers import make_optimizer
from surge.report.reading import representative
from surge.tables.pooling import Pool, pool_of
from surge.tables.reading import numbers, read
from surge.tables.tidy import entries, tidy
from surge.theory.noise import Estimate
from surge.theory.objective import FinalLoss, StepsTo
from surge.theory.rules import Known, kind_of
from surge.theory.transfer import Belief
from surge.workdir.files import MEASURED, ResultError, read_dataset, read_fits, read_json
from surge.workdir.sweeps import open_sweep, rows

NEAR = 1.4  # in log ε about an optimum, a factor 4: where the basin's steepness is read
FEWEST = 4  # runs that tell it
OWN_ERROR = math.log(2) / 2  # of log ε where a sweep does not tell one


class Bound(NamedTuple):
    """A number with its 95% interval; nan and a reason where it is unknown."""

    value: float
    low: float
    high: float
    why: str = ""


class Swept(NamedTuple):
    """A sweep of the task itself.

    Attributes:
      batch_size, lr, error, bound: the optima [n] as `surge.theory.fit` takes them.
      judged_by: "steps", "loss" or "fall".
      steepness: c of value − best = c · (log rate − log optimum)², below and above the optimum;
        nan where runs do not tell. Values are log steps or losses.
      failed, tried: runs at more than twice the optimum that failed, and all of them.
      noise_scale: B_noise of S(B) = S_min (1 + B_noise/B).
      peak: batch size from which on the optimum does not rise.
      rests_on: one sentence.
    """

    batch_size: np.ndarray
    lr: np.ndarray
    error: np.ndarray
    bound: np.ndarray
    judged_by: str
    steepness: tuple[float, float]
    failed: int
    tried: int
    noise_scale: Bound
    peak: Bound
    rests_on: str


class Cost(NamedTuple):
    """Of the runs of a probe: examples that they were trained on, and the share of a dense
    sweep's."""

    examples: float
    share: float


class Probed(NamedTuple):
    """Runs at the new batch size.

    Attributes:
      belief: what they say of ψ; None where none was run.
      rests_on: one sentence.
      cost: of them.
    """

    belief: Belief | None
    rests_on: str
    cost: Cost


class Evidence(NamedTuple):
    """What is known of a task.

    Attributes:
      swept: of a sweep, None without.
      known: of a checkpoint or a log of noise, or of the optimizer alone.
      measured: which checkpoint or log of noise, "" without.
      remarks: what a user should know of either.
      pool: other sweeps that may be of the same shape, None without.
      probed: runs at the batch size that is asked about, None without.
      course: (examples before, B_simple) at each checkpoint of the training that was measured.
    """

    swept: Swept | None
    known: Known
    measured: str
    remarks: list[str]
    pool: Pool | None = None
    probed: Probed | None = None
    course: tuple[tuple[float, float], ...] = ()


def gathered(
    optimizer: str,
    *,
    workdir: Path | str | None = None,
    label: str | None = None,
    table: Path | str | None = None,
    named: Mapping[str, Any] | None = None,
    noise: Path | str | Estimate | Reading | None = None,
    log: tuple[Any, Any, Any, Any] = (None, None, None, None),
) -> Evidence:
    """All that is known of a task, from what `surge.suggest` is given.

    Args:
      optimizer, workdir, label, table, noise: as there.
      named: the other arguments of a table.
      log: small, big, small_column and big_column of a log of noise.

    Raises:
      ValueError: both workdir and table.
      ResultError: a workdir, a table or a log that cannot be used as asked.
    """
    if workdir is not None and table is not None:
        raise ValueError("give workdir or table, not both")
    if workdir is not None:
        evidence = of_workdir(Path(workdir), optimizer, label)
    elif table is not None:
        evidence = of_table(Path(table), optimizer, label, **(named or {}))
    else:
        evidence = of_nothing(optimizer)
    if noise is not None:
        told_by = logged(noise, *log)
        evidence = with_noise(evidence, told_by.b_simple, told_by.said)
    return evidence


def of_nothing(optimizer: str) -> Evidence:
    """What is known where nothing was swept or measured: the kind of optimizer."""
    return Evidence(None, Known(kind_of(optimizer)), "", [])


def with_noise(evidence: Evidence, b_simple: Estimate, said: str) -> Evidence:
    """The evidence with a noise scale that a training logged.

    A checkpoint in it says more than a log and stays; the log's noise scale is then a remark, and
    so is one that is undefined.

    Args:
      evidence: without the log.
      b_simple: tr Σ/|μ|².
      said: what it was measured on.
    """
    if b_simple.why:
        remark = f"{said}: the noise scale is undefined, {b_simple.why}"
    elif evidence.measured:
        scale = f"{b_simple.value:.3g} [{b_simple.low:.2g}, {b_simple.high:.2g}]"
        remark = f"{said}: B_simple {scale}, where the checkpoint's counts"
    else:
        known = evidence.known._replace(
            b_simple=b_simple.value, b_simple_low=b_simple.low, b_simple_high=b_simple.high
        )
        return evidence._replace(known=known, measured=said)
    return evidence._replace(remarks=[*evidence.remarks, remark])


def of_table(path: Path, optimizer: str, label: str | None = None, **named: Any) -> Evidence:
    """The evidence of a table of runs; other arguments and errors are those of `tidy`.

    Args:
      path: of the table.
      optimizer: the one asked for.
      label: of the group whose rate is asked for, like "width=256"; the others inform it where
        they have its shape. None: the table has one group, or one that is the optimizer asked for.

    Raises:
      ResultError: several groups, and none of them is the one asked for.
    """
    runs = tidy(read(path), **named)
    found = {entry["optimizer"]: entry for entry in entries(runs)}
    chosen = _group(path.name, [*found], label, optimizer)
    rows = runs.rows[runs.rows["group"] == chosen]
    table = {name: rows[name].to_numpy() for name in rows.columns if name != "group"}
    part = "" if len(found) == 1 else f", {chosen}"
    said = f"a sweep in {path.name}{part}: {_range(found[chosen])}, {len(rows)} runs"
    swept = of_entry(found[chosen], table, said)
    pool = pool_of([*found.values()], chosen) if len(found) > 1 else None
    return Evidence(swept, Known(kind_of(optimizer)), "", runs.remarks, pool)


def _group(table: str, labels: Sequence[str], label: str | None, optimizer: str) -> str:
    """The group of a table that is asked for."""
    if label in labels:
        return str(label)
    name = optimizer.partition("(")[0]
    same = [one for one in labels if one.partition("=")[2].partition("(")[0] == name]
    if label is None and len(labels) == 1:
        return labels[0]
    if label is None and len(same) == 1:
        return same[0]
    raise ResultError(
        f"{table} has {len(labels)} groups ({'; '.join(labels)}): --label takes one of them"
    )


def of_workdir(workdir: Path, optimizer: str, label: str | None = None) -> Evidence:
    """The evidence of a workdir: its sweep at the middle target, and its middle checkpoint.

    Args:
      workdir: of surge.main or surge.fit_table.
      optimizer: the one asked for.
      label: of the optimizer or group whose evidence counts; None: that of `optimizer`.

    Raises:
      ResultError: it holds neither, or several optimizers of which none is the one asked for.
    """
    if not workdir.is_dir():
        raise ResultError(f"--workdir {workdir} does not exist")
    fits = representative(read_fits(workdir))
    path = workdir / "measure.nc"
    measured = read_dataset(path, MEASURED) if path.exists() else None
    labels = [*fits] or ([] if measured is None else [*map(str, measured.optimizer.values)])
    if not labels:
        raise ResultError(
            f"{workdir} holds no fit and no measurement: run --stages=measure,sweep,fit first"
        )
    specs = _specs(workdir)
    label, remarks = _label(labels, label or optimizer, specs)
    known = Known(kind_of(optimizer))
    said = ""
    if measured is not None and label in measured.optimizer:
        known = of_checkpoint(measured, label, specs.get(label, optimizer), optimizer)
        loss = float(after_start(measured)[1].loss) if "loss" in measured else math.nan
        said = f"a checkpoint of {workdir} at loss {loss:.3g}"
    swept = None
    if label in fits:
        swept = of_entry(
            fits[label], _rows(workdir, fits[label]), _sentence(workdir, fits[label], specs)
        )
    course = () if measured is None else course_of(measured)
    return Evidence(swept, known, said, remarks, course=course)


def course_of(measured: xr.Dataset) -> tuple[tuple[float, float], ...]:
    """(examples before, B_simple) at the checkpoints of a measurement where it is defined."""
    config = json.loads(measured.attrs.get("config", "{}"))
    if "measure" not in config or "step" not in measured:
        return ()
    examples = measured.step.values * float(config["measure"]["batch_size"])
    noise = measured.noise_scale.sel(scale="b_simple", bound="value").values
    return tuple(
        (float(before), float(scale))
        for before, scale in zip(examples, noise, strict=True)
        if np.isfinite(scale) and scale > 0
    )


def _specs(workdir: Path) -> dict[str, str]:
    """The optimizers of a workdir by label, as its config has them; none of a table."""
    path = workdir / "config.json"
    config = read_json(path) if path.exists() else {}
    return {name: one["spec"] for name, one in config.get("optimizers", {}).items()}


def _label(
    labels: Sequence[str], optimizer: str, specs: Mapping[str, str]
) -> tuple[str, list[str]]:
    """The label that is the optimizer asked for, and a remark where another stands in for it."""
    if optimizer in labels:
        return optimizer, []
    name = optimizer.partition("(")[0]
    same = [
        label
        for label in labels
        if name in (label, label.partition("(")[0], specs.get(label, "").partition("(")[0])
    ]
    if len(same) == 1:
        return same[0], []
    if len(labels) == 1:
        said = f"the evidence is of {labels[0]}, and it is {name} that was asked for"
        return labels[0], [] if labels[0] == "all runs" else [said]
    raise ResultError(f"{name} is not one of {', '.join(labels)}: give one of them as --label")


def _rows(workdir: Path, entry: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The runs behind an entry of fit.json; none where they are not there."""
    table = workdir / "runs.csv"
    if table.exists():
        runs = read(table)
        part = runs[runs["group"] == entry["optimizer"]]
        value = numbers(part["loss"]) if "loss" in part else np.log(numbers(part["steps"]))
        cells = {name: part[name].to_numpy() for name in ("batch_size", "learning_rate")}
        return cells | {"value": value}
    if not (workdir / "sweep").exists() or entry["judged_by"] not in ("steps", "loss"):
        return {name: np.zeros(0) for name in ("batch_size", "learning_rate", "value")}
    target = entry["target_loss"]
    objective = StepsTo(target) if entry["judged_by"] == "steps" else FinalLoss()
    return rows(open_sweep(workdir), entry["optimizer"], objective)


def _range(entry: Mapping[str, Any]) -> str:
    """Over which batch sizes an entry is, and what runs were judged by."""
    sizes = [point["batch_size"] for point in entry["optimal_lr"]]
    goal = "the target" if entry["target_loss"] is None else f"loss {entry['target_loss']:g}"
    judged = f"steps to {goal}" if entry["judged_by"] == "steps" else "loss at the end of the run"
    return f"B = {min(sizes):g} to {max(sizes):g} ({len(sizes)} of them), judged by {judged}"


def _sentence(workdir: Path, entry: Mapping[str, Any], specs: Mapping[str, str]) -> str:
    spec = specs.get(entry["optimizer"], entry["optimizer"])
    schedule = "" if "schedule" in spec or not specs else ", constant rate"
    return f"a sweep in {workdir}: {spec}{schedule}, {_range(entry)}"


def of_entry(entry: Mapping[str, Any], table: Mapping[str, np.ndarray], said: str) -> Swept:
    """A sweep from its entry of fit.json and its runs [n] (batch_size, learning_rate, value)."""
    points = [point for point in entry["optimal_lr"] if point["lr"] is not None]
    if any("bound" not in point for point in points):
        raise ResultError("fit.json is of an older version: run --stages=fit, or fit_table, again")
    column = {name: [point[name] for point in points] for name in ("batch_size", "lr", "bound")}
    errors = [OWN_ERROR if point["error"] is None else point["error"] for point in points]
    optima = {point["batch_size"]: point["lr"] for point in points if not point["bound"]}
    below, above, failed, tried = steepness(table, optima)
    return Swept(
        np.array(column["batch_size"], float),
        np.array(column["lr"], float),
        np.array(errors, float),
        np.array(column["bound"], int),
        entry["judged_by"],
        (below, above),
        failed,
        tried,
        _bound(entry["noise_scale"], "b_noise"),
        _bound(entry["b_peak"], "value"),
        said,
    )


def _bound(stored: Mapping[str, Any], name: str) -> Bound:
    """A number of fit.json with its interval, where null is not known."""
    value, low, high = (_number(stored[key]) for key in (name, "low", "high"))
    return Bound(value, low, high, stored["why"] or "")


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def steepness(
    table: Mapping[str, np.ndarray], optima: Mapping[float, float]
) -> tuple[float, float, int, int]:
    """How much worse a rate is than the optimum of its batch size, from all runs of a sweep.

    Args:
      table: runs [n], with batch_size, learning_rate and value.
      optima: batch size -> its optimum.

    Returns:
      c of value − best = c · distance² in log ε below and above the optimum, by least squares over
      all batch sizes (best is the value at the rate nearest to the optimum); the failed and all
      runs beyond twice the optimum.
    """
    distances = []
    excesses = []
    for size, lr in optima.items():
        chosen = table["batch_size"] == size
        if not chosen.any():
            continue
        distance = np.log(table["learning_rate"][chosen] / lr)
        value = np.asarray(table["value"][chosen], float)
        value = np.where(np.isfinite(value), value, np.nan)
        nearest = np.abs(distance) <= np.abs(distance).min() * (1 + 1e-9)
        distances.append(distance[~nearest])
        excesses.append((value - np.mean(value[nearest]))[~nearest])
    distance = np.concatenate([*distances, np.zeros(0)])
    excess = np.concatenate([*excesses, np.zeros(0)])

    near = np.isfinite(excess) & (np.abs(distance) < NEAR)
    below, above = (
        _slope(distance[near & side] ** 2, excess[near & side])
        for side in (distance < 0, distance > 0)
    )
    high = distance > math.log(2)
    return below, above, int(np.isnan(excess[high]).sum()), int(high.sum())


def _slope(x: np.ndarray, y: np.ndarray) -> float:
    """Least squares through the origin, nan where points are few or it is not above 0."""
    if len(x) < FEWEST:
        return math.nan
    slope = float(x @ y / (x @ x))
    return slope if slope > 0 else math.nan


def after_start(measured: xr.Dataset) -> tuple[xr.Dataset, xr.Dataset]:
    """The checkpoints after the start, and the middle one; the start where it is alone."""
    later = measured.isel(checkpoint=slice(min(1, measured.sizes["checkpoint"] - 1), None))
    return later, later.isel(checkpoint=later.sizes["checkpoint"] // 2)


def of_checkpoint(measured: xr.Dataset, label: str, spec: str, optimizer: str) -> Known:
    """What the middle checkpoint of a measurement tells of one of its optimizers.

    Args:
      measured: as the measure stage stores it.
      label: of the optimizer there.
      spec: of it, whose weights of past gradients are its noise gain.
      optimizer: the one asked for, whose kind counts.
    """
    here = after_start(measured)[1]
    b_simple = here.noise_scale.sel(scale="b_simple")
    one = here.sel(optimizer=label, bound="value")
    sizes = measured.batch_size.values.astype(float)
    weights = make_optimizer(spec).weights(float(sizes[len(sizes) // 2]))
    return Known(
        kind_of(optimizer),
        *(float(b_simple.sel(bound=bound)) for bound in ("value", "low", "high")),
        sizes=tuple(sizes),
        independent=tuple(one.independent_lr.values.tolist()),
        measured=tuple(one.measured_lr.values.tolist()),
        noise_gain=float((np.asarray(weights) ** 2).sum()),
    )
