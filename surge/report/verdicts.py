"""What the numbers amount to, in sentences that a person would say."""

import json
import math
from typing import Any

import numpy as np
import xarray as xr

from surge.report.course import HALF_INTERVAL, Course, Optimum, course, inside
from surge.report.formats import count, estimate, interval, listed, number
from surge.report.reading import (
    Entry,
    Point,
    bound,
    known,
    outside,
    phrase,
    standing,
    with_phrases,
)

SIGNIFICANT = 0.05
VISIBLE = 1.05  # peak over plateau that a sweep could see
ESTIMATES = {"measured": "measured directions", "independent": "the independent law"}


def answer(entry: Entry) -> str:
    """How far the best rate of one optimizer moves with the batch size, and up to where."""
    moves = course(entry)
    optima = inside(entry)
    tried = max((point["batch_size"] for point in entry["optimal_lr"]), default=None)
    if not optima:
        return f"no batch size up to {count(tried)} has its best rate inside the rates tried."
    if moves is None:
        [only] = optima
        rate = number(math.exp(only.log_lr))
        size = count(only.batch_size)
        return f"the best rate at B = {size} is {rate}, which is all that is known.{_rest(entry)}"
    said = f"the best rate {_movement(moves, entry['b_peak'])}"
    beyond = f"Beyond B = {count(tried)} nothing was tried."
    if moves.last.batch_size == tried:
        said += "; beyond that nothing was tried"
        beyond = ""
    return " ".join(filter(None, (f"{said}.{_odds(entry, moves)}{_rest(entry)}", beyond)))


def kappa(entry: Entry) -> str:
    """κ as the sweep has it, by the first law with one that is not ruled out, and whether a surge
    goes with it; nothing where no such law remains, or the data leave κ open on both sides."""
    law = kappa_law(entry)
    if law is None:
        return ""
    low, high = law["intervals"]["kappa"]
    if not low and high is None:
        return ""
    return f"κ {bounded(law, 'kappa')} from the sweep: {_height(law['derived'])}."


def kappa_law(entry: Entry) -> dict[str, Any] | None:
    """The first law with a κ and its peak over plateau among those that are not ruled out."""
    laws = (entry["laws"][name] for name in standing(entry))
    return next(
        (
            law
            for law in laws
            if "kappa" in law["params"] and "peak_over_plateau" in law.get("derived", {})
        ),
        None,
    )


def bounded(law: dict[str, Any], parameter: str) -> str:
    """A parameter with its interval, or the one bound that the data give it."""
    value = law["params"][parameter]
    low, high = law["intervals"][parameter]
    if parameter not in law.get("open", {}):
        return f"= {estimate([value, low, high])}"
    if low and high is None:
        return f"≥ {number(low, 2)}"
    if high is not None and not low:
        return f"≤ {number(high, 2)}"
    return "anywhere"


def _height(derived: dict[str, Any]) -> str:
    """What the height of the peak over the plateau lets expect."""
    value, low, high = derived["peak_over_plateau"]
    if high is not None and high < VISIBLE:
        return "no surge that a sweep could see"
    surge = low is not None and low >= VISIBLE
    if high is None:  # the value is then that of the end of a search
        least = f"a surge, its peak at least {number(low, 2)} times the rate at large batch sizes"
        return least if surge else "a surge is left open"
    told = f"{estimate([value, low, high])} times the rate at large batch sizes"
    if surge:
        return f"a surge, its peak {told}"
    return f"a surge is left open, the peak being {told}"


def peak(entry: Entry) -> str:
    """Where the best rate is highest, or what the data say of it, and what would tell more."""
    found = entry["b_peak"]
    low, high = found["low"], found["high"]
    why = with_phrases(found.get("why") or "", entry)
    if found["value"] is not None:
        said = f"The best rate peaks at B = {number(found['value'])} {between(low, high)}"
    elif low is None and high is None:
        said = "Where the best rate peaks is not known"
    elif low:
        said = f"No peak is seen; if there is one, it lies above B = {count(low)}"
    else:
        said = "No peak is seen"
    reason = f" ({why})" if why else ""
    needs = with_phrases(found.get("needs") or "", entry)
    return f"{said}{reason}.{f' {needs[0].upper()}{needs[1:]}.' if needs else ''}"


def between(low: float | None, high: float | None) -> str:
    """An interval of batch sizes, which ends at some that were tried."""
    return f"[{count(low or 0)}, {'∞' if high is None else count(high)}]"


def winner(entry: Entry) -> str:
    """Which law describes the best rates, or why none can be named."""
    if entry["best_law"] is None:
        why = with_phrases(entry["best_law_why"], entry)
        return f"No law can be named: {why}."
    others = [phrase(name) for name in standing(entry) if name != entry["best_law"]]
    said = phrase(entry["best_law"])
    said = f"{said[0].upper()}{said[1:]} describes the best rates"
    if not others:
        return f"{said}; all other laws are ruled out."
    are = "are" if len(others) > 1 else "is"
    return f"{said}; {listed(others)} {are} not ruled out, and nearly the same there."


def expectation(measured: xr.Dataset | None, optimizer: str) -> str:
    """Whether a checkpoint lets expect a surge over a run, by its κ; nothing where that is not
    stored or undefined. Of several checkpoints the last that knows."""
    row = kappa_row(measured, optimizer)
    if row is None:
        return ""
    where = f"At a checkpoint (loss {number(float(row.loss))}) κ over a run is measured as"
    said = f"{where} {estimate(row.kappa.values)}:"
    height = row.peak_over_plateau
    if float(height.sel(bound="high")) < VISIBLE:
        return f"{said} no surge is expected."
    if float(height.sel(bound="low")) > 1:
        told = f"{estimate(height.values)} times as high as the rate at large batch sizes"
        return f"{said} a surge is expected, {told}."
    return f"{said} a surge is neither to be expected nor ruled out."


def kappa_row(measured: xr.Dataset | None, optimizer: str) -> xr.Dataset | None:
    """The last checkpoint that knows an optimizer's κ over a run, None where there is none."""
    needed = {"kappa", "peak_over_plateau"}
    if measured is None or not needed <= measured.keys() or optimizer not in measured.optimizer:
        return None
    row = measured.sel(optimizer=optimizer, reading="long run")
    known = np.isfinite(row.kappa.sel(bound="value").values)
    return row.isel(checkpoint=int(np.flatnonzero(known)[-1])) if known.any() else None


def one_step(measured: xr.Dataset) -> list[str]:
    """For each optimizer how far each estimate is from the true one-step optimum, and where
    independence fails.

    Args:
      measured: measure.nc; of its estimates those that are missing are left out.
    """
    if "oracle_lr" not in measured:
        return []
    ratio = json.loads(measured.attrs.get("config", "{}")).get("learning_rate_ratio")
    sentences = []
    for optimizer in measured.optimizer.values:
        row = measured.sel(optimizer=optimizer)
        sentences += _distances(row)
        if ratio and "independent_lr" in row:
            sentences += _independence(row, ratio)
    return sentences


def _movement(moves: Course, peak: dict[str, Any]) -> str:
    """rises 7-fold from B = 4 to 1,024 and stays there to 4,096."""
    first, top, end, bottom, last = (count(optimum.batch_size) for optimum in moves[:5])
    rises = moves.top is not moves.first
    falls = moves.end is not moves.last
    if not rises and not falls and peak["value"] is not None:
        where = f"B = {number(peak['value'])} {between(peak['low'], peak['high'])}"
        return f"rises and falls again from B = {first} to {last}, with its peak at {where}"
    if not rises and not falls:
        return _drifts(moves)
    parts = []
    if rises:
        parts.append(f"rises {_fold(moves.level, moves.first)} from B = {first} to {top}")
    if moves.end is not moves.top:
        parts.append(f"stays there to {end}" if rises else f"is level from B = {first} to {end}")
    if falls:
        start = "" if parts else f" from B = {end}"
        parts.append(f"falls {_fold(moves.level, moves.bottom)}{start} to {bottom}")
        if moves.bottom is not moves.last:
            parts.append(f"is {_fold(moves.last, moves.bottom)} above that at {last}")
    return listed(parts)


def _drifts(moves: Course) -> str:
    """Of neighbours that cannot be told apart, which together may still lean one way."""
    span = f"from B = {count(moves.first.batch_size)} to {count(moves.last.batch_size)}"
    reach = math.log(moves.last.batch_size / moves.first.batch_size)
    if abs(moves.slope) <= HALF_INTERVAL * moves.slope_error:
        factor = math.exp(HALF_INTERVAL * math.hypot(moves.first.error, moves.last.error))
        return f"does not move {span} by more than these runs can tell (a factor {factor:.2g})"
    way = "rises" if moves.slope > 0 else "falls"
    return f"{way} slowly, {math.exp(abs(moves.slope) * reach):.2g}-fold {span}"


def _fold(high: Optimum, low: Optimum) -> str:
    """7.1-fold [5.0, 10]."""
    middle = high.log_lr - low.log_lr
    reach = HALF_INTERVAL * math.hypot(high.error, low.error)
    low_end, high_end = (math.exp(middle + sign * reach) for sign in (-1, 1))
    return f"{number(math.exp(middle), 2)}-fold {interval(low_end, high_end)}"


def _odds(entry: Entry, moves: Course) -> str:
    """The p-value of a fall, where it was judged."""
    odds = entry["b_peak"].get("p_fall")
    if odds is None:
        return ""
    if odds < SIGNIFICANT:
        return f" Such a fall would come by chance with p = {_p(odds)}."
    level = moves.top is moves.first and moves.end is moves.last
    fell = moves.end is not moves.last or (level and moves.slope < 0)
    return f" {'The fall may be chance' if fell else 'No fall is seen'} (p = {_p(odds)})."


def _p(odds: float) -> str:
    return f"{odds:.1g}" if odds < 0.1 else f"{odds:.2f}"


def _rest(entry: Entry) -> str:
    """Batch sizes whose optimum the grid did not hold, or not closely enough."""
    kinds = {
        "the runs do not bound it on both sides": lambda point: point["lr"] and not outside(point),
        "it lies above the rates that were tried": lambda point: bound(point) > 0,
        "it lies below the rates that were tried": lambda point: bound(point) < 0,
        "it lies at the edge of the rates that were tried": _at_an_edge,
        "no best rate can be told": lambda point: not point["lr"],
    }
    unknown = [point for point in entry["optimal_lr"] if not known(point)]
    said = []
    for what, holds in kinds.items():
        sizes = [count(point["batch_size"]) for point in unknown if holds(point)]
        if sizes:
            said.append(f" At B = {listed(sizes)} {what}.")
    return "".join(said)


def _at_an_edge(point: Point) -> bool:
    """An earlier version did not say at which."""
    return outside(point) and not bound(point)


def _distances(row: xr.Dataset) -> list[str]:
    truth = row.oracle_lr.sel(bound="value")
    parts = []
    for name, what in ESTIMATES.items():
        if f"{name}_lr" not in row:
            continue
        ratios = (row[f"{name}_lr"].sel(bound="value") / truth).values
        off = np.exp(np.abs(np.log(ratios[np.isfinite(ratios)])))
        if off.size:
            parts.append(
                f"{what} within a factor {np.median(off):.2f} "
                f"(worst {off.max():.2f}, n = {off.size})"
            )
    if not parts:
        return []
    label = row.optimizer.item()
    return [f"{label}, one step from a checkpoint: {'; '.join(parts)} of the true optimum."]


def _independence(row: xr.Dataset, ratio: float) -> list[str]:
    """The batch sizes at which the independent law is off by much, and not by chance."""
    law, truth = row.independent_lr, row.oracle_lr
    with np.errstate(divide="ignore"):  # an end of an interval may be 0
        much = np.abs(np.log(law / truth)).sel(bound="value") > np.log(ratio)
    above = law.sel(bound="low") > truth.sel(bound="high")
    below = law.sel(bound="high") < truth.sel(bound="low")
    off = (much & (above | below)).any("checkpoint")
    if not off.any():
        return []
    sizes = listed(count(size) for size in row.batch_size.values[off.values])
    return [
        f"{row.optimizer.item()}: the independent law is off by more than a grid step "
        f"({ratio:.2f}), its interval apart from the truth's, at B = {sizes}: its premise of "
        "independent Gaussian gradients does not hold there."
    ]
