"""Sums over single gradients that optimizers and controllers ask for, at about one gradient's cost.

Of a weight in one product, x·w, single gradients xᵀδ need not be formed: squares of outer products
are outer products of squares, and norms follow from Gram matrices. What is used otherwise has its
gradients formed a few at a time.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from surge.gradients.leaf_sums import BLOCK, single_gradients
from surge.gradients.products import Plan, Product
from surge.gradients.taps import Tapped, tapped_gradients


class ExampleSums(NamedTuple):
    """Over examples, for each array of params.

    Attributes:
      gradient, square: Σ g_n and Σ g_n², pytrees like params.
      square_norm: Σ |g_n|², a pytree of scalars.
      norm: the sum over groups of examples of the norm of their mean gradient, likewise.
    """

    gradient: Any
    square: Any
    square_norm: Any
    norm: Any


def example_sums(
    plan: Plan,
    params: Any,
    examples: Any,
    present: jax.Array,
    norm_batch: int = 1,
) -> ExampleSums:
    """Sums over the examples that are present.

    Args:
      plan: of the loss.
      params: pytree of arrays.
      examples: pytree of arrays [n, ...].
      present: [n], which of them count.
      norm_batch: consecutive examples in a group, a divisor of n.
    """
    leaves, tree = jax.tree.flatten(params)
    tapped = _masked(tapped_gradients(plan, params, examples), present)
    counts = jnp.maximum(present.reshape(-1, norm_batch).sum(1), 1)  # [group]
    sums = []
    for index, leaf in enumerate(leaves):
        places = plan.of(index)
        if plan.plain(index) and not plan.products[places[0]].slices:
            pair = tapped.inputs[places[0]], tapped.cotangents[places[0]]
            sums.append(_of_product(plan.products[places[0]], leaf, *pair, counts))
        elif places:
            sums.append(_formed(*single_gradients(plan, index, leaf, tapped), counts))
        else:
            sums.append(_held(tapped.gradients[index], counts))
    return ExampleSums(*(tree.unflatten(kind) for kind in zip(*sums, strict=True)))


def _masked(tapped: Tapped, present: jax.Array) -> Tapped:
    """With zeros in the place of absent examples, in float32 or better."""

    def kept(leaf: jax.Array) -> jax.Array:
        wide = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
        return jnp.where(present.reshape(-1, *[1] * (leaf.ndim - 1)), wide, 0)

    return tapped._replace(
        gradients={index: kept(leaf) for index, leaf in tapped.gradients.items()},
        cotangents=[kept(leaf) for leaf in tapped.cotangents],
    )


def _of_product(
    product: Product,
    like: jax.Array,
    inputs: jax.Array,  # [n, T, I]
    cotangents: jax.Array,  # [n, T, O]
    counts: jax.Array,  # [group]
) -> ExampleSums:
    """Of a weight in one product and nowhere else."""
    x = inputs.astype(cotangents.dtype)
    _, rows, width = x.shape
    columns = cotangents.shape[-1]

    def summed(x: jax.Array, cotangent: jax.Array) -> jax.Array:
        matrix = x.reshape(-1, width).T @ cotangent.reshape(-1, columns)
        return product.place(matrix, like)

    grouped = [side.reshape(len(counts), -1, side.shape[-1]) for side in (x, cotangents)]
    if rows > 1:
        sums = _formed(_weight_gradient, (x, cotangents), counts)
        square, square_norm = product.place(sums.square, like), sums.square_norm
    else:
        square = summed(x**2, cotangents**2)
        square_norm = ((x**2).sum(-1) * (cotangents**2).sum(-1)).sum()
    gram = [jnp.einsum("gri,gsi->grs", side, side) for side in grouped]
    square_norms = jnp.maximum((gram[0] * gram[1]).sum((1, 2)), 0)
    norm = (jnp.sqrt(square_norms) / counts).sum()
    return ExampleSums(summed(x, cotangents), square, square_norm, norm)


def _weight_gradient(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
    x, cotangent = pair
    return x.T @ cotangent


def _formed(
    gradient: Callable[[Any], jax.Array],
    parts: Any,  # [n, ...]
    counts: jax.Array,  # [group]
) -> ExampleSums:
    """Sums over gradient(part) of parts, of which only some groups are formed at a time."""
    groups = len(counts)
    size = jax.tree.leaves(parts)[0].shape[0] // groups
    together = next(number for number in (BLOCK, 2, 1) if groups % number == 0)

    def split(leaf: jax.Array) -> jax.Array:
        return leaf.reshape(groups // together, together, -1, *leaf.shape[1:])

    def block(total: ExampleSums, block: Any) -> tuple[ExampleSums, None]:
        parts, counts = block
        for group in range(together):
            # One product after another: the CPU backend hands them to a library, not a stack.
            singles = [gradient(_row(parts, (group, at))) for at in range(size)]
            total = jax.tree.map(jnp.add, total, _of_group(singles, counts[group, 0]))
        return total, None

    like = jax.eval_shape(gradient, _row(parts, 0))
    zero = jnp.zeros((), like.dtype)
    start = ExampleSums(jnp.zeros(like.shape, like.dtype), jnp.zeros_like(like), zero, zero)
    return jax.lax.scan(block, start, jax.tree.map(split, (parts, counts)))[0]


def _row(parts: Any, at: int | tuple[int, int]) -> Any:
    return jax.tree.map(lambda leaf: leaf[at], parts)


def _of_group(singles: list[jax.Array], count: jax.Array) -> ExampleSums:
    total = sum(singles[1:], singles[0])
    squares = [single**2 for single in singles]
    square = sum(squares[1:], squares[0])
    norm = jnp.sqrt((total**2).sum()) / count
    return ExampleSums(total, square, square.sum(), norm)


def _held(gradients: jax.Array, counts: jax.Array) -> ExampleSums:
    """Sums over gradients [n, ...] that are there already."""
    squares = gradients**2
    means = gradients.reshape(len(counts), -1, gradients[0].size).sum(1)
    norms = jnp.sqrt((means**2).sum(1)) / counts
    return ExampleSums(gradients.sum(0), squares.sum(0), squares.sum(), norms.sum())
