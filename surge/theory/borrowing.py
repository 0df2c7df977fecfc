"""What a pool of sweeps says of one of its groups: the ratio of its rates at two batch sizes.

A hierarchical model, law by law. The first shape parameter of group g, log b (or an exponent), is

    x_g ~ N(a + Σ_c γ_c log z_cg, τ²)

with covariates z, and every group has a level of its own; a second shape parameter is common. How
much a group borrows is told by how much the groups scatter, τ, which is averaged over as a, γ and
the second parameter are, on grids. `surge.theory.pooled` is the case τ = 0, which names laws; a
prediction for one group with τ = 0 would be too sure of itself.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import chdtri

from surge.theory.fit import CONFIDENCE, Optima, log_shapes, profile
from surge.theory.rivals import LAWS, SIZE, Law
from surge.theory.transfer import STEP, Belief, psi_grid

FIRST = 161  # points along the first shape parameter
SECOND = 25  # along the second
POWERS = np.linspace(-2.0, 2.0, 17)  # γ of a covariate
# τ in e-folds of a batch size, each as likely as another. From 0.02 on an interval would hold 89 of
# 100 planted ratios where groups scatter by 0.3; from 0.1 on it holds 93.
SCATTERS = (0.1, 0.2, 0.4, 0.8, 1.6)
EXPONENT_UNIT = 0.2  # of an exponent, as far as an e-fold of a batch size


class Borrowed(NamedTuple):
    """What a group borrows.

    Attributes:
      beliefs: one a law, weights by evidence, in all 1.
      support: Bayes factor of the group being one of the others over its having nothing to do with
        them; 1 for a group without an optimum.
    """

    beliefs: list[Belief]
    support: float


class _Answer(NamedTuple):
    """One law: log evidence of the others, the group and all; its distribution of ψ [grid]."""

    others: float
    alone: float
    together: float
    mass: np.ndarray


def borrow(
    own: Optima | None,
    others: Sequence[Optima],
    relative: np.ndarray,  # [1 + g, c]
    batch_size: float,
    base: float,
) -> Borrowed:
    """What every law says of ψ in a group, from its own optima and from others like it.

    Args:
      own: optima of the group that is asked about; None where it has none.
      others: of the others, at least one.
      relative: log of the covariates of the group, and of each of the others; c may be 0.
      batch_size: B.
      base: B0.
    """
    known = [*others, *([] if own is None else [own])]
    # Errors that are too small for every law are enlarged until the best one is just plausible.
    inflation = min(_inflation(law, known) for law in LAWS.values())
    inflation = inflation if math.isfinite(inflation) else 1.0
    widened = [group._replace(error=group.error * inflation**0.5) for group in known]
    answers = {
        law.name: _answer(law, widened, own is not None, relative, batch_size, base)
        for law in LAWS.values()
    }
    together, others_alone, own_alone = (
        np.logaddexp.reduce([getattr(answer, name) for answer in answers.values()])
        for name in ("together", "others", "alone")
    )
    count = np.log(len(answers))  # each law is as likely as another before
    support = float(np.exp(together - others_alone - own_alone + count))
    beliefs = [
        Belief(f"{name} law", float(np.exp(answer.together - together)), answer.mass)
        for name, answer in answers.items()
    ]
    return Borrowed(beliefs, support)


def _answer(
    law: Law,
    groups: Sequence[Optima],
    asked: bool,
    relative: np.ndarray,
    batch_size: float,
    base: float,
) -> _Answer:
    """One law's evidence and its answer, over all scatters, powers and shapes; `asked` says whether
    the last of the groups is the one that is asked about."""
    axis, shapes = _shapes(law, groups)
    likelihoods = [np.exp(-_misfit(law, group, shapes) / 2) for group in groups]
    mine = likelihoods.pop() if asked else np.ones(shapes.shape[:2])

    predicted = _predicted(law, axis, likelihoods, relative, mine.shape)
    posterior = predicted * mine

    psi = np.diff(_logs(law, shapes, np.array([base, batch_size]))).reshape(mine.shape)
    with np.errstate(divide="ignore"):
        others, alone, together = np.log([predicted.sum(), mine.mean(), posterior.sum()])
    return _Answer(others, alone, together, _spread(psi, posterior, batch_size, base))


def _predicted(
    law: Law,
    axis: np.ndarray,  # [p]
    likelihoods: Sequence[np.ndarray],  # [p, q] of each other group
    relative: np.ndarray,  # [1 + g, c]
    shape: tuple[int, ...],
) -> np.ndarray:
    """Probability of the others' optima and of the group's shape [p, q], in all their evidence."""
    moves = _moves(law)
    unit = 1.0 if moves else EXPONENT_UNIT
    spacing = axis[1] - axis[0] if len(axis) > 1 else 1.0
    places = np.arange(len(axis))
    powers = [*itertools.product(POWERS, repeat=relative.shape[1] if moves else 0)]
    prior = np.full(shape, 1 / (len(SCATTERS) * len(powers) * math.prod(shape)))

    predicted = np.zeros(shape)
    for scatter in SCATTERS:
        kernel = _kernel(axis, scatter * unit)
        blurred = [kernel @ likelihood for likelihood in likelihoods]
        for power in powers:
            moved = relative[:, : len(power)] @ np.array(power)
            shifts = np.rint(moved / spacing).astype(int)
            middles = (places + shifts[:, None]).clip(0, len(axis) - 1)
            joint = prior
            for group, middle in zip(blurred, middles[1:], strict=True):
                joint = joint * group[middle]
            predicted += kernel[middles[0]].T @ joint
    return predicted


def _moves(law: Law) -> bool:
    """Whether the first shape parameter of a law is a batch size, which a covariate may move."""
    return next(iter(law.bounds), "").startswith("b_")


def _shapes(law: Law, groups: Sequence[Optima]) -> tuple[np.ndarray, np.ndarray]:
    """The first shape parameter [p], as its logarithm if it is a batch size, and all [p, q, k]."""
    sizes = np.concatenate([group.size for group in groups])
    axes = []
    for name, (low, high) in law.bounds.items():
        count = SECOND if axes else FIRST
        if name.startswith("b_"):
            axes.append(np.geomspace(SIZE[0] * sizes.min(), SIZE[1] * sizes.max(), count))
        else:
            axes.append((np.geomspace if 0 < 100 * low < high else np.linspace)(low, high, count))
    if not axes:
        return np.zeros(1), np.zeros((1, 1, 0))
    first = np.log(axes[0]) if _moves(law) else axes[0]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    return first, grid.reshape(len(first), -1, len(axes))


def _misfit(law: Law, group: Optima, shapes: np.ndarray) -> np.ndarray:
    """-2 log likelihood of a group with the best level of its own [p, q]."""
    return profile(group, _logs(law, shapes, group.size))[1].reshape(shapes.shape[:2])


def _logs(law: Law, shapes: np.ndarray, batch_size: np.ndarray) -> np.ndarray:
    """log of the law at scale 1 for all shapes in a row [p * q, n]."""
    rows = shapes.shape[0] * shapes.shape[1]
    return log_shapes(law, shapes.reshape(rows, shapes.shape[2]), batch_size)


def _inflation(law: Law, groups: Sequence[Optima]) -> float:
    """By what factor squared errors are too small for a law in each group apart, at least 1."""
    freedom = sum(max(len(group.y) - 1 - len(law.bounds), 0) for group in groups)
    if not freedom:
        return math.inf
    shapes = _shapes(law, groups)[1]
    best = sum(_misfit(law, group, shapes).min() for group in groups)
    return max(1.0, float(best / chdtri(freedom, 1 - CONFIDENCE)))


def _kernel(axis: np.ndarray, scatter: float) -> np.ndarray:
    """Probability of a group's parameter [p] given the middle of all groups [p, p]."""
    if len(axis) == 1:
        return np.ones((1, 1))
    width = max(scatter, (axis[1] - axis[0]) / 3)
    density = np.exp(-(((axis[:, None] - axis) / width) ** 2) / 2)
    return density / density.sum(1, keepdims=True)


def _spread(
    psi: np.ndarray,  # [p, q]
    posterior: np.ndarray,  # [p, q]
    batch_size: float,
    base: float,
) -> np.ndarray:
    """Distribution of ψ on its grid; between two shapes lie all ψ between theirs."""
    grid = psi_grid(batch_size, base)
    total = np.zeros(len(grid))
    share = posterior / posterior.sum() if posterior.sum() > 0 else np.full(psi.shape, 1 / psi.size)
    after = np.vstack([psi[1:], psi[-1:]])
    for part in np.linspace(0, 1, 8, endpoint=False):
        place = (psi + part * (after - psi) - grid[0]) / STEP
        np.add.at(total, np.rint(place).astype(int).clip(0, len(grid) - 1), share / 8)
    return total
