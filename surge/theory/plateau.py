"""Whether ε_opt(B) stays where it is: a plateau is shown by bounding it, not by seeing no fall."""

import math
from typing import NamedTuple

import numpy as np

from surge.theory.comparison import EQUIVALENT

SPAN = 16.0  # factor in B over which rates must be alike
ONE_SIDED = 1.645  # standard errors: each pair of rates is shown to be alike at 5%


class Plateau(NamedTuple):
    """The batch sizes from which on ε_opt is the same to a factor exp(EQUIVALENT).

    Attributes:
      start: the smallest of them; nan where there are no two such.
      end: the largest batch size with a known optimum.
      decided: they span a factor of SPAN at least.
    """

    start: float
    end: float
    decided: bool


def find_plateau(
    batch_size: np.ndarray,
    lr: np.ndarray,
    error: np.ndarray,
    bound: np.ndarray | None = None,
) -> Plateau:
    """The plateau that the data show, up to the largest batch size.

    All pairs of its rates differ by less than exp(EQUIVALENT), each shown at 5% by its own test, so
    that all are at 5% together (an intersection-union test, Berger 1982).

    Args:
      batch_size: B [n].
      lr: ε_opt [n].
      error: standard errors of log ε that batch sizes do not share [n].
      bound: not 0 where lr only bounds the optimum [n]; such batch sizes end what is known.
    """
    order = np.argsort(np.asarray(batch_size, float))
    size = np.asarray(batch_size, float)[order]
    y = np.log(np.asarray(lr, float)[order])
    own = np.asarray(error, float)[order]
    exact = np.ones(len(y), bool) if bound is None else np.asarray(bound)[order] == 0
    if not len(y) or not exact[-1]:
        return Plateau(math.nan, math.nan, False)
    apart = np.abs(y[:, None] - y) + ONE_SIDED * np.hypot(own[:, None], own)
    alike = (apart <= EQUIVALENT) & exact[:, None] & exact
    np.fill_diagonal(alike, exact)
    start = len(y) - 1
    while start > 0 and alike[start - 1 :, start - 1 :].all():
        start -= 1
    if start == len(y) - 1:
        return Plateau(math.nan, float(size[-1]), False)
    return Plateau(float(size[start]), float(size[-1]), bool(size[-1] / size[start] >= SPAN))
