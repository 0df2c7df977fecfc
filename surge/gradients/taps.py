"""The factors of every product of a loss, for every example of a batch, from one backward pass.

It differentiates by the outputs of products, tapped, in place of their weights.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, JaxprEqn

from surge.gradients.jaxpr import INLINED, RECOMPUTED, evaluate, inner_programs, walk
from surge.gradients.products import (
    LAYOUTS,
    Plan,
    Search,
    View,
    consts_within,
    laid_out,
    product_at,
    scan_parts,
    slices_within,
)

# On CPU so many turns of a scan stand one after another: in a loop, 8 layers of the small GPT take
# twice as long, for what they keep for the backward pass is copied turn by turn.
STRAIGHT = 16


class Tapped(NamedTuple):
    """What a backward pass yields.

    Attributes:
      gradients: of the leaves read outside products, by leaf [n, ...].
      inputs: x [n, meetings, I] of each product, with an axis of slices after the first where the
        leaf is sliced.
      cotangents: δ [n, meetings, O] likewise.
    """

    gradients: dict[int, jax.Array]
    inputs: list[jax.Array]
    cotangents: list[jax.Array]


def tapped_gradients(plan: Plan, params: Any, examples: Any) -> Tapped:
    """One backward pass of a batch, by the outputs of products in place of their weights."""
    leaves = jax.tree.leaves(params)
    n = jax.tree.leaves(examples)[0].shape[0]
    taps = [
        jnp.zeros((n, *product.turns, product.rows, product.columns), product.dtype)
        for product in plan.products
    ]

    def loss(
        read: dict[int, jax.Array], taps: list[jax.Array], example: Any
    ) -> tuple[jax.Array, list[jax.Array]]:
        seen = [
            Seen(read.get(index, leaf), View(index, lambda leaf: leaf))
            for index, leaf in enumerate(leaves)
        ]
        [value], inputs = _with_taps(plan.program, [*seen, *jax.tree.leaves(example)], taps)
        return value, inputs

    gradient = jax.vmap(jax.grad(loss, (0, 1), has_aux=True), (None, 0, 0))
    read = {index: leaves[index] for index in plan.read}
    (gradients, cotangents), inputs = gradient(read, taps, examples)

    def factors(matrices: Sequence[jax.Array]) -> list[jax.Array]:
        pairs = zip(plan.products, matrices, strict=True)
        return [jax.vmap(product.factor)(array) for product, array in pairs]

    return Tapped(gradients, factors(inputs), factors(cotangents))


class Seen(NamedTuple):
    """A value of which it is known that it is a leaf in another layout."""

    array: jax.Array
    view: View


def _seen(array: jax.Array, view: View | None) -> Any:
    return array if view is None else Seen(array, view)


def _array(value: Any) -> Any:
    return value.array if isinstance(value, Seen) else value


def _with_taps(
    program: ClosedJaxpr, values: Sequence[Any], taps: Sequence[jax.Array]
) -> tuple[list[jax.Array], list[jax.Array]]:
    """A program's outputs with a tap added to each product's, and x of each product [T, I]."""
    inputs: list[jax.Array] = []
    left = iter(taps)

    def visit(equation: JaxprEqn, values: list[Any]) -> Sequence[Any]:
        name = equation.primitive.name
        if name in INLINED:
            return walk(equation.params["jaxpr"], values, visit)
        arrays = [_array(value) for value in values]
        views = [value.view if isinstance(value, Seen) else None for value in values]
        if name in LAYOUTS and views[0] is not None:
            [array] = evaluate(equation, arrays)
            return [Seen(array, laid_out(views[0], equation))]
        outputs, own = _equation(equation, arrays, views, left)
        inputs.extend(own)
        return outputs

    outputs = [_array(value) for value in walk(program, values, visit)]
    return outputs, inputs


def _equation(
    equation: JaxprEqn,
    arrays: list[jax.Array],
    views: list[View | None],
    taps: Iterator[jax.Array],
) -> tuple[Sequence[jax.Array], list[jax.Array]]:
    """An equation with the taps of the products in it, and their x."""
    search = Search([], set())
    search.at(equation, views, ())
    own = list(islice(taps, len(search.products)))
    if not own:
        return evaluate(equation, arrays), []
    if equation.primitive.name in RECOMPUTED:
        return _recomputed(equation, arrays, views, own)
    if equation.primitive.name == "scan":
        return _scanned(equation, arrays, views, own)
    return _product(equation, arrays, views, own[0])


def _product(
    equation: JaxprEqn, arrays: list[jax.Array], views: list[View | None], tap: jax.Array
) -> tuple[Sequence[jax.Array], list[jax.Array]]:
    product = product_at(equation, views, ())
    assert product is not None
    # The weight's gradient comes from x and the cotangent of y.
    held = [
        array if view is None else jax.lax.stop_gradient(array)
        for view, array in zip(views, arrays, strict=True)
    ]
    [y] = evaluate(equation, held)
    x = arrays[0 if product.left else 1]
    return [y + product.output(tap, y.shape)], [product.matrix(x)]


def _recomputed(
    equation: JaxprEqn, arrays: list[jax.Array], views: list[View | None], taps: list[jax.Array]
) -> tuple[Sequence[jax.Array], list[jax.Array]]:
    """As it was asked to be; of what is inside only x is kept."""
    [program] = inner_programs(equation)

    @partial(jax.checkpoint, policy=equation.params["policy"])
    def inside(
        arrays: list[jax.Array], taps: list[jax.Array]
    ) -> tuple[list[jax.Array], list[jax.Array]]:
        return _with_taps(program, list(map(_seen, arrays, views)), taps)

    return inside(arrays, taps)


def _scanned(
    equation: JaxprEqn, arrays: list[jax.Array], views: list[View | None], taps: list[jax.Array]
) -> tuple[Sequence[jax.Array], list[jax.Array]]:
    """A scan that goes through the taps too [turn, ...], and keeps x of every turn."""
    params = equation.params
    consts, carry, xs = scan_parts(equation, arrays)
    of_consts, _, of_xs = scan_parts(equation, views)
    shared = list(map(_seen, consts, consts_within(of_consts)))

    def turn(carry: list[jax.Array], row: tuple[list, list]) -> tuple[list, tuple[list, list]]:
        xs, taps = row
        slices = list(map(_seen, xs, slices_within(of_xs)))
        outputs, inputs = _with_taps(params["jaxpr"], [*shared, *carry, *slices], taps)
        return outputs[: len(carry)], (outputs[len(carry) :], inputs)

    straight = jax.default_backend() == "cpu" and params["length"] <= STRAIGHT
    options = {name: params[name] for name in ("length", "reverse", "unroll")}
    options |= {"unroll": params["length"]} if straight else {}
    carry, (stacked, inputs) = jax.lax.scan(turn, carry, (xs, taps), **options)
    return [*carry, *stacked], inputs
