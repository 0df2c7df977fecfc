"""Programs in the form that XLA's CPU backend runs fastest.

Its fast library takes a product of matrices only where the left one is summed over its last axis. A
weight's gradient xᵀδ and attention's by keys and values sum over the first, and fall to one that
packs matrices at half the speed. An array is divided by one number element by element, as Adam's
two corrections of bias ask.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, JaxprEqn

from surge.gradients.jaxpr import evaluate, walk, with_inner


def rewritten(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function to rounding, faster.

    Products that sum over a long leading axis become products of a transpose, and divisions of an
    array by one number products with its reciprocal.

    All that the function calls is rewritten, also inside loops and branches. Products of few rows
    stay as they are: a transpose would cost what it saves.

    Args:
      function: of pytrees of arrays, traceable.
    """

    def faster(*args: Any) -> Any:
        program, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
        outputs = _run(program, jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    return faster


def _run(program: ClosedJaxpr, args: Sequence[Any]) -> list[Any]:
    return walk(program, args, _faster)


def _faster(equation: JaxprEqn, inputs: list[Any]) -> Sequence[Any]:
    name = equation.primitive.name
    if name == "dot_general":
        return [_product(equation, *inputs)]
    if name == "div" and _by_one_number(*inputs):
        return [inputs[0] * (1 / inputs[1])]
    return evaluate(with_inner(equation, _rewritten_program), inputs)


def _rewritten_program(program: ClosedJaxpr) -> ClosedJaxpr:
    return jax.make_jaxpr(lambda *args: _run(program, args))(*program.in_avals)


def _product(equation: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    (summed_x, summed_y), (batched_x, batched_y) = equation.params["dimension_numbers"]
    kept_x = _others(x, summed_x, batched_x)
    kept_y = _others(y, summed_y, batched_y)
    batch = _sizes(x, batched_x)
    length = math.prod(_sizes(x, summed_x))
    rows = math.prod(_sizes(x, kept_x))
    columns = math.prod(_sizes(y, kept_y))

    already_last = tuple(summed_x) == tuple(range(x.ndim - len(summed_x), x.ndim))
    if already_last or not kept_x or not kept_y or length < min(rows, columns):
        return equation.primitive.bind(x, y, **equation.params)

    left = x.transpose(*batched_x, *summed_x, *kept_x).reshape(*batch, length, rows)
    right = y.transpose(*batched_y, *summed_y, *kept_y).reshape(*batch, length, columns)
    turned = columns < rows  # it is the narrower matrix that is transposed
    if turned:
        left, right = right, left
    # Without barriers the compiler folds the transposes back into the product.
    left = jax.lax.optimization_barrier(left.swapaxes(-1, -2))
    axes = tuple(range(len(batch)))
    numbers = ((len(batch) + 1,), (len(batch),)), (axes, axes)
    product = equation.primitive.bind(
        left, right, **equation.params | {"dimension_numbers": numbers}
    )
    product = jax.lax.optimization_barrier(product)
    if turned:
        product = product.swapaxes(-1, -2)
    return product.reshape(*batch, *_sizes(x, kept_x), *_sizes(y, kept_y))


def _others(array: jax.Array, *named: Sequence[int]) -> list[int]:
    """The axes of an array that are in none of `named`."""
    return [axis for axis in range(array.ndim) if all(axis not in axes for axes in named)]


def _sizes(array: jax.Array, axes: Sequence[int]) -> list[int]:
    return [array.shape[axis] for axis in axes]


def _by_one_number(dividend: Any, divisor: Any) -> bool:
    floating = jnp.issubdtype(jnp.result_type(divisor), jnp.floating)
    return floating and jnp.ndim(divisor) == 0 < jnp.ndim(dividend)
