"""How the other hyperparameters follow the batch size: β1, β2, eps, weight decay and warmup.

With κ = new batch size / old batch size:

    sde        1 − β ∝ κ, eps ∝ 1/√κ, weight decay ∝ κ/√κ   (Malladi et al. 2205.10287, with lr ∝
    √κ) half_life  β^κ: decay rates keep their half-life in tokens    (Marek et al. 2507.07101)
    timescale  weight decay ∝ κ: B/(lr · decay · D) stays fixed at a fixed rate (Wang & Aitchison
    2405.13698)

Under every rule warmup keeps its length in examples: steps ∝ 1/κ. A warmup that is a share of the
run keeps it without a rule where runs are equally long in examples.
"""

from typing import Any

import jax.numpy as jnp

RULES = ("sde", "half_life", "timescale")
DECAYS = ("b1", "b2", "decay", "beta")
MOST = 1 - 1e-7  # the largest decay rate that float32 tells from 1


def co_scale(rule: str, kappa: Any, **hyperparameters: Any) -> dict[str, Any]:
    """Hyperparameters for a batch size κ times the one they were chosen at.

    Args:
      rule: one of RULES.
      kappa: new batch size / old batch size, above 0; may be traced.
      **hyperparameters: values at the old batch size; b1, b2, decay, beta, eps, weight_decay and
        warmup_steps follow the rule, every other is returned as it is. Decay rates are clipped to
        [0, 1) where a rule leaves that range, and a warmup to at least one step.

    Returns:
      The same names with their new values.

    Raises:
      ValueError: an unknown rule.
    """
    if rule not in RULES:
        raise ValueError(f"scaling rule must be one of {', '.join(RULES)}, got {rule!r}")

    def moved(name: str, value: Any) -> Any:
        if name in DECAYS and rule == "sde":
            return jnp.clip(1 - kappa * (1 - value), 0.0, MOST)
        if name in DECAYS and rule == "half_life":
            return jnp.clip(value**kappa, 0.0, MOST)
        if name == "warmup_steps":
            return jnp.maximum(value / kappa, 1.0)
        if name == "eps" and rule == "sde":
            return value / jnp.sqrt(kappa)
        if name == "weight_decay" and rule == "sde":
            return value * jnp.sqrt(kappa)
        if name == "weight_decay" and rule == "timescale":
            return value * kappa
        return value

    return {name: moved(name, value) for name, value in hyperparameters.items()}
