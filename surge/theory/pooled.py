"""Many sweeps fitted together: one shape, a level for each, a knee that is a power of covariates.

    log ε_g(B) = level_g + log shape(B / Π_c (x_cg / x̄_c)^γ_c)

A law's batch sizes (b_knee, b_noise, b_turn) then stand at (x_cg/x̄_c)^γ_c times what they are at
the covariates' geometric means x̄. One sweep of a family rarely tells laws apart; all of them may.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from surge.theory.comparison import EQUIVALENT, RULED_OUT
from surge.theory.fit import QUANTILE, Optima, interval, log_shapes, profile
from surge.theory.rivals import LAWS, SIZE, Law

POINTS = {0: 1, 1: 201, 2: 41, 3: 21, 4: 13}  # along each axis of the search, by their number
REFINEMENTS = 4
KEPT = 4.0  # of the excess: finer grids cover the shapes below it
EXPONENT = (-2.0, 2.0)  # of a covariate
FEWEST = 2  # groups


class PooledFit(NamedTuple):
    """One law fitted to all groups.

    Attributes:
      law: name in LAWS.
      parameters: of the shape by name; batch sizes at the geometric means of the covariates.
      intervals: 95% interval of each.
      exponents: by covariate, of the law's batch sizes; none of a law without one.
      exponent_intervals: 95% interval of each.
      levels: log scale of each group [g].
      lines: log ε of each group at its data, of every shape within 95% (list of [s, n_g]).
      best: log ε of each group at its data (list of [n_g]).
      misfit: -2 log likelihood.
      held_out: root mean square residual of groups left out, in standard errors; the shape is that
        of the others, the level their own.
      count: number of parameters.
    """

    law: str
    parameters: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    exponents: dict[str, float]
    exponent_intervals: dict[str, tuple[float, float]]
    levels: np.ndarray
    lines: list[np.ndarray]
    best: list[np.ndarray]
    misfit: float
    held_out: float
    count: int


class Pooled(NamedTuple):
    """Rival laws on all groups together.

    Attributes:
      fits: by law name.
      score: -2 log likelihood + 2k, smaller is better.
      weights: Akaike weights of the laws that remain, sum 1.
      best: the law that is named; None where the data cannot tell.
      why: the sentence that goes with best = None, else "".
      reference: geometric mean of each covariate.
    """

    fits: dict[str, PooledFit]
    score: dict[str, float]
    weights: dict[str, float]
    best: str | None
    why: str
    reference: dict[str, float]


def fit_pooled(
    groups: Sequence[Optima], covariates: Mapping[str, Sequence[float] | np.ndarray] | None = None
) -> Pooled:
    """Fits every law to all groups at once, and names one only where all that remain look the same.

    A law remains where its score is within RULED_OUT of the least one, and so is what it misses of
    groups that were left out. The simplest that remains is named if none of them, at any shape
    inside 95%, leaves its curves by more than EQUIVALENT at any of the data.

    Args:
      groups: optima of each sweep, as `surge.theory.fit.optima` checks them.
      covariates: name -> value of each group, above 0; at most two.

    Raises:
      ValueError: fewer than two groups, more than two covariates, or one that is not above 0 or
        does not vary.
    """
    named = _checked(groups, covariates or {})
    reference = {name: float(np.exp(np.log(values).mean())) for name, values in named.items()}
    relative = np.array(
        [np.log(values) - np.log(reference[name]) for name, values in named.items()]
    )
    relative = relative.reshape(len(named), len(groups))
    fits = {name: _fit(law, groups, [*named], relative) for name, law in LAWS.items()}
    score = {name: fit.misfit + 2 * fit.count for name, fit in fits.items()}
    n = sum(len(group.y) for group in groups)
    missed = {name: fit.held_out**2 * n for name, fit in fits.items()}
    least = min(score.values())
    remaining = [
        name
        for name in LAWS
        if score[name] - least <= RULED_OUT and missed[name] - min(missed.values()) <= RULED_OUT
    ] or [min(score, key=lambda name: score[name])]
    best, why = _named([fits[name] for name in remaining], score)
    raw = {name: math.exp((least - score[name]) / 2) for name in remaining}
    total = sum(raw.values())
    weights = {name: value / total for name, value in raw.items()}
    return Pooled(fits, score, weights, best, why, reference)


def _checked(
    groups: Sequence[Optima], covariates: Mapping[str, Sequence[float] | np.ndarray]
) -> dict[str, np.ndarray]:
    if len(groups) < FEWEST:
        raise ValueError(f"a pooled fit needs at least {FEWEST} groups, got {len(groups)}")
    if len(covariates) > 2:
        raise ValueError(f"at most two covariates, got {', '.join(covariates)}")
    named = {name: np.asarray(values, float) for name, values in covariates.items()}
    for name, values in named.items():
        if not ((values > 0) & np.isfinite(values)).all():
            raise ValueError(f"covariate {name} must be a finite number above 0 in every group")
        if np.ptp(np.log(values)) == 0:
            raise ValueError(f"covariate {name} is the same in every group: it explains nothing")
    return named


def _fit(
    law: Law, groups: Sequence[Optima], names: Sequence[str], relative: np.ndarray
) -> PooledFit:
    """One law; `relative` holds the logs of the covariates about their means [c, g]."""
    moving = [*names] if any(name.startswith("b_") for name in law.bounds) else []
    scaled = relative if moving else relative[:0]
    limits = _limits(law, groups) | {name: EXPONENT for name in moving}
    shapes, misfits = _search(law, groups, limits, scaled)
    total = misfits.sum(0)
    best = int(total.argmin())
    inside = total - total[best] <= QUANTILE

    values = dict(zip(limits, shapes[best].tolist(), strict=True))
    ends = {
        name: interval(shapes[inside, index], shapes[:, index], limits[name])[0]
        for index, name in enumerate(limits)
    }
    curves = []
    lines = []
    levels = []
    for g, group in enumerate(groups):
        curve, level = _lines(law, group, shapes[[best]], scaled[:, g])
        curves.append(curve[0])
        levels.append(level[0])
        lines.append(_lines(law, group, shapes[inside], scaled[:, g])[0])
    return PooledFit(
        law=law.name,
        parameters={name: values[name] for name in law.bounds},
        intervals={name: ends[name] for name in law.bounds},
        exponents={name: values[name] for name in moving},
        exponent_intervals={name: ends[name] for name in moving},
        levels=np.array(levels),
        lines=lines,
        best=curves,
        misfit=float(total[best]),
        held_out=_held_out(misfits, sum(len(group.y) for group in groups)),
        count=len(groups) + len(limits),
    )


def _search(
    law: Law,
    groups: Sequence[Optima],
    limits: Mapping[str, tuple[float, float]],
    relative: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """All shapes that were tried [s, k], over finer and finer grids, and their misfits [g, s]."""
    box = dict(limits)
    shapes = []
    misfits = []
    for _ in range(REFINEMENTS + 1):
        shapes.append(_axes(box, limits))
        misfits.append(_misfits(law, groups, shapes[-1], relative))
        box = _box(limits, shapes[-1], misfits[-1].sum(0))
    return np.concatenate(shapes), np.concatenate(misfits, 1)


def _limits(law: Law, groups: Sequence[Optima]) -> dict[str, tuple[float, float]]:
    """Range that each shape parameter is searched in; batch sizes in units of the data's."""
    sizes = np.concatenate([group.size for group in groups])
    return {
        name: (SIZE[0] * sizes.min(), SIZE[1] * sizes.max()) if name.startswith("b_") else bounds
        for name, bounds in law.bounds.items()
    }


def _axes(
    box: Mapping[str, tuple[float, float]], limits: Mapping[str, tuple[float, float]]
) -> np.ndarray:
    """All points of a grid over a box [s, k]; by ratio along what spans many of them."""
    axes = []
    for name, (low, high) in box.items():
        by_ratio = 0 < 100 * limits[name][0] < limits[name][1]
        axes.append((np.geomspace if by_ratio else np.linspace)(low, high, POINTS[len(box)]))
    if not axes:
        return np.zeros((1, 0))
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(axes))


def _lines(
    law: Law, group: Optima, shapes: np.ndarray, relative: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """log ε of shapes [s, k] at a group's data with the best level [s, n], and that level [s]."""
    logs = _logs(law, group, shapes, relative)
    level, _ = profile(group, logs)
    return logs + level[:, None], level


def _logs(law: Law, group: Optima, shapes: np.ndarray, relative: np.ndarray) -> np.ndarray:
    """log of the law at a group's data, up to its level [s, n]."""
    own = shapes[:, : len(law.bounds)].copy()
    # A law depends on B/b alone, so that moving b is moving B.
    moved = np.exp(shapes[:, len(law.bounds) :] @ relative)
    for index, name in enumerate(law.bounds):
        if name.startswith("b_"):
            own[:, index] = own[:, index] * moved
    return log_shapes(law, own, group.size)


def _misfits(
    law: Law, groups: Sequence[Optima], shapes: np.ndarray, relative: np.ndarray
) -> np.ndarray:
    """-2 log likelihood of each group under each shape [g, s]."""
    misfits = []
    for g, group in enumerate(groups):
        logs = _logs(law, group, shapes, relative[:, g])
        misfits.append(profile(group, logs)[1])
    return np.stack(misfits)


def _box(
    limits: Mapping[str, tuple[float, float]], shapes: np.ndarray, misfit: np.ndarray
) -> dict[str, tuple[float, float]]:
    """Ends of the shapes worth a finer grid, rounded outwards to the next ones tried."""
    kept = shapes[misfit - misfit.min() <= KEPT * QUANTILE]
    box = {}
    for index, name in enumerate(limits):
        points = np.unique(shapes[:, index])
        low, high = points.searchsorted((kept[:, index].min(), kept[:, index].max()))
        box[name] = (points[max(low - 1, 0)], points[min(high + 1, len(points) - 1)])
    return box


def _held_out(misfits: np.ndarray, n: int) -> float:
    """Root of the misfit, for each datum, of groups under the best shape of all others."""
    others = misfits.sum(0) - misfits
    chosen = others.argmin(1)
    return math.sqrt(misfits[np.arange(len(misfits)), chosen].sum() / n)


def _named(remaining: Sequence[PooledFit], score: Mapping[str, float]) -> tuple[str | None, str]:
    """The simplest law that remains, if all others look like it; else why not."""
    chosen = min(remaining, key=lambda fit: (fit.count, score[fit.law]))
    for fit in remaining:
        for curve, lines in zip(chosen.best, fit.lines, strict=True):
            gap = np.abs(lines - curve).max()
            if gap > EQUIVALENT:
                return None, (
                    f"the data cannot tell {chosen.law} from a {fit.law} that differs by a factor "
                    f"of {math.exp(gap):.2g}"
                )
    return chosen.law, ""
