"""Rules that move a learning rate from one batch size to another without a sweep.

A rule says log ε(B)/ε(B0) from B, B0 and what is known of the task; nan where it has no answer.
Some need nothing measured; others need numbers of one checkpoint. How far off each was where it
was judged is in `surge.theory.judged`.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

KINDS = {  # of optimizer, which were judged apart
    "adam": ("adam", "adamw", "adafactor", "rmsprop", "adagrad", "nadam", "lamb"),
    "sign": ("sign", "sign_sgd", "signum", "lion"),
    "sgd": ("sgd", "momentum"),
}
ALONE = ("constant", "sqrt", "linear", "halfway")  # rules that need nothing measured


class Known(NamedTuple):
    """What is known of a task without a sweep of it.

    Attributes:
      kind: of optimizer, a key of KINDS; "" where it was never judged.
      b_simple: tr Σ/|μ|² in examples; nan if not measured.
      b_simple_low, b_simple_high: its 95% interval.
      sizes: batch sizes [b] at which the curves below are known.
      independent: ε of the paper's formula at them [b]; none if not measured.
      measured: one-step ε = a/q of the optimizer at them [b]; none if not measured.
      noise_gain: Σw² of how its direction weighs past gradients, (1 − β1)/(1 + β1) for Adam.
      cap: largest stable rate over ε0; inf if not measured.
    """

    kind: str = ""
    b_simple: float = math.nan
    b_simple_low: float = math.nan
    b_simple_high: float = math.nan
    sizes: Sequence[float] = ()
    independent: Sequence[float] = ()
    measured: Sequence[float] = ()
    noise_gain: float = 1.0
    cap: float = math.inf


def kind_of(optimizer: str) -> str:
    """The kind of an optimizer that its name or spec tells, "" for one that was never judged."""
    name = optimizer.partition("(")[0].strip().lower()
    return next((kind for kind, names in KINDS.items() if name in names), "")


def power_rule(exponent: float) -> Callable[[float, float, Known], float]:
    """ε ∝ B^exponent."""

    def rule(batch_size: float, base: float, known: Known) -> float:
        return exponent * math.log(batch_size / base)

    return rule


def halfway(batch_size: float, base: float, known: Known) -> float:
    """√B down, the fourth root up: half of √ where the optimum may flatten, which is above B0."""
    distance = math.log(batch_size / base)
    return distance / 2 if distance < 0 else distance / 4


def surge_rule(batch_size: float, base: float, known: Known) -> float:
    """The paper's shape with B_simple for its noise scale: 1/(√(B_simple/B) + √(B/B_simple))."""

    def height(size: float) -> float:
        return -math.log(math.sqrt(known.b_simple / size) + math.sqrt(size / known.b_simple))

    return height(batch_size) - height(base)


def surge_then_flat(batch_size: float, base: float, known: Known) -> float:
    """The same up to its peak at B_simple, and flat beyond."""
    peak = known.b_simple
    return surge_rule(min(batch_size, peak), min(base, peak), known)


def saturating_rule(batch_size: float, base: float, known: Known) -> float:
    """(1 + B_simple/B)^−α, α = 1 for SGD and ½ for others (McCandlish et al., 1812.06162)."""
    alpha = 1.0 if known.kind == "sgd" else 0.5
    return alpha * (math.log1p(known.b_simple / base) - math.log1p(known.b_simple / batch_size))


def independent_rule(batch_size: float, base: float, known: Known) -> float:
    """The paper's formula for independent coordinates, at the sizes where it was evaluated."""
    return _along(known.sizes, known.independent, batch_size, base)


def measured_rule(batch_size: float, base: float, known: Known) -> float:
    """The one-step optimum a/q of the optimizer's own direction, at the sizes where it is known."""
    return _along(known.sizes, known.measured, batch_size, base)


def long_run_rule(batch_size: float, base: float, known: Known) -> float:
    """The one law read over a run, from the one-step optimum of the same checkpoint.

    ε ∝ (1 + y)^½/(1 + kκy) with y = B_y/B: one step tells B_y and kκ at its own noise gain k; over
    a run k = 1, so kκ grows by 1/k and the peak moves up by orders of magnitude. `known.cap` caps.
    """
    noise, coupling = one_step_shape(known.sizes, known.measured)

    def height(size: float) -> float:
        ratio = noise / size
        return 0.5 * math.log1p(ratio) - math.log1p(coupling / known.noise_gain * ratio)

    return min(height(batch_size) - height(base), math.log(known.cap))


def _along(sizes: Sequence[float], curve: Sequence[float], batch_size: float, base: float) -> float:
    """log ratio along a curve in log-log, nan outside it."""
    if len(curve) != len(sizes) or not len(curve):
        return math.nan
    x = np.log([batch_size, base])
    place = np.log(np.asarray(sizes, float))
    with np.errstate(divide="ignore", invalid="ignore"):
        height = np.log(np.asarray(curve, float))
    new, old = np.interp(x, place, height, left=math.nan, right=math.nan)
    return float(new - old)


def one_step_shape(sizes: Sequence[float], lr: Sequence[float]) -> tuple[float, float]:
    """B_y and kκ of ε ∝ (1 + B_y/B)^½/(1 + kκB_y/B), least squares in log ε; nan below 4 points."""
    batch_size = np.asarray(sizes, float)
    values = np.asarray(lr, float)
    if len(values) != len(batch_size):
        return math.nan, math.nan
    usable = np.isfinite(values) & (values > 0)
    if usable.sum() < 4:
        return math.nan, math.nan
    batch_size = batch_size[usable]
    noise = np.geomspace(batch_size[0] / 30, batch_size[-1] * 30, 200)[:, None, None]
    coupling = np.geomspace(1e-3, 3, 200)[None, :, None]
    ratio = noise / batch_size
    gap = np.log(values[usable]) - 0.5 * np.log1p(ratio) + np.log1p(coupling * ratio)
    misfit = gap.var(-1)
    row, column = np.unravel_index(misfit.argmin(), misfit.shape)
    return float(noise[row, 0, 0]), float(coupling[0, column, 0])


def stability_cap(sharpness: float, b1: float) -> float:
    """Largest stable rate of Adam, (2 + 2β1)/((1 − β1)·sharpness) (Cohen et al. 2207.14484).

    Args:
      sharpness: largest eigenvalue of the Hessian preconditioned by Adam's second moment.
      b1: decay of the first moment.
    """
    return (2 + 2 * b1) / ((1 - b1) * sharpness)


RULES: dict[str, Callable[[float, float, Known], float]] = {
    "constant": power_rule(0.0),
    "sqrt": power_rule(0.5),
    "linear": power_rule(1.0),
    "halfway": halfway,
    "surge with B_simple": surge_rule,
    "surge, then flat": surge_then_flat,
    "saturating with B_simple": saturating_rule,
    "independent law": independent_rule,
    "measured, K = 1": measured_rule,
    "one law over a run": long_run_rule,
}
