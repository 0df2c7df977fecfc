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
    """The same function to rounding, with products that sum over a long leading axis as products of
    a transpose, and with reciprocals for divisions of an array by one number.

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
    free_x, free_y = (
        [axis for axis in range(each.ndim) if axis not in (*summed, *batched)]
        for each, summed, batched in ((x, summed_x, batched_x), (y, summed_y, batched_y))
    )
    batch, kept_x, kept_y, over = (
        [each.shape[axis] for axis in axes]
        for each, axes in ((x, batched_x), (x, free_x), (y, free_y), (x, summed_x))
    )
    length, rows, columns = math.prod(over), math.prod(kept_x), math.prod(kept_y)
    last = tuple(summed_x) == tuple(range(x.ndim - len(summed_x), x.ndim))
    if last or not kept_x or not kept_y or length < min(rows, columns):
        return equation.primitive.bind(x, y, **equation.params)
    left = x.transpose(*batched_x, *summed_x, *free_x).reshape(*batch, length, rows)
    right = y.transpose(*batched_y, *summed_y, *free_y).reshape(*batch, length, columns)
    turned = columns < rows  # it is the narrower matrix that is transposed
    if turned:
        left, right = right, left
    # Without barriers the compiler folds the transposes back into the product.
    left = jax.lax.optimization_barrier(left.swapaxes(-1, -2))
    axes = tuple(range(len(batch)))
    numbers = ((len(batch) + 1,), (len(batch),)), (axes, axes)
    found = equation.primitive.bind(left, right, **equation.params | {"dimension_numbers": numbers})
    found = jax.lax.optimization_barrier(found)
    return (found.swapaxes(-1, -2) if turned else found).reshape(*batch, *kept_x, *kept_y)


def _by_one_number(dividend: Any, divisor: Any) -> bool:
    return jnp.ndim(divisor) == 0 < jnp.ndim(dividend) and jnp.issubdtype(
        jnp.result_type(divisor), jnp.floating
    )
