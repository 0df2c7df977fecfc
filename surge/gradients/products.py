"""Where a loss multiplies activations by weights, found in its traced program.

Where a program gets y = x·w from an activation x and a weight w, the weight's gradient for one
example is the product xᵀδ with the cotangent δ of y. Any model has such places: dense layers,
projections, convolutions as patches, tied weights, layers that are recomputed or run by a scan over
their stacked weights. `surge.gradients.taps` yields every x and δ.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, JaxprEqn

from surge.gradients.jaxpr import INLINED, RECOMPUTED, inner_programs, walk

# What may happen to a weight on its way to a product.
LAYOUTS = ("reshape", "transpose", "squeeze", "convert_element_type")


class View(NamedTuple):
    """A value that is leaf `leaf` in another layout.

    Attributes:
      leaf: which.
      layout: of the leaf, as an array [*turns of the scans that slice it, *shape of the value].
      sliced: of each scan around the value, outermost first, whether each turn has a slice of its
        own; else all turns share the value.
    """

    leaf: int
    layout: Callable[[jax.Array], jax.Array]
    sliced: tuple[bool, ...] = ()

    def within(self, sliced: bool) -> "View":
        """The same in the body of a scan."""
        return self._replace(sliced=(*self.sliced, sliced))


class Product(NamedTuple):
    """y = x·w: as matrices [T, I] and [I, O], where T counts what meets the weight in one example.

    In scans around it, every turn has its own x and y.
    """

    view: View
    turns: tuple[int, ...]  # of the scans around it, outermost first
    shape: tuple[int, ...]  # of w
    axes: tuple[int, ...]  # of w: those summed over, then the others
    inner: tuple[int, ...]  # axes of x that are summed over
    left: bool  # x is the left operand
    rows: int  # T
    columns: int  # O
    dtype: Any  # of y

    @property
    def slices(self) -> tuple[int, ...]:
        """Turns of the scans whose every turn multiplies by a slice of the leaf."""
        return tuple(
            turns for turns, sliced in zip(self.turns, self.view.sliced, strict=True) if sliced
        )

    @property
    def meetings(self) -> int:
        """Rows that meet one slice of the leaf: those of all turns that share it."""
        return self.rows * math.prod(self.turns) // math.prod(self.slices)

    def matrix(self, x: jax.Array) -> jax.Array:
        """x of one turn as [T, I]."""
        outer = [axis for axis in range(x.ndim) if axis not in self.inner]
        return x.transpose(*outer, *self.inner).reshape(self.rows, -1)

    def output(self, tap: jax.Array, shape: Sequence[int]) -> jax.Array:
        """A tap [T, O] of one turn in the layout of y."""
        free = len(self.axes) - len(self.inner)
        if self.left:
            return tap.reshape(shape)
        return jnp.moveaxis(tap.reshape(*shape[free:], *shape[:free]), range(-free, 0), range(free))

    def factor(self, matrices: jax.Array) -> jax.Array:
        """Matrices [*turns, T, K] as [slice, meetings, K], or [meetings, K] of an unsliced leaf."""
        sliced = [axis for axis, one in enumerate(self.view.sliced) if one]
        ahead = jnp.moveaxis(matrices, sliced, range(len(sliced)))
        slices = [math.prod(self.slices)] if sliced else []
        return ahead.reshape(*slices, self.meetings, matrices.shape[-1])

    def place(self, matrix: jax.Array, leaf: Any) -> jax.Array:
        """A matrix [I, O], or one for each slice, in the layout of the leaf."""
        slices = self.slices
        order = [len(slices) + axis for axis in np.argsort(self.axes)]
        weight = matrix.reshape(*slices, *[self.shape[axis] for axis in self.axes])
        weight = weight.transpose(*range(len(slices)), *order)
        like = jax.ShapeDtypeStruct(leaf.shape, matrix.dtype)
        return jax.linear_transpose(self.view.layout, like)(weight)[0]


class Plan(NamedTuple):
    """A loss as a program.

    Attributes:
      program: of the loss of one example.
      products: where a weight is one factor, in order.
      read: leaves that are read elsewhere too, or only.
      activations: bytes that the gradient of one example holds.
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
    leaves = len(jax.tree.leaves(params))
    views = [View(index, lambda leaf: leaf) for index in range(leaves)]
    others = [None] * (len(program.in_avals) - leaves)
    search = Search([], set())
    search.through(program, [*views, *others], ())
    unused = set(range(leaves)) - {product.view.leaf for product in search.products}
    held = _held(program)
    return Plan(program, search.products, frozenset(search.read | unused), sum(held))


class Search(NamedTuple):
    """Products found so far, in order, and leaves that are read elsewhere."""

    products: list[Product]
    read: set[int]

    def through(
        self, program: ClosedJaxpr, views: Sequence[View | None], turns: tuple[int, ...]
    ) -> list[View | None]:
        """Looks through a program, given what is known of its inputs; what is of its outputs."""

        def visit(equation: JaxprEqn, inputs: list[Any]) -> Sequence[View | None]:
            return self.at(equation, [_view(value) for value in inputs], turns)

        return [_view(value) for value in walk(program, views, visit)]

    def at(
        self, equation: JaxprEqn, views: Sequence[View | None], turns: tuple[int, ...]
    ) -> Sequence[View | None]:
        """Looks at one equation and what it calls."""
        nothing = [None] * len(equation.outvars)
        name = equation.primitive.name
        if not any(views):
            return nothing
        if name in INLINED:
            return self.through(equation.params["jaxpr"], views, turns)
        if name in RECOMPUTED:
            [program] = inner_programs(equation)
            self._read(self.through(program, views, turns))
        elif name == "scan":
            consts, carry, xs = scan_parts(equation, views)
            self._read(carry)
            inside = [*consts_within(consts), *[None] * len(carry), *slices_within(xs)]
            turns = (*turns, equation.params["length"])
            self._read(self.through(equation.params["jaxpr"], inside, turns))
        elif name in LAYOUTS and views[0] is not None:
            return [laid_out(views[0], equation)]
        elif product := product_at(equation, views, turns):
            self.products.append(product)
        else:
            self._read(views)
        return nothing

    def _read(self, views: Sequence[View | None]) -> None:
        self.read.update(view.leaf for view in views if view is not None)


def _view(value: Any) -> View | None:
    """What is known of a value of the search: literals and constants are arrays."""
    return value if isinstance(value, View) else None


def scan_parts(equation: JaxprEqn, values: Sequence[Any]) -> tuple[list[Any], list[Any], list[Any]]:
    """What a scan is given: constants, the first carry, and what it goes through."""
    if "ft_in" in equation.params:  # JAX 0.12 tells them apart by a tree
        consts, carry, _ = (len(part) for part in equation.params["ft_in"].unpack())
    else:
        consts = equation.params["num_consts"]
        carry = equation.params["num_carry"]
    start = consts + carry
    return list(values[:consts]), list(values[consts:start]), list(values[start:])


def consts_within(views: Sequence[View | None]) -> list[View | None]:
    """Constants of a scan, in its body."""
    return [view and view.within(False) for view in views]


def slices_within(views: Sequence[View | None]) -> list[View | None]:
    """What a scan goes through, in its body."""
    return [view and view.within(True) for view in views]


def laid_out(view: View, equation: JaxprEqn) -> View:
    """What becomes of a view by an equation of LAYOUTS."""
    if equation.primitive.name == "convert_element_type":  # sums are kept in a width of their own
        return view

    def change(array: jax.Array) -> jax.Array:
        return equation.primitive.bind(array, **equation.params)

    for _ in range(sum(view.sliced)):
        change = jax.vmap(change)
    return view._replace(layout=lambda leaf: change(view.layout(leaf)))


def product_at(
    equation: Any, views: Sequence[View | None], turns: tuple[int, ...]
) -> Product | None:
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
        turns=turns,
        shape=w,
        axes=(*over, *free),
        inner=tuple(inner),
        left=left,
        rows=math.prod(size for axis, size in enumerate(x) if axis not in inner),
        columns=math.prod(w[axis] for axis in free),
        dtype=equation.outvars[0].aval.dtype,
    )


class Held(NamedTuple):
    """Bytes that a gradient holds of one example: all the time, and what is recomputed at once."""

    kept: int
    recomputed: int


def _held(program: ClosedJaxpr) -> Held:
    """Of all that a program computes; of one inside another, where that is more than it returns."""
    total = Held(0, 0)
    for equation in program.jaxpr.eqns:
        kept = _bytes(equation.outvars)
        recomputed = 0
        for inner in inner_programs(equation):
            inside = _held(inner)
            recomputed = max(recomputed, inside.recomputed)
            if equation.primitive.name in RECOMPUTED:  # it keeps the factors of its products
                recomputed = max(recomputed, inside.kept + inside.recomputed)
                kept += sum(
                    _bytes([*one.invars, *one.outvars])
                    for one in inner.jaxpr.eqns
                    if one.primitive.name == "dot_general"
                )
            else:
                kept = max(kept, inside.kept * equation.params.get("length", 1))
        total = Held(total.kept + kept, max(total.recomputed, recomputed))
    return total


def _bytes(variables: Sequence[Any]) -> int:
    return sum(math.prod(one.aval.shape) * one.aval.dtype.itemsize for one in variables)
