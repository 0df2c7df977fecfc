"""Steps against examples for every batch size, the one that a budget asks for, and a ramp.

With S steps and E = S·B examples to one loss, (S/S_min − 1)(E/E_min − 1) = 1: S = S_min (1 + b/B)
and E = S_min (B + b), b being the noise scale (McCandlish et al., 1812.06162, equation 2.11). One
point of the hyperbola, the run that a user has, and b tell all of it.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LARGEST = 8.0  # times the batch size in the middle of a run, that a ramp goes up and down to
PLACES = 400  # of a run, at which a ramp may change


class Trade(NamedTuple):
    """A batch size: steps and examples to the loss that the user's run ends at."""

    batch_size: float
    steps: float
    examples: float


def trade(batch_size: float, base: float, steps: float, noise: float) -> Trade:
    """What B takes where B0 takes `steps`, at a noise scale b in examples."""
    least = steps / (1 + noise / base)
    return Trade(batch_size, least * (1 + noise / batch_size), least * (batch_size + noise))


def size_for_time(share: float, base: float, noise: float) -> float:
    """Smallest B that takes at most a share of B0's steps; nan where none does.

    A step takes equally long whatever B is, as it does where devices grow with B.
    """
    room = share * (1 + noise / base) - 1
    return noise / room if room > 0 else math.nan


def size_for_examples(share: float, base: float, noise: float) -> float:
    """Largest B that takes at most a share of B0's examples; nan where none does."""
    size = share * (base + noise) - noise
    return size if size > 0 else math.nan


class Stretch(NamedTuple):
    """A part of a run with one batch size: examples before it and in it, the noise scale there."""

    batch_size: int
    start: float
    examples: float
    noise: float


def ramp(
    course: Sequence[tuple[float, float]], size: float, middle: float, examples: float
) -> list[Stretch]:
    """Batch sizes, powers of two, in proportion to the noise scale along a run.

    Args:
      course: (examples before, noise scale) of checkpoints, in order; between two of them the
        noise scale is a power of the examples, beyond the ends it stays.
      size: B where the noise scale is `middle`.
      middle: see there.
      examples: of the run.
    """
    places = examples * (np.arange(PLACES) + 0.5) / PLACES
    before, noise = np.array(course, float).T
    along = np.exp(np.interp(np.log(places), np.log(np.maximum(before, 1.0)), np.log(noise)))
    wanted = np.clip(size * along / middle, max(size / LARGEST, 1.0), size * LARGEST)
    sizes = 2 ** np.rint(np.log2(wanted)).astype(int)
    changes = [0, *(np.flatnonzero(np.diff(sizes)) + 1).tolist(), PLACES]
    return [
        Stretch(
            int(sizes[first]),
            examples * first / PLACES,
            examples * (last - first) / PLACES,
            float(np.exp(np.log(along[first:last]).mean())),
        )
        for first, last in itertools.pairwise(changes)
    ]
