"""Sums over the per-example gradients of one leaf, from the factors of its products.

Gradients are formed a few at a time, while they are in cache, or not at all where each is an outer
product of two vectors.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from surge.gradients.products import Plan, Product
from surge.gradients.taps import Tapped

# Gradients of single examples formed at once: separate products, which XLA's CPU backend hands to a
# library.
BLOCK = 4
# What an exact zero counts in the sum that holds signs and zeros: above the most signs in a
# micro-batch.
ZERO = 1 << 16
# Where squared means exceed this many variances, Σg² - n·mean² loses the digits that shifted sums
# keep.
CANCELLING = 10.0


class LeafSums(NamedTuple):
    """Sums over n gradients of one leaf, in its layout.

    Mean, sum of squared deviations, sign sum and zeros, and the squared norms [n].
    """

    mean: jax.Array
    square: jax.Array
    sign_sum: jax.Array
    zeros: jax.Array
    square_norms: jax.Array


def single_gradients(
    plan: Plan, leaf: int, like: jax.Array, tapped: Tapped
) -> tuple[Callable[[Any], jax.Array], Any]:
    """How to form one example's gradient of a leaf that is in at least one product.

    Returns:
      gradient(part) in the leaf's layout, and parts [n, ...] of which part is one row.
    """
    places = plan.of(leaf)
    products = [plan.products[index] for index in places]
    pairs = [(tapped.inputs[index], tapped.cotangents[index]) for index in places]
    parts = (pairs, [tapped.gradients[leaf]] if leaf in plan.read else [])

    def gradient(part: Any) -> jax.Array:
        pairs, read = part
        shares = [
            product.place(_sliced_gradient(product, *pair), like)
            for product, pair in zip(products, pairs, strict=True)
        ]
        return functools.reduce(jnp.add, [*shares, *read])

    return gradient, parts


def leaf_sums(plan: Plan, leaf: int, like: jax.Array, tapped: Tapped) -> LeafSums:
    """Sums over the per-example gradients of a leaf that is in at least one product."""
    if not plan.plain(leaf):
        return _streamed(*single_gradients(plan, leaf, like, tapped))
    [place] = plan.of(leaf)
    product = plan.products[place]
    inputs, cotangents = tapped.inputs[place], tapped.cotangents[place]
    sums = _by_slice(inputs, cotangents) if product.slices else _plain(inputs, cotangents)

    def placed(matrix: jax.Array) -> jax.Array:
        return product.place(matrix.astype(jnp.result_type(float)), like).astype(matrix.dtype)

    return LeafSums(
        placed(sums.mean),
        placed(sums.square),
        placed(sums.sign_sum),
        placed(sums.zeros),
        sums.square_norms,
    )


def _by_slice(inputs: jax.Array, cotangents: jax.Array) -> LeafSums:
    """Sums [slice, I, O] from factors [n, slice, meetings, ...].

    A slice at a time: one gradient of all slices would not stay in cache.
    """
    ahead = inputs.swapaxes(0, 1), cotangents.swapaxes(0, 1)
    sums = jax.lax.map(lambda pair: _plain(*pair), ahead)
    return sums._replace(square_norms=sums.square_norms.sum(0))


def _plain(inputs: jax.Array, cotangents: jax.Array) -> LeafSums:
    """Sums [I, O] from factors [n, meetings, I] and [n, meetings, O] of the one product."""

    def streamed() -> LeafSums:
        return _streamed(lambda pair: _weight_gradient(*pair), (inputs, cotangents))

    if inputs.shape[1] == 1:
        return _outer(inputs[:, 0], cotangents[:, 0], streamed)
    return streamed()


def _sliced_gradient(product: Product, x: jax.Array, cotangent: jax.Array) -> jax.Array:
    """A weight's gradient for one example, of every slice where it is sliced."""
    gradient = jax.vmap(_weight_gradient) if product.slices else _weight_gradient
    return gradient(x, cotangent)


def _weight_gradient(x: jax.Array, cotangent: jax.Array) -> jax.Array:
    wide = jnp.promote_types(cotangent.dtype, jnp.float32)
    return jax.lax.dot_general(x, cotangent, (((0,), (0,)), ((), ())), preferred_element_type=wide)


def _streamed(gradient: Callable[[Any], jax.Array], parts: Any) -> LeafSums:
    """Sums over gradient(part) for parts [n, ...], a few at a time.

    Deviations are from the first example's gradient, whose distance from the mean is that of any
    example: no digits cancel.
    """
    n = jax.tree.leaves(parts)[0].shape[0]
    size = min(n, BLOCK)
    centre = gradient(jax.tree.map(lambda leaf: leaf[0], parts))

    def add(sums: tuple[jax.Array, ...], block: Any) -> tuple[tuple[jax.Array, ...], jax.Array]:
        count = jax.tree.leaves(block)[0].shape[0]
        gradients = [
            gradient(jax.tree.map(lambda leaf, index=index: leaf[index], block))
            for index in range(count)
        ]
        first, second, signs = sums
        for one in gradients:
            deviation = one - centre
            first = first + deviation
            second = second + deviation**2
            signs = signs + _sign_code(one)
        norms = jnp.stack([(one**2).sum() for one in gradients])
        return (first, second, signs), norms

    sums = jnp.zeros_like(centre), jnp.zeros_like(centre), jnp.zeros(centre.shape, jnp.int32)
    whole = n // size
    head = jax.tree.map(
        lambda leaf: leaf[: whole * size].reshape(whole, size, *leaf.shape[1:]), parts
    )
    sums, norms = jax.lax.scan(add, sums, head)
    norms = norms.ravel()
    if n % size:
        sums, rest = add(sums, jax.tree.map(lambda leaf: leaf[whole * size :], parts))
        norms = jnp.concatenate([norms, rest])
    first, second, code = sums
    zeros = (code + ZERO // 2) // ZERO
    return LeafSums(
        centre + first / n, jnp.maximum(second - first**2 / n, 0), code - ZERO * zeros, zeros, norms
    )


def _sign_code(gradient: jax.Array) -> jax.Array:
    """Sign and zero of each element in one number: one pass over the gradient counts both."""
    code = jnp.where(gradient > 0, 1, jnp.where(gradient < 0, -1, 0))
    return jnp.where(gradient == 0, ZERO, code).astype(jnp.int32)


def _outer(inputs: jax.Array, cotangents: jax.Array, otherwise: Callable[[], LeafSums]) -> LeafSums:
    """Sums over n outer products of inputs [n, I] and cotangents [n, O], none of them formed.

    Squares, signs and zeros of x ⊗ δ are outer products too: (x²)ᵀδ², sign(x)ᵀ sign(δ),
    |sign x|ᵀ|sign δ|.
    """
    n = len(inputs)
    x, d = (
        side.astype(jnp.promote_types(side.dtype, jnp.float32)) for side in (inputs, cotangents)
    )
    mean = x.T @ d / n
    square = (x**2).T @ d**2 - n * mean**2
    sign_sum, nonzero = _outer_counts(x, d)
    sums = LeafSums(
        mean=mean,
        square=jnp.maximum(square, 0),
        sign_sum=sign_sum.astype(jnp.int32),
        zeros=n - nonzero.astype(jnp.int32),
        square_norms=(x**2).sum(1) * (d**2).sum(1),
    )
    sound = (n * mean**2 <= CANCELLING * square).all() & jnp.isfinite(square).all()
    return jax.lax.cond(sound, lambda: sums, otherwise)


def _outer_counts(x: jax.Array, d: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sum of signs and count of what is not zero, over outer products of x [n, I] and d [n, O]."""
    n = len(x)
    base = 2 * n + 2  # more than twice any sum of signs, so that two sums fit in one number

    def some(values: jax.Array) -> jax.Array:
        return (values != 0).astype(values.dtype)

    def separate(nonzero: Callable[[], jax.Array]) -> Callable[[], tuple[jax.Array, jax.Array]]:
        shape = x.shape[1], d.shape[1]
        return lambda: (jnp.sign(x).T @ jnp.sign(d), jnp.broadcast_to(nonzero(), shape))

    def packed() -> tuple[jax.Array, jax.Array]:
        code = some(x).T @ jnp.where(d > 0, base + 1, jnp.where(d < 0, base - 1, 0)).astype(d.dtype)
        nonzero = jnp.round(code / base)
        return code - base * nonzero, nonzero

    # One product of matrices does where a factor is nowhere zero, or where x is nowhere negative:
    # after a ReLU.
    fits = (x.min() >= 0) & (base * n < 2**24)
    case = jnp.where(
        jnp.abs(d).min() > 0, 0, jnp.where(fits, 1, jnp.where(jnp.abs(x).min() > 0, 2, 3))
    )
    return jax.lax.switch(
        case,
        [
            separate(lambda: some(x).sum(0)[:, None]),
            packed,
            separate(lambda: some(d).sum(0)),
            separate(lambda: some(x).T @ some(d)),
        ],
    )
