"""Rival laws of the optimal learning rate ε_opt(B): the shapes that are fitted to sweeps, each with its own peak."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import erf, erfinv


class Law(NamedTuple):
    """A rival law ε_opt(B) = max_lr · shape(B; shape parameters).

    Attributes:
      name: key in LAWS.
      parameters: names; the first is a scale that the law is proportional to.
      bounds: name -> (low, high) of the shape parameters; batch sizes are in units of the data's
        own range.
      function: (batch_size, **parameters) -> ε.
      peak: (parameters in order or by name) -> (batch size of the maximum, why there is none where
        it is inf or nan).
      generalises: names of the laws that are special or limiting cases of it.
    """

    name: str
    parameters: tuple[str, ...]
    bounds: Mapping[str, tuple[float, float]]
    function: Callable[..., jax.Array]
    peak: Callable[..., tuple[float, str]]
    generalises: tuple[str, ...]


def surge(batch_size: Any, max_lr: Any, b_noise: Any) -> jax.Array:
    """ε_max · 2/(√(B_noise/B) + √(B/B_noise)) (the paper, equation 14): rises as √B, peaks at
    B_noise, falls.

    Sign descent, independent Gaussian coordinates, B far below `validity`; see
    `surge_coefficients`.
    """
    root = jnp.sqrt(jnp.asarray(batch_size) / b_noise)
    return max_lr * 2 / (root + 1 / root)


def saturating_surge(batch_size: Any, max_lr: Any, b_scale: Any, r: Any) -> jax.Array:
    """Exact law for one signal-to-noise ratio s = |μ_i|/σ_i: (2·max_lr/√r) · E/(1 + E²/r), E =
    erf(√(B/b_scale)).

    b_scale = 2/s², r = D/O of `homogeneous`, with its assumptions (re-derived). For r < 1 max_lr is
    the height of the peak at b_scale·erfinv(√r)² and the plateau is 2√r/(1+r) of it; for r >= 1 the
      law only rises. As r -> 0 it goes
    to 0 at every B > 0; nan for r < 0, where `homogeneous` holds.
    """
    mean = erf(jnp.sqrt(jnp.asarray(batch_size) / b_scale))
    return 2 * max_lr * jnp.sqrt(r) * mean / (r + mean**2)


def mccandlish(batch_size: Any, max_lr: Any, b_noise: Any, alpha: Any) -> jax.Array:
    """ε_max / (1 + B_noise/B)^α (McCandlish et al., equation 2.6 and appendix): α = 1 SGD, 0.5 to 1
    for Adam."""
    return max_lr / (1 + b_noise / jnp.asarray(batch_size)) ** alpha


def power(batch_size: Any, max_lr: Any, exponent: Any) -> jax.Array:
    """max_lr · B^exponent; max_lr is the rate at B = 1."""
    return max_lr * jnp.asarray(batch_size, jnp.result_type(float)) ** exponent


def saturating_peak_size(b_scale: Any, r: Any) -> jax.Array:
    """Batch size where `saturating_surge` is highest, b_scale·erfinv(√r)²; broadcasts.

    inf for r >= 1 (it only rises), nan for r <= 0 (no such law).
    """
    r = jnp.asarray(r)
    inside = (r > 0) & (r < 1)
    size = b_scale * erfinv(jnp.sqrt(jnp.where(inside, r, 0.5))) ** 2
    return jnp.where(inside, size, jnp.where(r >= 1, jnp.inf, jnp.nan))


def _saturating_peak(max_lr: Any, b_scale: Any, r: Any) -> tuple[float, str]:
    del max_lr
    why = (
        "r = D/O is at least 1: the law rises to a plateau and never falls"
        if r >= 1
        else "r = D/O is not positive"
    )
    return float(saturating_peak_size(b_scale, r)), "" if 0 < r < 1 else why


_RISES = (float("inf"), "this law has no peak: it only rises")
_FLAT = (float("nan"), "this law has no peak: it does not rise")
_SIZE = (1e-2, 1e2)  # of the smallest and the largest batch size in the data
LAWS: dict[str, Law] = {
    law.name: law
    for law in (
        Law("constant", ("max_lr",), {}, partial(power, exponent=0.0), lambda max_lr: _FLAT, ()),
        Law("sqrt", ("max_lr",), {}, partial(power, exponent=0.5), lambda max_lr: _RISES, ()),
        Law("linear", ("max_lr",), {}, partial(power, exponent=1.0), lambda max_lr: _RISES, ()),
        Law(
            "power",
            ("max_lr", "exponent"),
            {"exponent": (-1.5, 1.5)},
            power,
            lambda max_lr, exponent: _RISES if exponent > 0 else _FLAT,
            ("constant", "sqrt", "linear"),
        ),
        Law(
            "mccandlish",
            ("max_lr", "b_noise", "alpha"),
            {"b_noise": _SIZE, "alpha": (0.05, 1.5)},
            mccandlish,
            lambda max_lr, b_noise, alpha: _RISES,
            ("constant", "sqrt", "linear", "power"),
        ),
        Law(
            "surge",
            ("max_lr", "b_noise"),
            {"b_noise": _SIZE},
            surge,
            lambda max_lr, b_noise: (float(b_noise), ""),
            ("sqrt",),
        ),
        Law(
            "saturating_surge",
            ("max_lr", "b_scale", "r"),
            {"b_scale": _SIZE, "r": (1e-3, 1e2)},
            saturating_surge,
            _saturating_peak,
            ("constant", "sqrt", "surge"),
        ),
    )
}
