"""Moments of weight gradients without a batch of weight gradients.

Where a program multiplies an activation x by a weight and gets y = x·w, the weight's gradient for
one example is the product xᵀδ with the cotangent δ of y. One backward pass by the y of all such
places yields every x and δ of a batch; each weight's per-example gradients are then formed a few at
a time, while they are in cache, and summed. Places are found in the traced program, so any model
has them: dense layers, projections, convolutions as patches, tied weights.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, JaxprEqn

from surge.gradients.jaxpr import INLINED, evaluate, inner_programs, walk

# What may happen to a weight on its way to a product.
LAYOUTS = ("reshape", "transpose", "squeeze", "convert_element_type")


class View(NamedTuple):
    """A value that is leaf `leaf` in another layout."""

    leaf: int
    layout: Callable[[jax.Array], jax.Array]


class Product(NamedTuple):
    """y = x·w as matrices [T, I] and [I, O]; T counts what meets the weight in one example."""

    view: View
    shape: tuple[int, ...]  # of w
    axes: tuple[int, ...]  # of w: those summed over, then the others
    inner: tuple[int, ...]  # axes of x that are summed over
    left: bool  # x is the left operand
    rows: int  # T
    columns: int  # O
    dtype: Any  # of y

    def matrix(self, x: jax.Array) -> jax.Array:
        """x as [T, I]."""
        outer = [axis for axis in range(x.ndim) if axis not in self.inner]
        return x.transpose(*outer, *self.inner).reshape(self.rows, -1)

    def output(self, tap: jax.Array, shape: Sequence[int]) -> jax.Array:
        """A tap [T, O] in the layout of y."""
        free = len(self.axes) - len(self.inner)
        if self.left:
            return tap.reshape(shape)
        return jnp.moveaxis(tap.reshape(*shape[free:], *shape[:free]), range(-free, 0), range(free))

    def place(self, matrix: jax.Array, leaf: Any) -> jax.Array:
        """A matrix [I, O] in the layout of the leaf."""
        weight = matrix.reshape([self.shape[axis] for axis in self.axes]).transpose(
            np.argsort(self.axes)
        )
        return jax.linear_transpose(
            self.view.layout, jax.ShapeDtypeStruct(leaf.shape, matrix.dtype)
        )(weight)[0]


class Plan(NamedTuple):
    """A loss as a program.

    Attributes:
      program: of the loss of one example.
      products: where a weight is one factor, in order.
      read: leaves that are read elsewhere too, or only.
      activations: bytes of all that is computed for one example.
    """

    program: ClosedJaxpr
    products: list[Product]
    read: frozenset[int]
    activations: int

    def of(self, leaf: int) -> list[int]:
        """Positions of a leaf's products."""
        return [at for at, product in enumerate(self.products) if product.view.leaf == leaf]

    def plain(self, leaf: int) -> bool:
        """Whether the leaf is used in one product and nowhere else."""
        return len(self.of(leaf)) == 1 and leaf not in self.read


def plan(loss_fn: Callable[[Any, Any], jax.Array], params: Any, example: Any) -> Plan:
    """Finds the products in a loss.

    Args:
      loss_fn: (params, example) -> scalar.
      params: pytree of arrays or their shapes.
      example: one example or its shapes.
    """
    program = jax.make_jaxpr(loss_fn)(params, example)
    products: list[Product] = []
    read: set[int] = set()

    def meet(product: Product, x: jax.Array, y: jax.Array) -> jax.Array:
        products.append(product)
        return y

    leaves = len(jax.tree.leaves(params))
    jax.eval_shape(
        lambda *args: _evaluate(program, args, leaves, meet, read.add), *program.in_avals
    )
    unused = set(range(leaves)) - {product.view.leaf for product in products}
    return Plan(program, products, frozenset(read | unused), _bytes(program))


def _bytes(program: ClosedJaxpr) -> int:
    """Of all that a program computes; of one inside another, where that is more than it returns."""
    total = 0
    for equation in program.jaxpr.eqns:
        outputs = sum(
            math.prod(var.aval.shape) * var.aval.dtype.itemsize for var in equation.outvars
        )
        total += max([outputs, *map(_bytes, inner_programs(equation))])
    return total


class Seen(NamedTuple):
    """A value of which it is known that it is a leaf in another layout."""

    array: jax.Array
    view: View


def _view(value: Any) -> View | None:
    return value.view if isinstance(value, Seen) else None


def _array(value: Any) -> Any:
    return value.array if isinstance(value, Seen) else value


def _evaluate(
    program: ClosedJaxpr,
    args: Sequence[Any],
    leaves: int,
    meet: Callable[[Product, jax.Array, jax.Array], jax.Array],
    read: Callable[[int], None],
) -> jax.Array:
    """The loss, with meet(product, x, y) in place of y at every product.

    And with read(leaf) at other uses of a leaf; the first `leaves` of args are the leaves.
    """

    def visit(equation: JaxprEqn, inputs: list[Any]) -> Sequence[Any]:
        if equation.primitive.name in INLINED:
            return walk(equation.params["jaxpr"], inputs, visit)
        arrays = [_array(value) for value in inputs]
        views = [_view(value) for value in inputs]
        if equation.primitive.name in LAYOUTS and views[0] is not None:
            laid_out = equation.primitive.bind(*arrays, **equation.params)
            return [Seen(laid_out, _laid_out(views[0], equation))]
        if product := _product(equation, views):
            # The weight's gradient comes from x and the cotangent of y.
            held = [
                array if view is None else jax.lax.stop_gradient(array)
                for view, array in zip(views, arrays, strict=True)
            ]
            y = equation.primitive.bind(*held, **equation.params)
            return [meet(product, arrays[0 if product.left else 1], y)]
        for view in views:
            if view is not None:
                read(view.leaf)
        return evaluate(equation, arrays)

    seen = [Seen(leaf, View(index, lambda leaf: leaf)) for index, leaf in enumerate(args[:leaves])]
    [loss] = walk(program, [*seen, *args[leaves:]], visit)
    return _array(loss)


def _laid_out(view: View, equation: Any) -> View:
    if equation.primitive.name == "convert_element_type":  # sums are kept in a width of their own
        return view
    return View(
        view.leaf, lambda leaf: equation.primitive.bind(view.layout(leaf), **equation.params)
    )


def _product(equation: Any, views: Sequence[View | None]) -> Product | None:
    """The equation as a product of an activation with a weight, if it is one."""
    weights = [view for view in views if view is not None]
    if equation.primitive.name != "dot_general" or len(weights) != 1:
        return None
    summed, batched = equation.params["dimension_numbers"]
    if batched[0]:
        return None
    left = views[0] is None
    x, w = (equation.invars[index].aval.shape for index in ((0, 1) if left else (1, 0)))
    inner, over = summed if left else summed[::-1]
    free = [axis for axis in range(len(w)) if axis not in over]
    return Product(
        view=weights[0],
        shape=w,
        axes=(*over, *free),
        inner=tuple(inner),
        left=left,
        rows=math.prod(size for axis, size in enumerate(x) if axis not in inner),
        columns=math.prod(w[axis] for axis in free),
        dtype=equation.outvars[0].aval.dtype,
    )


class Tapped(NamedTuple):
    """What one backward pass of a batch gives.

    Gradients of the leaves read outside products, by leaf [n, ...]; x [n, T, I] and δ [n, T, O] of
    each product.
    """

    gradients: dict[int, jax.Array]
    inputs: list[jax.Array]
    cotangents: list[jax.Array]


def tapped_gradients(plan: Plan, params: Any, examples: Any) -> Tapped:
    """One backward pass of a batch, by the outputs of products in place of their weights."""
    leaves = jax.tree.leaves(params)
    n = jax.tree.leaves(examples)[0].shape[0]
    taps = [
        jnp.zeros((n, product.rows, product.columns), product.dtype) for product in plan.products
    ]

    def loss(
        read: dict[int, jax.Array], taps: list[jax.Array], example: Any
    ) -> tuple[jax.Array, list[jax.Array]]:
        inputs: list[jax.Array] = []

        def meet(product: Product, x: jax.Array, y: jax.Array) -> jax.Array:
            inputs.append(product.matrix(x))
            return y + product.output(taps[len(inputs) - 1], y.shape)

        filled = [read.get(index, leaf) for index, leaf in enumerate(leaves)]
        args = [*filled, *jax.tree.leaves(example)]
        value = _evaluate(plan.program, args, len(leaves), meet, lambda _: None)
        return value, inputs

    gradient = jax.vmap(jax.grad(loss, (0, 1), has_aux=True), (None, 0, 0))
    read = {index: leaves[index] for index in plan.read}
    (gradients, cotangents), inputs = gradient(read, taps, examples)
    return Tapped(gradients, inputs, cotangents)
