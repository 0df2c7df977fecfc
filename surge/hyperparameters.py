"""What else of an optimizer follows the batch size: decay rates, eps, weight decay, warmup."""

import inspect
import math
from collections.abc import Mapping

from surge.optimizers.spec import BATCH_SIZE, Spec
from surge.theory.scaling import co_scale, valid_ratios

MOVED = ("b1", "b2", "decay", "beta", "eps", "weight_decay", "warmup_steps")
PASTED = ("weight_decay", "warmup_steps")  # decay rates stay as in the sweeps that judged


def hyperparameters(spec: Spec) -> dict[str, float]:
    """What a co-scaling rule may move, at its value in a spec or its default."""
    parameters = inspect.signature(spec.entry).parameters
    defaults = {name: one.default for name, one in parameters.items() if name in MOVED}
    told = {BATCH_SIZE: 1} if BATCH_SIZE in spec.parameters else {}
    if decay := getattr(spec.entry(**spec.own, **told), "weight_decay", 0.0):
        defaults["weight_decay"] = decay
    given = {name: value for name, value in (spec.own | spec.common).items() if name in MOVED}
    return {name: value for name, value in (defaults | given).items() if _is_number(value)}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def co_scaled(
    spec: Spec, kappa: float, lr_ratio: float, horizon_ratio: float
) -> dict[str, dict[str, float] | str]:
    """The hyperparameters under each rule, or the sentence on where it ends."""
    values = hyperparameters(spec)
    moved: dict[str, dict[str, float] | str] = {}
    for rule in ("half_life", "sde", "timescale"):
        try:
            scaled = co_scale(rule, kappa, lr_ratio=lr_ratio, horizon_ratio=horizon_ratio, **values)
        except ValueError as error:
            moved[rule] = str(error)
            continue
        changed = {name: float(value) for name, value in scaled.items() if value != values[name]}
        if changed:
            moved[rule] = changed
    return moved


def rule_ends(spec: Spec) -> tuple[float, str]:
    """The largest ratio of batch sizes at which 1 − β can be scaled, and the β that ends it."""
    ends = valid_ratios("sde", **hyperparameters(spec))
    return ends.high, ends.high_name


def paste(
    spec: Spec, lr: float, size: float, base: float, lr_ratio: float, horizon_ratio: float
) -> str:
    """One line to copy, with the weight decay and the warmup that go with the rate."""
    values = hyperparameters(spec)
    kept = {name: value for name, value in values.items() if name in PASTED}
    ratios = {"lr_ratio": lr_ratio, "horizon_ratio": horizon_ratio}
    moved = co_scale("timescale", size / base, **ratios, **kept)
    shown: Mapping[str, float] = {"learning_rate": lr, "batch_size": size} | values | moved
    return f"{spec.name}: " + ", ".join(f"{name}={value:.6g}" for name, value in shown.items())


def resumed(spec: Spec, size: float, base: float, b_simple: float) -> str:
    """What becomes of Adam's second moment where a run is resumed at another batch size.

    Over all parameters E G² is |μ|² + tr Σ/B, so that it moves by (1 + b/B)/(1 + b/B0) with
    b = tr Σ/|μ|²; the average follows within some 1/(1 − β2) steps by itself.
    """
    b2 = hyperparameters(spec).get("b2")
    if b2 is None or not 0 < b2 < 1 or math.isnan(b_simple):
        return ""
    factor = (1 + b_simple / size) / (1 + b_simple / base)
    return (
        f"resumed from a checkpoint: multiply its second moment by {factor:.3g}, or let it settle "
        f"for some {1 / (1 - b2):.0f} steps"
    )
