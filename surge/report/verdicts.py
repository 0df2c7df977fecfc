"""What the numbers amount to, in sentences that a person would say."""

import functools
import json
import math
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from scipy import stats

from surge.report.formats import count, estimate, interval, listed, number
from surge.report.reading import Entry, Point, bound, known, outside, plain

HALF_INTERVAL = 1.96  # standard errors from the middle of a 95% interval to its end
FLOOR = 0.02  # of a standard error: none is known better
SIGNIFICANT = 0.05
VISIBLE = 1.05  # peak over plateau that a sweep could see
SAME = math.log(1.1)  # log rates so near to each other are one rate to whoever sets it
ESTIMATES = {"measured": "measured directions", "independent": "the independent law"}


class Optimum(NamedTuple):
    """An optimum inside the grid: log of its rate, and the standard error of that."""

    batch_size: float
    log_lr: float
    error: float


class Course(NamedTuple):
    """How ε_opt moves with B: up from `first` to `top`, level from there to `end`, down to `last`.

    Attributes:
      first, top, end, last: optima; `top` to `end` cannot be told from the highest.
      level: weighted mean of these.
      slope, slope_error: of log ε_opt against log B over all optima.
    """

    first: Optimum
    top: Optimum
    end: Optimum
    last: Optimum
    level: Optimum
    slope: float
    slope_error: float


def course(entry: Entry) -> Course | None:
    """The course of an entry's optima, None where fewer than two are inside the grid."""
    optima = _inside(entry)
    if len(optima) < 2:
        return None
    highest = max(range(len(optima)), key=lambda index: optima[index].log_lr)
    reach = _reach(len(optima))
    top = highest
    while top > 0 and _level(optima[top - 1], optima[highest], reach):
        top -= 1
    end = highest
    while end < len(optima) - 1 and _level(optima[end + 1], optima[highest], reach):
        end += 1
    # Neighbours that agree may climb together: a plateau has no slope either.
    while 0 < top < highest and _leans(optima[top : highest + 1]) > 0:
        top += 1
    while highest < end < len(optima) - 1 and _leans(optima[highest : end + 1]) < 0:
        end -= 1
    slope, error = _slope(optima)
    level = _mean(optima[top : end + 1])
    return Course(optima[0], optima[top], optima[end], optima[-1], level, slope, error)


def _leans(optima: list[Optimum]) -> int:
    """1 or -1 where a line through optima rises or falls beyond chance, else 0."""
    slope, error = _slope(optima)
    return int(np.sign(slope)) if abs(slope) > HALF_INTERVAL * error else 0


def _mean(optima: list[Optimum]) -> Optimum:
    weights = [max(optimum.error, FLOOR) ** -2 for optimum in optima]
    value = float(np.average([optimum.log_lr for optimum in optima], weights=weights))
    return Optimum(math.nan, value, sum(weights) ** -0.5)


def answer(entry: Entry) -> str:
    """What a person would say of one optimizer: does its best rate move with the batch size, how
    far, and up to where was that tried?"""
    moves = course(entry)
    optima = _inside(entry)
    tried = max((point["batch_size"] for point in entry["optimal_lr"]), default=None)
    if not optima:
        return f"no batch size up to {count(tried)} has its best rate inside the rates tried."
    if moves is None:
        [only] = optima
        rate = number(math.exp(only.log_lr))
        said = (
            f"the best rate at B = {count(only.batch_size)} is {rate}, which is all that is known"
        )
        return f"{said}.{_unknown(entry)}"
    said = f"the best rate {_movement(moves)}{_odds(entry, moves)}"
    if moves.last.batch_size == tried:
        return f"{said}; beyond that nothing was tried.{_unknown(entry)}{_kappa(entry)}"
    return f"{said}.{_unknown(entry)} Beyond B = {count(tried)} nothing was tried.{_kappa(entry)}"


def peak_and_law(entry: Entry) -> str:
    """One sentence on one fit: where is the peak, and which law wins?"""
    law = entry["best_law"]
    winner = f"best law: {plain(law)}"
    if law is None:
        winner = f"no law wins: {_named(entry['best_law_why'], entry)}"
    peak = entry["b_peak"]
    why = f" ({peak['why']})" if peak.get("why") else ""
    needs = f"; {peak['needs']}" if peak.get("needs") else ""
    return f"{_peak(peak)}{why}{needs}; {winner}"


def _peak(peak: dict[str, Any]) -> str:
    low, high = peak["low"], peak["high"]
    if peak["value"] is not None:
        return f"B_peak {number(peak['value'])} {interval(low, high)}"
    if low is None and high is None:
        return "peak unknown"
    return f"no peak below B = {count(low)}" if low else "no peak is seen"


def _named(text: str, entry: Entry) -> str:
    """A reason with the names of laws as they are written."""
    for name in entry["laws"]:
        text = text.replace(name, plain(name))
    return text


def expectation(measured: xr.Dataset | None, optimizer: str) -> str:
    """Whether a checkpoint lets expect a surge over a run, by its κ; nothing where that is not
    stored or undefined. Of several checkpoints the last that knows."""
    needed = {"kappa", "peak_over_plateau"}
    if measured is None or not needed <= measured.keys() or optimizer not in measured.optimizer:
        return ""
    row = measured.sel(optimizer=optimizer, reading="long run")
    known = np.isfinite(row.kappa.sel(bound="value").values)
    if not known.any():
        return ""
    row = row.isel(checkpoint=int(np.flatnonzero(known)[-1]))
    where = f"A checkpoint of it at loss {number(float(row.loss))} measures κ"
    said = f"{where} = {estimate(row.kappa.values)} over a run:"
    height = row.peak_over_plateau
    if float(height.sel(bound="high")) < VISIBLE:
        return f"{said} no surge is expected."
    if float(height.sel(bound="low")) > 1:
        told = f"{estimate(height.values)} times as high as the rate at large batch sizes"
        return f"{said} a surge is expected, {told}."
    return f"{said} a surge is neither to be expected nor ruled out."


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


def _inside(entry: Entry) -> list[Optimum]:
    """Optima with an interval, by batch size."""
    points = [point for point in entry["optimal_lr"] if known(point)]
    return sorted(
        Optimum(point["batch_size"], math.log(point["lr"]), _error(point)) for point in points
    )


def _error(point: Point) -> float:
    """Standard error of the log rate, which an earlier fit.json has only as an interval."""
    if point.get("error"):
        return point["error"]
    return math.log(point["high"] / point["low"]) / (2 * HALF_INTERVAL)


@functools.cache
def _reach(total: int) -> float:
    """Standard errors between two of `total` equal rates, which no pair exceeds in 95% of cases.

    The highest of many is high by chance: Tukey's range test, as Kramer extended it to errors that
    differ.
    """
    return float(stats.studentized_range.ppf(0.95, total, np.inf)) / math.sqrt(2)


def _level(one: Optimum, other: Optimum, reach: float) -> bool:
    """Whether two rates cannot be told apart, or need not."""
    apart = abs(one.log_lr - other.log_lr)
    return apart <= max(SAME, reach * math.hypot(one.error, other.error))


def _slope(optima: list[Optimum]) -> tuple[float, float]:
    """Weighted least squares of log ε on log B, and its standard error."""
    x = np.log([optimum.batch_size for optimum in optima])
    y = np.array([optimum.log_lr for optimum in optima])
    weight = 1 / np.maximum([optimum.error for optimum in optima], FLOOR) ** 2
    centred = x - np.average(x, weights=weight)
    spread = weight @ centred**2
    return float((weight * centred) @ y / spread), float(spread**-0.5)


def _kappa(entry: Entry) -> str:
    """κ of the law that is named, where it has one: the curvature that noise feels over that of the
    signal, which decides whether there is a peak."""
    law = entry["laws"].get(entry["best_law"], {})
    kappa = law.get("params", {}).get("kappa")
    if kappa is None or law.get("open", {}).get("kappa"):
        return ""
    said = f" κ = {estimate([kappa, *law['intervals']['kappa']])}"
    height = law.get("derived", {}).get("peak_over_plateau")
    if not height:
        return f"{said}."
    return f"{said}: the peak is {estimate(height)} times the rate at large batch sizes."


def _movement(moves: Course) -> str:
    """rises 7-fold from B = 4 to 1,024 and stays there to 4,096."""
    first, top, end, last = (
        count(optimum.batch_size) for optimum in (moves.first, moves.top, moves.end, moves.last)
    )
    rises = moves.top is not moves.first
    falls = moves.end is not moves.last
    if not rises and not falls:
        return _drifts(moves)
    parts = []
    if rises:
        parts.append(f"rises {_fold(moves.level, moves.first)} from B = {first} to {top}")
    if moves.end is not moves.top:
        parts.append(f"stays there to {end}" if rises else f"is level from B = {first} to {end}")
    if falls:
        start = "" if parts else f" from B = {end}"
        parts.append(f"falls {_fold(moves.level, moves.last)}{start} to {last}")
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
        return f" (such a fall by chance alone: p = {_p(odds)})"
    level = moves.top is moves.first and moves.end is moves.last
    fell = moves.end is not moves.last or (level and moves.slope < 0)
    return f" ({'the fall may be chance' if fell else 'no fall is seen'}: p = {_p(odds)})"


def _p(odds: float) -> str:
    return f"{odds:.1g}" if odds < 0.1 else f"{odds:.2f}"


def _unknown(entry: Entry) -> str:
    """Batch sizes whose optimum the grid did not hold, or not closely enough."""
    kinds = {
        "its interval is open": lambda point: point["lr"] and not outside(point),
        "it lies above the rates that were tried": lambda point: bound(point) > 0,
        "it lies below the rates that were tried": lambda point: bound(point) < 0,
        "it lies at the edge of the rates that were tried": lambda point: (
            outside(point) and not bound(point)
        ),
        "no rate got there": lambda point: not point["lr"],
    }
    said = []
    for what, holds in kinds.items():
        unknown = [point for point in entry["optimal_lr"] if not known(point)]
        sizes = [count(point["batch_size"]) for point in unknown if holds(point)]
        if sizes:
            said.append(f" At B = {listed(sizes)} {what}.")
    return "".join(said)


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
    """The sentence on the batch sizes at which the independent law is off by much, and not by
    chance."""
    law, truth = row.independent_lr, row.oracle_lr
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
