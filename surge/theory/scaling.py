"""How the other hyperparameters follow the batch size: β1, β2, eps, weight decay and warmup.

With κ = new batch size / old batch size:

    sde        1 − β ∝ κ, eps ∝ 1/√κ, rate · decay ∝ κ      (Malladi et al. 2205.10287)
    half_life  β^κ: decay rates keep their half-life in examples   (Marek et al. 2507.07101)
    timescale  rate · decay ∝ κ/D: B/(rate · decay · D) stays fixed   (Wang & Aitchison 2405.13698)

Under every rule warmup keeps its length in examples: steps ∝ 1/κ. A warmup that is a share of the
run keeps it without a rule where runs are equally long in examples.

A rule has an end: 1 − β cannot grow beyond 1, which is κ = 10 for β = 0.9. Beyond it there is no
answer, and `valid_ratios` says where that is.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

RULES = ("sde", "half_life", "timescale")
DECAYS = ("b1", "b2", "b3", "decay", "beta")
ROUNDING = 1e-6  # relative: a ratio at the very end of a rule is still inside
CLOSEST = 2.0**-24  # to 1: a decay rate nearer to it is 1 in float32, and its average never moves


class Ratios(NamedTuple):
    """The ratios κ at which a rule has an answer, and which hyperparameter ends it on each side."""

    low: float
    high: float
    low_name: str
    high_name: str


def valid_ratios(rule: str, **hyperparameters: float) -> Ratios:
    """Where a rule ends: the smallest and the largest κ at which every decay rate is in [0, 1).

    Args:
      rule: one of RULES.
      **hyperparameters: as for `co_scale`; those that a rule does not move are passed over.

    Returns:
      Ratios; 0 or inf, with the name "", where nothing ends the rule on that side.

    Raises:
      ValueError: an unknown rule.
    """
    _known(rule)
    ranges = {
        name: _range(rule, float(value))
        for name, value in hyperparameters.items()
        if name in DECAYS
    }
    low, low_name = max(((low, name) for name, (low, _) in ranges.items()), default=(0.0, ""))
    high, high_name = min(
        ((high, name) for name, (_, high) in ranges.items()), default=(math.inf, "")
    )
    return Ratios(low, high, low_name if low > 0 else "", high_name if high < math.inf else "")


def co_scale(
    rule: str,
    kappa: Any,
    *,
    lr_ratio: Any = None,
    horizon_ratio: Any = 1.0,
    **hyperparameters: Any,
) -> dict[str, Any]:
    """Hyperparameters for a batch size κ times the one they were chosen at.

    Args:
      rule: one of RULES.
      kappa: new batch size / old batch size, above 0; may be traced.
      lr_ratio: new learning rate / old one, which weight decay is divided by; None: what the rule
        assumes, √κ under sde and 1 under timescale.
      horizon_ratio: new / old length of the run in examples, D.
      **hyperparameters: values at the old batch size; b1, b2, b3, decay, beta, eps, weight_decay
        and warmup_steps follow the rule, every other is returned as it is. A decay rate of 0 is no
        average and stays so; a warmup of less than a step is one step, which is none.

    Returns:
      The same names with their new values. Where kappa is traced, a decay rate is nan outside
      `valid_ratios`, since traced code cannot raise.

    Raises:
      ValueError: an unknown rule, a kappa that is not a finite number above 0, or one outside
        `valid_ratios`; the message has the largest valid ratio.
    """
    _known(rule)
    if not isinstance(kappa, jax.core.Tracer):
        kappa = float(kappa)
        _check(rule, kappa, hyperparameters)
    return {
        name: _moved(rule, name, value, kappa, lr_ratio, horizon_ratio)
        for name, value in hyperparameters.items()
    }


def _known(rule: str) -> None:
    if rule not in RULES:
        raise ValueError(f"scaling rule must be one of {', '.join(RULES)}, got {rule!r}")


def _range(rule: str, decay: float) -> tuple[float, float]:
    """The ratios at which one decay rate has an answer."""
    if rule == "timescale" or decay == 0:
        return 0.0, math.inf
    if rule == "sde":
        return CLOSEST / (1 - decay), 1 / (1 - decay)
    return CLOSEST / -math.log(decay), math.inf


def _check(rule: str, kappa: float, hyperparameters: dict[str, Any]) -> None:
    if not 0 < kappa < math.inf:
        raise ValueError(f"the ratio of batch sizes must be a finite number above 0, got {kappa}")
    concrete = {
        name: value
        for name, value in hyperparameters.items()
        if name in DECAYS and not isinstance(value, jax.core.Tracer)
    }
    ends = valid_ratios(rule, **concrete)
    if kappa > ends.high * (1 + ROUNDING):
        decay = float(concrete[ends.high_name])
        raise ValueError(
            f"1 - {ends.high_name} scaled by the ratio of batch sizes ends at {ends.high:.6g} for "
            f"{ends.high_name} = {decay:g}, and the ratio is {kappa:.6g}: take the rule half_life, "
            f"{ends.high_name}^ratio = {decay**kappa:.3g}, or a batch size within the end"
        )
    if kappa < ends.low * (1 - ROUNDING):
        raise ValueError(
            f"at a ratio of batch sizes of {kappa:.3g} {ends.low_name} would be 1 in float32: "
            f"the rule {rule} ends at {ends.low:.3g}"
        )


def _moved(rule: str, name: str, value: Any, kappa: Any, lr_ratio: Any, horizon_ratio: Any) -> Any:
    """One hyperparameter at its new value."""
    if name in DECAYS and rule != "timescale":
        return _decay(rule, value, kappa)
    if name == "warmup_steps":
        return _library(value, kappa).maximum(value / kappa, 1.0)
    if name == "eps" and rule == "sde":
        return value / _library(kappa).sqrt(kappa)
    if name == "weight_decay" and rule != "half_life":
        assumed = _library(kappa).sqrt(kappa) if rule == "sde" else kappa
        return value * (assumed if lr_ratio is None else kappa / lr_ratio) / horizon_ratio
    return value


def _decay(rule: str, value: Any, kappa: Any) -> Any:
    """A decay rate moved, nan where the rule has ended."""
    library = _library(value, kappa)
    new = 1 - kappa * (1 - value) if rule == "sde" else value**kappa
    new = library.where(value == 0, 0.0, new)
    # At the very end of a rule rounding leaves a number just below 0.
    inside = (new >= -ROUNDING * kappa) & (new < 1)
    kept = library.where(inside, library.maximum(new, 0.0), jnp.nan)
    return float(kept) if library is np else kept


def _library(*values: Any) -> Any:
    """NumPy, in double precision, where nothing is traced."""
    return jnp if any(isinstance(value, jax.Array) for value in values) else np
