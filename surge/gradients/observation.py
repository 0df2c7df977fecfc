"""What a few gradients at one point say of noise and signal, in the norms of several optimizers.

Each scale compares noise and signal of the gradient in the norm dual to the one that an optimizer
steps in: |·|² for SGD (McCandlish et al., 1812.06162), ‖·‖₁ for sign descent and the nuclear norm
for Muon (Naganuma et al., 2602.03001), and for Adam gᵀg/√ν, which is |·|² in the coordinates where
its step is the gradient's. All is per leaf, and adds up over leaves.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from surge.gradients.moments import GradientMoments, per_example_moments

B_SIMPLE = "b_simple"
ADAM = "adam"
SIGN = "sign"
NUCLEAR = "nuclear"
SQUARED = (B_SIMPLE, ADAM)  # whose noise and signal are told by squared norms alone
SCALES = (*SQUARED, SIGN, NUCLEAR)
GROUPS = 4  # that examples are dealt into: each one's mean is held against the others'
FEWEST = 2 * GROUPS  # examples
EPS = 1e-8  # of Adam
QUICK = (3.4445, -4.7750, 2.0315)  # polynomial of Muon's orthogonalisation (Jordan et al., 2024)
EXACT = (1.875, -1.25, 0.375)  # one that ends at 1


class Observation(NamedTuple):
    """Noise and signal at one point.

    Attributes:
      parts: scale -> [leaf, 3]: for b_simple and adam tr Σ and |μ|², unbiased, and 0; for sign and
        nuclear ‖σ‖, what a step along the others' gradient gains on a group's, and ‖mean‖.
      examples: behind them.
    """

    parts: dict[str, jax.Array]
    examples: jax.Array


class _Leaf(NamedTuple):
    """Gradients of one parameter: means of groups, and variance of one example."""

    means: jax.Array  # [group, ...]
    variance: jax.Array
    halves: tuple[jax.Array, jax.Array]  # the variance in either half of the groups


def of_examples(
    loss_fn: Callable[[Any, Any], jax.Array],
    params: Any,
    examples: Any,
    scales: Sequence[str] = (B_SIMPLE, SIGN),
    second_moment: Any = None,
) -> Observation:
    """From gradients of single examples, by the fast path of `per_example_moments`.

    Args:
      loss_fn: (params, example) -> scalar loss of one example.
      params: pytree of arrays.
      examples: pytree [n, ...], n a multiple of 4 and at least 8.
      scales: of SCALES; "nuclear" takes some 150 products of every matrix.
      second_moment: ν of Adam, a pytree like params, for "adam".

    Raises:
      ValueError: another number of examples, or scales that are not known or lack ν.
    """
    weights = _weights(scales, params, second_moment)
    n = jax.tree.leaves(examples)[0].shape[0]
    if n < FEWEST or n % GROUPS:
        raise ValueError(f"take a multiple of {GROUPS} examples, at least {FEWEST}, not {n}")
    size = n // GROUPS
    # Every fourth: groups are alike also where examples are sorted.
    dealt = jax.tree.map(
        lambda leaf: leaf.reshape(size, GROUPS, *leaf.shape[1:]).swapaxes(0, 1), examples
    )
    groups = jax.lax.map(lambda group: per_example_moments(loss_fn, params, group), dealt)
    leaves = _of_moments(groups, size)
    parts = {scale: _squared(leaves, n, weights[scale]) for scale in scales if scale in SQUARED}
    return _observation(parts, leaves, size, n, scales)


def of_gradients(
    gradients: Any,
    batch_size: int,
    scales: Sequence[str] = (B_SIMPLE,),
    second_moment: Any = None,
) -> Observation:
    """From the mean gradients of a few batches, such as micro-batches of one step.

    Args:
      gradients: pytree like params with a leading axis [k], k at least 2; for "sign" and "nuclear"
        at least 4 and even.
      batch_size: examples in each of the k.
      scales, second_moment: as for `of_examples`; with "nuclear" ‖σ‖ is of batches.

    Raises:
      ValueError: another number of gradients, or scales that are not known or lack ν.
    """
    means = jax.tree.leaves(gradients)
    weights = _weights(scales, gradients, second_moment)
    k = means[0].shape[0]
    least = 2 if set(scales) <= set(SQUARED) else 4
    if k < least or (least == 4 and k % 2):
        raise ValueError(f"{', '.join(scales)}: take an even number of gradients from {least} on")
    squares = _square_norms(gradients, weights, scales, axis=0)
    total = jax.tree.map(lambda leaf: leaf.mean(0), gradients)
    parts = {
        scale: of_square_norms(squares[scale].mean(0), whole, batch_size, k)
        for scale, whole in _square_norms(total, weights, scales).items()
    }
    if least == 2:
        return Observation(parts, jnp.asarray(k * batch_size, jnp.float32))
    leaves = [
        _Leaf(
            leaf,
            batch_size * leaf.var(0, ddof=1),
            (batch_size * leaf[0::2].var(0, ddof=1), batch_size * leaf[1::2].var(0, ddof=1)),
        )
        for leaf in means
    ]
    return _observation(parts, leaves, batch_size, k * batch_size, scales)


def of_devices(
    gradient: Any,
    mean: Any,
    batch_size: int,
    axis_name: str,
    scales: Sequence[str] = (B_SIMPLE,),
    second_moment: Any = None,
) -> Observation:
    """From each device's gradient and their mean, inside `shard_map` or `pmap`.

    One number a leaf crosses devices.

    Args:
      gradient: of this device's part of the batch.
      mean: of all devices, `jax.lax.pmean(gradient, axis_name)`.
      batch_size: examples on each device.
      axis_name: of the devices.
      scales: of SQUARED.
      second_moment: as for `of_examples`.

    Raises:
      ValueError: scales that norms do not tell.
    """
    weights = _weights(scales, gradient, second_moment, SQUARED)
    devices = jax.lax.psum(1, axis_name)
    parts = {
        scale: of_square_norms(jax.lax.pmean(local, axis_name), whole, batch_size, devices)
        for (scale, local), whole in zip(
            _square_norms(gradient, weights, scales).items(),
            _square_norms(mean, weights, scales).values(),
            strict=True,
        )
    }
    return Observation(parts, jnp.asarray(devices * batch_size, jnp.float32))


def of_square_norms(
    single: jax.Array,  # [leaf] mean of |G_i|²
    whole: jax.Array,  # [leaf] |mean of G_i|²
    batch_size: int,
    count: jax.Array | int,
) -> jax.Array:
    """tr Σ, |μ|² and 0 of each leaf [leaf, 3], from `count` gradients of batches."""
    spread = (single - whole) * count / (count - 1)
    return jnp.stack([batch_size * spread, whole - spread / count, jnp.zeros_like(whole)], 1)


def square_norms(tree: Any, weight: Any = None, axis: int | None = None) -> jax.Array:
    """Σ w g² of each leaf [leaf]; for stacked gradients, axis 0, of each [k, leaf]."""
    leaves = jax.tree.leaves(tree)
    factors = [None] * len(leaves) if weight is None else jax.tree.leaves(weight)

    def one(leaf: jax.Array, factor: jax.Array | None) -> jax.Array:
        squares = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)) ** 2
        weighted = squares if factor is None else factor * squares
        return weighted.sum() if axis is None else weighted.reshape(len(leaf), -1).sum(1)

    return jnp.stack([one(*pair) for pair in zip(leaves, factors, strict=True)], -1)


def preconditioner(second_moment: Any) -> Any:
    """√(mean of ν) / (√ν + eps) of Adam.

    The factor before it is the same for all parameters, so no scale feels it; but readings are
    averaged, and ν grows from 0 by its bias over the first steps.
    """
    leaves = jax.tree.leaves(second_moment)
    mean = sum(leaf.sum() for leaf in leaves) / sum(leaf.size for leaf in leaves)
    return jax.tree.map(lambda nu: jnp.sqrt(mean) / (jnp.sqrt(nu) + EPS), second_moment)


def _weights(
    scales: Sequence[str], params: Any, second_moment: Any, known: Sequence[str] = SCALES
) -> dict[str, Any]:
    """What weighs squares in each scale: None for b_simple."""
    unknown = [scale for scale in scales if scale not in known]
    if unknown or not scales:
        raise ValueError(f"scales must be of {', '.join(known)}, got {', '.join(scales)}")
    if ADAM in scales and second_moment is None:
        raise ValueError("the scale adam takes second_moment, the ν of Adam's state")
    if ADAM not in scales:
        return {B_SIMPLE: None}
    if jax.tree.structure(second_moment) != jax.tree.structure(params):
        raise ValueError("second_moment must be a pytree like the parameters")
    return {B_SIMPLE: None, ADAM: preconditioner(second_moment)}


def _square_norms(
    tree: Any, weights: dict[str, Any], scales: Sequence[str], axis: int | None = None
) -> dict[str, jax.Array]:
    return {scale: square_norms(tree, weights[scale], axis) for scale in scales if scale in SQUARED}


def _of_moments(groups: GradientMoments, size: int) -> list[_Leaf]:
    """Leaves of moments of groups, stacked, of `size` examples each."""

    def variance(means: jax.Array, squares: jax.Array) -> jax.Array:
        within = squares.sum(0) + size * ((means - means.mean(0)) ** 2).sum(0)
        return within / (len(means) * size - 1)

    return [
        _Leaf(
            means,
            variance(means, squares),
            (variance(means[0::2], squares[0::2]), variance(means[1::2], squares[1::2])),
        )
        for means, squares in zip(
            jax.tree.leaves(groups.mean), jax.tree.leaves(groups.square), strict=True
        )
    ]


def _squared(leaves: Sequence[_Leaf], n: int, weight: Any) -> jax.Array:
    """tr Σ, |μ|² and 0 of each leaf, from n examples."""
    factors = [1.0] * len(leaves) if weight is None else jax.tree.leaves(weight)
    rows = []
    for leaf, factor in zip(leaves, factors, strict=True):
        trace = (factor * leaf.variance).sum()
        signal = (factor * leaf.means.mean(0) ** 2).sum() - trace / n
        rows.append(jnp.stack([trace, signal, jnp.zeros_like(trace)]))
    return jnp.stack(rows)


def _observation(
    parts: dict[str, jax.Array],
    leaves: Sequence[_Leaf],
    size: int,
    n: int,
    scales: Sequence[str],
) -> Observation:
    """With the scales that norms alone do not tell, in the order of `scales`."""
    duals = {
        SIGN: _sign,
        NUCLEAR: lambda leaf: _nuclear(leaf.means, size),
    }
    asked = {
        scale: jnp.stack([dual(leaf) for leaf in leaves])
        for scale, dual in duals.items()
        if scale in scales
    }
    told = parts | asked
    return Observation({scale: told[scale] for scale in scales}, jnp.asarray(n, jnp.float32))


def _others(means: jax.Array) -> jax.Array:
    """The mean of all groups but each [k, ...]."""
    k = len(means)
    return (k * means.mean(0) - means) / (k - 1)


def _unbiased(whole: jax.Array, first: jax.Array, second: jax.Array) -> jax.Array:
    """Without the part of a bias that halves with twice the data (Quenouille)."""
    return 2 * whole - (first + second) / 2


def _sign(leaf: _Leaf) -> jax.Array:
    noise = _unbiased(*(jnp.sqrt(one).sum() for one in (leaf.variance, *leaf.halves)))
    gain = (jnp.sign(_others(leaf.means)) * leaf.means).sum() / len(leaf.means)
    return jnp.stack([noise, gain, jnp.abs(leaf.means.mean(0)).sum()])


def _nuclear(means: jax.Array, size: int) -> jax.Array:
    """Of a matrix, where ‖σ‖ is tr √E[(G − μ)(G − μ)ᵀ]; zeros for other shapes, as for Muon."""
    if means.ndim != 3:
        return jnp.zeros(3, means.dtype)
    wide = means if means.shape[1] <= means.shape[2] else means.swapaxes(1, 2)

    def noise(some: jax.Array) -> jax.Array:
        # tr √(Σ D Dᵀ) is the nuclear norm of all D side by side.
        apart = jnp.concatenate([*(some - some.mean(0))], 1)
        return jnp.sqrt(size / (len(some) - 1)) * (_polar(apart) * apart).sum()

    gain = (jax.vmap(_polar)(_others(wide)) * wide).sum() / len(wide)
    mean = wide.mean(0)
    norm = (_polar(mean) * mean).sum()
    return jnp.stack([_unbiased(noise(wide), noise(wide[0::2]), noise(wide[1::2])), gain, norm])


def _polar(matrix: jax.Array) -> jax.Array:
    """U Vᵀ of a matrix U S Vᵀ, by products of matrices alone, as Muon has it.

    Muon's five steps bring singular values near 1, and steps of the Newton-Schulz kind to 1; those
    under a thousandth of the norm stay below, and count as little.
    """
    norm = jnp.sqrt((matrix**2).sum())
    near = matrix / jnp.where(norm > 0, norm, 1.0)
    for linear, cubic, quintic in (*[QUICK] * 5, *[EXACT] * 3):
        square = near @ near.T
        near = linear * near + (cubic * square + quintic * square @ square) @ near
    return near
