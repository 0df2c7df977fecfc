"""What gradients of single examples say of noise: scales, by layer and as a whole."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from surge.gradients.curvature import LossFn, layer_alignments
from surge.gradients.layers import layers_of
from surge.gradients.moments import GradientMoments, merge, per_example_moments
from surge.gradients.wide import wide_moments, worth_it
from surge.theory import noise
from surge.theory.noise import Estimate

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
VALIDITY_EDGES = np.logspace(-2, 8, 21)  # of the histogram of πσ²/2μ²
_layer_alignments = jax.jit(layer_alignments, static_argnames=("loss_fn", "layers"))


class GradientNoise(NamedTuple):
    """What gradients of single examples say of noise.

    Attributes:
      groups: moments of each batch.
      moments: of the gradients of all examples.
      b_simple: tr Σ/|μ|², noise scale of SGD.
      sign: noise scale of sign descent.
      validity: QUANTILES over parameters of πσ²/2μ² [q, 3]: value, low and high.
      histogram: shares of parameters between VALIDITY_EDGES of it.
      layers: name -> tr Σ/|μ|² of that layer's parameters alone.
      norms: tr Σ/|μ|² of all normalisation layers' parameters together.
    """

    groups: list[GradientMoments]
    moments: GradientMoments
    b_simple: Estimate
    sign: Estimate
    validity: np.ndarray
    histogram: np.ndarray
    layers: dict[str, Estimate]
    norms: Estimate


def gradient_noise(
    loss_fn: LossFn,
    params: Any,
    batches: Sequence[Any],
    unit: int = 1,
    order: np.ndarray | None = None,
) -> GradientNoise:
    """Moments and noise scales from disjoint batches of examples, at least two.

    Args:
      loss_fn: (params, example) -> scalar.
      params: pytree of arrays.
      batches: pytrees [n, ...].
      unit: examples behind each of the n, where it is a ghost batch: Σ is then `unit` times that of
        its gradients.
      order: what numbers the examples of the batches, one after the other, have for the user [n]:
        results that are per example, or name one, go by these. None: they are in order.
    """
    moments = wide_moments if worth_it() else per_example_moments
    groups = [moments(loss_fn, params, batch) for batch in batches]
    total = _all(groups)
    first, second = _all(groups[0::2]), _all(groups[1::2])
    examples = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *batches)
    layers = layers_of(params)
    alignments = _layer_alignments(loss_fn, params, examples, total.mean, layers.of)
    alignments = np.asarray(alignments, float)
    if order is not None:
        total, alignments = _in_order(total, alignments, order)
    mean, std = _flat(total.mean), (unit * _flat(total.variance)) ** 0.5
    n = unit * int(total.n)
    scale = partial(_scale, _layer_norms(total, layers.of), alignments, unit)
    norms = noise.undefined(n, np.nan, np.nan, "no normalisation layers are recognised")
    return GradientNoise(
        groups=groups,
        moments=total,
        b_simple=scale(range(len(layers.names))),
        sign=noise.sign_noise_scale(_flat(first.mean), _flat(second.mean), std, n),
        validity=noise.validity_quantiles(mean, std, n, np.array(QUANTILES)),
        histogram=noise.validity_histogram(mean, std, VALIDITY_EDGES),
        layers={name: scale([index]) for index, name in enumerate(layers.names)},
        norms=scale(layers.normalising) if layers.normalising else norms,
    )


def _all(groups: Sequence[GradientMoments]) -> GradientMoments:
    total = groups[0]
    for group in groups[1:]:
        total = merge(total, group)
    return total


def _flat(tree: Any) -> np.ndarray:
    return np.asarray(ravel_pytree(tree)[0], float)


def _in_order(
    total: GradientMoments, alignments: np.ndarray, order: np.ndarray
) -> tuple[GradientMoments, np.ndarray]:
    back = np.argsort(order)
    norms = jax.tree.map(lambda leaf: leaf[back], total.square_norms)
    return total._replace(square_norms=norms), alignments[:, back]


def _layer_norms(total: GradientMoments, layers: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """|g_i|² [layer, n] and |ḡ|² [layer] of each layer."""
    norms = np.zeros((max(layers) + 1, int(total.n)))
    squares = np.zeros(max(layers) + 1)
    leaves = jax.tree.leaves(total.square_norms), jax.tree.leaves(total.mean)
    for layer, norm, mean in zip(layers, *leaves, strict=True):
        norms[layer] += np.asarray(norm, float)
        squares[layer] += float((np.asarray(mean, float) ** 2).sum())
    return norms, squares


def _scale(
    layer_norms: tuple[np.ndarray, np.ndarray],
    alignments: np.ndarray,
    unit: int,
    layers: Sequence[int],
) -> Estimate:
    """tr Σ/|μ|² of some layers' parameters, in examples."""
    norms, squares = layer_norms
    picked = list(layers)
    estimate = noise.b_simple(
        norms[picked].sum(0), alignments[picked].sum(0), float(squares[picked].sum())
    )
    return estimate._replace(
        value=unit * estimate.value,
        low=unit * estimate.low,
        high=unit * estimate.high,
        n=unit * estimate.n,
        numerator=unit * estimate.numerator,
    )
