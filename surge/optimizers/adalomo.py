"""AdaLomo: Adafactor without momentum, in steps relative to each array's size (arXiv 2310.10195).

    β_t = 1 − t^−0.8;  R, C: averages of row and column means of G² + 1e-30;  V = (R/mean R) ⊗ C
    U = G/√V;  U /= max(1, RMS(U));  u = max(1e-3, RMS(θ)) (U + λθ)

Without momentum it is Adafactor, and its published implementations agree to rounding; what is new
in the paper is that updates happen inside the backward pass, which changes memory and no number.
Its authors factor arrays of two axes; here, as in optax, the two longest of more than two.
"""

from functools import partial
from typing import Any

import numpy as np
import optax

from surge.optimizers.known import settle_factored
from surge.optimizers.rule import Rule, Stationary, entry


def scale_by_adalomo(
    decay_rate: float = 0.8, inner_decay: float = 0.0
) -> optax.GradientTransformation:
    """The direction u of the module's equations, with λ = inner_decay."""
    return optax.chain(
        _factored(decay_rate),
        optax.clip_by_block_rms(1.0),
        optax.add_decayed_weights(inner_decay),
        optax.scale_by_param_block_rms(1e-3),
    )


def _factored(decay_rate: float) -> optax.GradientTransformation:
    return optax.scale_by_factored_rms(decay_rate=decay_rate, min_dim_size_to_factor=2)


@entry
def adalomo(decay_rate: float = 0.8, inner_decay: float = 0.0) -> Rule:
    """AdaLomo, unfused: a rate of 1e-3 moves an array by a thousandth of its size."""

    def settle(state: Any, at: Stationary) -> Any:
        return settle_factored(_factored(decay_rate), state[0], at), *state[1:]

    transform = scale_by_adalomo(decay_rate, inner_decay)
    return Rule(transform, weights=partial(np.ones, 1), settle=settle)
