"""A sweep as labelled arrays: its pieces, joined, and the tables read from them."""

import itertools
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from surge.theory.objective import Objective, needs_halves
from surge.workdir.files import ResultError, read_dataset, unreadable

DIMS = ("optimizer", "batch_size", "learning_rate", "seed", "eval")
PIECE = (*DIMS, "loss", "diverged", "steps", "examples")


def read_piece(path: Path | str) -> xr.Dataset:
    """Reads one finished piece of the sweep, as `piece_dataset` labels it.

    Raises:
      ResultError: as `read_dataset` does, or the piece is another one than its name says.
    """
    path = Path(path)
    piece = read_dataset(path, PIECE)
    first_seed = int(piece.seed.values[0])
    for optimizer, size in itertools.product(piece.optimizer.values, piece.batch_size.values):
        if path.name != sweep_path(path.parent, optimizer, size, first_seed).name:
            raise unreadable(path, f"it is the piece of {optimizer} at batch size {size}")
    if piece.examples.dims != DIMS:  # as it was written while runs of a batch size saw the same
        seen = piece.examples.broadcast_like(piece.loss).transpose(*DIMS)
        piece["examples"] = seen.where(np.isfinite(piece.loss)).assign_attrs(piece.examples.attrs)
    return piece


def sweep_path(workdir: Path, optimizer: str, batch_size: int, first_seed: int = 0) -> Path:
    """The file of one finished piece of the sweep; more seeds of a batch size are pieces too."""
    more = f"-s{first_seed}" if first_seed else ""
    return workdir / "sweep" / f"{optimizer}-b{batch_size}{more}.nc"


def piece_dataset(
    optimizer: str,
    batch_size: int,
    learning_rates: Iterable[float],
    seeds: Iterable[int],
    eval_steps: Iterable[int],
    loss: np.ndarray,
    diverged: np.ndarray,
    examples: np.ndarray,
    attrs: dict[str, str],
    half_loss: np.ndarray | None = None,
) -> xr.Dataset:
    """Labels one piece: losses and examples [learning_rate, seed, eval], diverged without eval."""
    steps = np.asarray(tuple(eval_steps), float)[None, None]
    variables = {
        "loss": (DIMS, loss[None, None]),
        "diverged": (DIMS[:-1], diverged[None, None].astype(float)),
        "steps": (("optimizer", "batch_size", "eval"), steps),
        "examples": (DIMS, examples[None, None]),
    }
    if half_loss is not None:
        variables["half_loss"] = (DIMS, half_loss[None, None])
    return xr.Dataset(
        variables,
        coords={
            "optimizer": [optimizer],
            "batch_size": [batch_size],
            "learning_rate": list(learning_rates),
            "seed": list(seeds),
            "eval": np.arange(steps.shape[-1]),
        },
        attrs=attrs,
    )


def open_sweep(workdir: Path | str) -> xr.Dataset:
    """All finished pieces of a sweep as one array; nan where a cell is not in an optimizer's grid.

    Returns:
      Dataset with dims optimizer, batch_size, learning_rate, seed, eval and variables loss and
      examples (of all dims), diverged (without eval), and steps (optimizer, batch_size, eval);
      attributes give units, config, versions and devices, and `mixed` names those that differ
      between pieces.

    Raises:
      ResultError: no piece is finished, or a file in the folder is not one.
    """
    paths = sorted((Path(workdir) / "sweep").glob("*.nc"))
    if not paths:
        raise ResultError(f"{workdir} holds no sweep: run --stages=sweep first")
    pieces = [read_piece(path) for path in paths]
    labels = {
        name: np.unique(np.concatenate([piece[name].values for piece in pieces])) for name in DIMS
    }
    coords = {name: (name, values, pieces[0][name].attrs) for name, values in labels.items()}
    sweep = xr.Dataset(coords=coords, attrs=pieces[0].attrs | _mixed(pieces))
    for name, variable in pieces[0].data_vars.items():
        shape = [sweep.sizes[dim] for dim in variable.dims]
        sweep[name] = xr.Variable(variable.dims, np.full(shape, np.nan), variable.attrs)
        for piece in pieces:
            sweep[name].loc[{str(dim): piece[dim] for dim in variable.dims}] = piece[name]
    return sweep


def open_runs(path: Path | str) -> xr.Dataset | None:
    """The runs of a table as one array with the dims of a sweep and one evaluation, the last.

    Args:
      path: runs.csv, as `surge.fit_table` writes it: a row a run, with group, batch_size,
        learning_rate, and loss, empty where the run failed.

    Returns:
      Dataset with loss and diverged, replicates along seed; None where the runs were judged by
      something else than a loss.
    """
    runs = pd.read_csv(path, dtype={"group": str})
    if "loss" not in runs:
        return None
    cell = ["group", "batch_size", "learning_rate"]
    runs = runs.assign(seed=runs.groupby(cell).cumcount())
    indexed = runs.rename(columns={"group": "optimizer"}).set_index([*DIMS[:-1]])
    loss = indexed["loss"].to_xarray()
    ran = indexed["loss"].isna().astype(float).to_xarray()
    return xr.Dataset({"loss": loss.expand_dims(eval=[0], axis=-1), "diverged": ran})


def _mixed(pieces: Iterable[xr.Dataset]) -> dict[str, str]:
    """What was not the same for all pieces, as after an upgrade or on another machine."""
    found = {
        name: sorted({str(piece.attrs.get(name, "unknown")) for piece in pieces})
        for name in ("versions", "devices", "commit")
    }
    differing = [
        f"{name}: {' and '.join(values)}" for name, values in found.items() if len(values) > 1
    ]
    return {"mixed": "; ".join(differing)} if differing else {}


def _carried(loss: xr.DataArray) -> xr.DataArray:
    """A run that ended early keeps its last loss."""
    loss = loss.transpose(..., "eval")
    position = np.where(np.isfinite(loss), np.arange(loss.sizes["eval"]), 0)
    return loss.copy(data=np.take_along_axis(loss.values, np.maximum.accumulate(position, -1), -1))


def rows(sweep: xr.Dataset, optimizer: str, objective: Objective) -> dict[str, np.ndarray]:
    """One optimizer's cells as a long table, the form that `surge.entries` fits.

    Args:
      sweep: as `open_sweep` gives it.
      optimizer: a label of its `optimizer` coordinate.
      objective: what runs are judged by.

    Returns:
      Arrays of equal length batch_size, learning_rate, seed, value and steps, a row for each cell
      that was run. value: of the objective, inf where a run failed, nan where it ended before it
      could be judged. steps: those to the target (nan where it is not reached) where runs are
      judged by them, else those of the longest run of that batch size.
    """
    chosen = sweep.sel(optimizer=optimizer)
    loss = chosen.loss.transpose(*DIMS[1:])
    diverged = chosen.diverged.transpose(*DIMS[1:-1])
    steps = chosen.steps.transpose("batch_size", "eval")
    halves = {"half_loss": _half_loss(chosen)} if needs_halves(objective) else {}
    value = objective.value(loss.values, diverged.values, steps.values[:, None, None], **halves)
    if objective.judged_by == "steps":
        taken = np.exp(np.where(np.isfinite(value), value, np.nan))
    else:
        taken = np.broadcast_to(steps.max("eval").values[:, None, None], value.shape)

    size, rate, seed = np.nonzero(np.isfinite(diverged.values))  # the cells that were run
    return {
        "batch_size": sweep.batch_size.values[size],
        "learning_rate": sweep.learning_rate.values[rate],
        "seed": sweep.seed.values[seed],
        "value": value[size, rate, seed],
        "steps": taken[size, rate, seed],
    }


def _half_loss(chosen: xr.Dataset) -> np.ndarray:
    """[batch_size, learning_rate, seed, eval] of one optimizer."""
    if "half_loss" not in chosen:
        raise ResultError(
            "the sweep holds no losses of one half of the evaluation set, by which "
            "config.fit.crossings 'half' judges: give another --workdir"
        )
    return chosen.half_loss.transpose(*DIMS[1:]).values


def why_unjudged(sweep: xr.Dataset, optimizer: str, target: float | None) -> str:
    """Why the runs of one optimizer cannot be told apart by a target; "" where they can.

    Args:
      sweep: as `open_sweep` gives it.
      optimizer: a label of its `optimizer` coordinate.
      target: a loss; None: the loss at the last evaluation.
    """
    loss = sweep.loss.sel(optimizer=optimizer)
    loss = loss.where(np.isfinite(loss))
    lowest = float(loss.min())
    if np.isnan(lowest):
        return f"no run of {optimizer} has a finite loss"
    if target is None:
        return ""
    if lowest > target:
        return f"no run of {optimizer} reaches loss {target:g}: the lowest is {lowest:.4g}"
    first = float(loss.isel(eval=0).max())
    if first <= target:
        return (
            f"every run of {optimizer} is at loss {first:.4g} or below when it is first evaluated: "
            f"how long it takes to {target:g} says nothing of the learning rate"
        )
    return ""


def loss_when_first_arrives(
    sweep: xr.Dataset, optimizer: str, target: float | None
) -> xr.DataArray:
    """Loss of every learning rate where the first one of its batch size gets to `target`.

    Args:
      sweep: as `open_sweep` gives it.
      optimizer: a label of its `optimizer` coordinate.
      target: a loss; None: the loss at the last evaluation.

    Returns:
      Mean over seeds of the loss [batch_size, learning_rate]; nan where a run had diverged.
    """
    chosen = sweep.sel(optimizer=optimizer)
    loss = _carried(chosen.loss).where(chosen.diverged == 0)
    if target is None:
        return loss.isel(eval=-1).mean("seed").dropna("learning_rate", how="all")
    mean = loss.mean("seed")
    arrived = (mean <= target).any("learning_rate")
    first = arrived.argmax("eval").where(arrived.any("eval"), arrived.sizes["eval"] - 1)
    return mean.isel(eval=first.astype(int)).dropna("learning_rate", how="all")


def examples_trained(sweep: xr.Dataset) -> float:
    """Training examples of all runs, each to its own end."""
    return float(sweep.examples.max("eval").sum())
