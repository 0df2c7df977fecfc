"""Rival laws of the optimal learning rate ε_opt(B): the shapes that are fitted to sweeps.

One decorated function is one rival: it brings its parameters, their range and its own peak, and
the fit, its figure, its table and the report know it from here alone. Every law is a scale
`max_lr` times a shape with at most two parameters; all are NumPy and broadcast.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np


class Law(NamedTuple):
    """A rival law ε_opt(B) = max_lr · shape(B; shape parameters).

    Attributes:
      name: key in LAWS.
      function: (batch_size, max_lr, **shape parameters) -> ε.
      bounds: name -> (low, high), the range that a fit searches. Of a parameter whose name begins
        with b_, in units of the smallest and the largest batch size in the data.
      peak: (**shape parameters) -> batch size of the maximum; inf where the law only rises to the
        end, nan where it has none for another reason.
      generalises: names of the laws that are special or limiting cases of it.
      derived: name -> function of the shape parameters, printed with an interval beside them.
    """

    name: str
    function: Callable[..., np.ndarray]
    bounds: Mapping[str, tuple[float, float]]
    peak: Callable[..., np.ndarray]
    generalises: tuple[str, ...]
    derived: Mapping[str, Callable[..., np.ndarray]]

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of all parameters; the first is the scale that the law is proportional to."""
        return "max_lr", *self.bounds


SIZE = (1e-2, 1e2)  # beyond it a law has reached its limit everywhere in the data
EXPONENT = (-1.5, 1.5)
LAWS: dict[str, Law] = {}


def _rises(**shape: Any) -> np.ndarray:
    return np.broadcast_arrays(np.inf, *shape.values())[0]


def _flat(**shape: Any) -> np.ndarray:
    return np.broadcast_arrays(np.nan, *shape.values())[0]


def rival(
    bounds: Mapping[str, tuple[float, float]],
    peak: Callable[..., np.ndarray],
    generalises: tuple[str, ...] = (),
    derived: Mapping[str, Callable[..., np.ndarray]] | None = None,
) -> Callable[[Callable[..., np.ndarray]], Callable[..., np.ndarray]]:
    """Enters a function (batch_size, max_lr, **shape parameters) -> ε under its name into LAWS."""

    def enter(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
        name = function.__name__
        LAWS[name] = Law(name, function, bounds, peak, generalises, derived or {})
        return function

    return enter


@rival({}, _flat)
def constant(batch_size: Any, max_lr: Any) -> np.ndarray:
    """ε does not depend on B."""
    return max_lr + 0.0 * np.asarray(batch_size)


@rival({}, _rises)
def sqrt(batch_size: Any, max_lr: Any) -> np.ndarray:
    """ε ∝ √B, the rule of thumb for Adam; max_lr is the rate at B = 1."""
    return max_lr * np.sqrt(batch_size)


@rival({}, _rises)
def linear(batch_size: Any, max_lr: Any) -> np.ndarray:
    """ε ∝ B, the rule of thumb for SGD; max_lr is the rate at B = 1."""
    return max_lr * np.asarray(batch_size, float)


def _power_peak(exponent: Any) -> np.ndarray:
    return np.where(np.asarray(exponent) > 0, np.inf, np.nan)


@rival({"exponent": EXPONENT}, _power_peak, ("constant", "sqrt", "linear"))
def power(batch_size: Any, max_lr: Any, exponent: Any) -> np.ndarray:
    """max_lr · B^exponent; max_lr is the rate at B = 1."""
    return max_lr * np.asarray(batch_size, float) ** exponent


@rival({"b_knee": SIZE}, _rises, ("constant", "sqrt"))
def capped_sqrt(batch_size: Any, max_lr: Any, b_knee: Any) -> np.ndarray:
    """√B up to b_knee, then flat at max_lr."""
    return max_lr * np.minimum(1.0, np.asarray(batch_size) / b_knee) ** 0.5


@rival({"b_knee": SIZE}, _rises, ("constant", "linear"))
def capped_linear(batch_size: Any, max_lr: Any, b_knee: Any) -> np.ndarray:
    """B up to b_knee, then flat at max_lr."""
    return max_lr * np.minimum(1.0, np.asarray(batch_size) / b_knee)


@rival(
    {"b_knee": SIZE, "exponent": (0.05, EXPONENT[1])},
    _rises,
    ("constant", "sqrt", "linear", "power", "capped_sqrt", "capped_linear"),
)
def capped_power(batch_size: Any, max_lr: Any, b_knee: Any, exponent: Any) -> np.ndarray:
    """B^exponent up to b_knee, then flat at max_lr."""
    return max_lr * np.minimum(1.0, np.asarray(batch_size) / b_knee) ** exponent


@rival({"b_noise": SIZE}, _rises, ("constant", "linear"))
def sgd(batch_size: Any, max_lr: Any, b_noise: Any) -> np.ndarray:
    """ε_max / (1 + B_noise/B), exact for SGD on a quadratic (McCandlish et al., equation 2.6)."""
    return max_lr / (1 + b_noise / np.asarray(batch_size))


@rival(
    {"b_noise": SIZE, "alpha": (0.05, EXPONENT[1])},
    _rises,
    ("constant", "sqrt", "linear", "power", "sgd"),
)
def mccandlish(batch_size: Any, max_lr: Any, b_noise: Any, alpha: Any) -> np.ndarray:
    """ε_max / (1 + B_noise/B)^α (McCandlish et al., appendix): α = 0.5 to 1 for Adam."""
    return max_lr / (1 + b_noise / np.asarray(batch_size)) ** alpha


def _surge_peak(b_noise: Any) -> np.ndarray:
    return np.asarray(b_noise, float)


@rival({"b_noise": SIZE}, _surge_peak, ("sqrt",))
def surge(batch_size: Any, max_lr: Any, b_noise: Any) -> np.ndarray:
    """ε_max · 2/(√(B_noise/B) + √(B/B_noise)) (the paper, equation 14): a peak at B_noise.

    Sign descent, independent Gaussian coordinates, B far below `derivations.validity`.
    """
    root = np.sqrt(np.asarray(batch_size) / b_noise)
    return max_lr * 2 / (root + 1 / root)


def _turning_peak(b_turn: Any, kappa: Any) -> np.ndarray:
    """b_turn/(1 − 2κ): the peak of `one_law`; inf for κ >= ½."""
    room = 1 - 2 * np.asarray(kappa)
    return np.where(room > 0, b_turn / np.where(room > 0, room, 1.0), np.inf)


def peak_over_plateau(b_turn: Any, kappa: Any) -> np.ndarray:
    """1/(2√(κ(1 − κ))) of `one_law`: how far its peak stands out; 1 for κ >= ½, no peak."""
    low = np.minimum(kappa, 0.5) + 0.0 * np.asarray(b_turn)
    return 1 / (2 * np.sqrt(low * (1 - low)))


@rival(
    {"b_turn": SIZE, "kappa": (1e-4, 1e6)},
    _turning_peak,
    ("constant", "sqrt", "linear", "sgd", "surge"),
    {"peak_over_plateau": peak_over_plateau},
)
def one_law(batch_size: Any, max_lr: Any, b_turn: Any, kappa: Any) -> np.ndarray:
    """ε_∞ √(1 + y)/(1 + κy), y = b_turn/(κB) (re-derived for a quadratic and Gaussian noise).

    y is noise over signal of the squared mini-batch gradient that the direction is divided by, κ
    the curvature that the noise of the steps feels over the one their mean feels, times the noise
    gain of the first moment. κ -> 0 is `surge` with its peak at b_turn, κ < ½ peaks at
    b_turn/(1 − 2κ) and falls to a plateau, κ = 1 is `mccandlish` with α = ½ and b_noise = b_turn,
    κ -> ∞ is `sgd` with b_noise = b_turn. max_lr is the rate at the peak, or of the plateau where
    there is none.
    """
    turned = b_turn / np.asarray(batch_size)
    return max_lr / peak_over_plateau(0.0, kappa) * np.sqrt(1 + turned / kappa) / (1 + turned)
