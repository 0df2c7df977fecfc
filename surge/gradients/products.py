"""Moments of weight gradients without a batch of weight gradients.

Where a program multiplies an activation x by a weight and gets y = x·w, the weight's gradient for
one example is the product xᵀδ with the cotangent δ of y. One backward pass by the y of all such
places yields every x and δ of a batch; each weight's per-example gradients are then formed a few at
a time, while they are in cache, and summed. Places are found in the traced program, so any model
has them: dense layers, projections, convolutions as patches, tied weights.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun

INLINED = ("jit", "pjit", "closed_call")  # calls whose inside is read as if it stood outside
LAYOUTS = (
    "reshape",
    "transpose",
    "squeeze",
    "convert_element_type",
)  # of a weight on its way to a product
BLOCK = 4  # gradients of single examples formed at once: separate products, which XLA's CPU backend hands to a library
ZERO = (
    1 << 16
)  # what an exact zero counts in the sum that holds signs and zeros; above the most signs in a micro-batch
# Where squared means exceed this many variances, Σg² - n·mean² loses the digits that shifted sums
# keep.
CANCELLING = 10.0


class View(NamedTuple):
    """A value that is leaf `leaf` in another layout."""

    leaf: int
    layout: Callable[[jax.Array], jax.Array]


class Product(NamedTuple):
    """y = x·w: as matrices [T, I] and [I, O], where T counts what meets the weight in one
    example."""

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
        return [index for index, each in enumerate(self.products) if each.view.leaf == leaf]

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
        lambda *args: _run(program, args, _views(program, leaves), meet, read.add)[0],
        *program.in_avals,
    )
    unused = set(range(leaves)) - {each.view.leaf for each in products}
    return Plan(program, products, frozenset(read | unused), _bytes(program.jaxpr))


def _views(program: ClosedJaxpr, leaves: int) -> list[View | None]:
    return [
        View(index, lambda leaf: leaf) if index < leaves else None
        for index in range(len(program.in_avals))
    ]


def _bytes(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        inner = [each.jaxpr for each in equation.params.values() if isinstance(each, ClosedJaxpr)]
        outputs = sum(
            math.prod(var.aval.shape) * var.aval.dtype.itemsize for var in equation.outvars
        )
        total += max([outputs, *map(_bytes, inner)])
    return total


def _run(
    program: ClosedJaxpr,
    args: Sequence[Any],
    views: Sequence[View | None],
    meet: Callable[[Product, jax.Array, jax.Array], jax.Array],
    read: Callable[[int], None],
) -> tuple[list[Any], list[View | None]]:
    """Evaluates a program, with meet(product, x, y) in place of y at every product, and read(leaf)
    at other uses.

    Returns:
      Its outputs, and which of them are views of leaves.
    """
    jaxpr = program.jaxpr
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*program.consts, *args], strict=True))
    known = {var: view for var, view in zip(jaxpr.invars, views, strict=True) if view is not None}

    def value(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    def view(atom: Any) -> View | None:
        return None if isinstance(atom, Literal) else known.get(atom)

    for equation in jaxpr.eqns:
        inputs, seen = (
            [value(atom) for atom in equation.invars],
            [view(atom) for atom in equation.invars],
        )
        name = equation.primitive.name
        if name in INLINED:
            outputs, found = _run(equation.params["jaxpr"], inputs, seen, meet, read)
            known |= {
                var: each
                for var, each in zip(equation.outvars, found, strict=True)
                if each is not None
            }
        elif name in LAYOUTS and seen[0] is not None:
            outputs = [equation.primitive.bind(*inputs, **equation.params)]
            known[equation.outvars[0]] = _laid_out(seen[0], equation)
        elif product := _product(equation, seen):
            held = [
                each if found is None else jax.lax.stop_gradient(each)
                for found, each in zip(seen, inputs, strict=True)
            ]
            y = equation.primitive.bind(*held, **equation.params)
            outputs = [meet(product, inputs[0 if product.left else 1], y)]
        else:
            for each in seen:
                if each is not None:
                    read(each.leaf)
            outputs = evaluate_equation(equation, inputs)
        values |= dict(zip(equation.outvars, outputs, strict=True))
    found = [view(atom) for atom in jaxpr.outvars]
    return [value(atom) for atom in jaxpr.outvars], found


def evaluate_equation(equation: Any, inputs: Sequence[Any]) -> list[Any]:
    """The outputs of any equation of a program for its inputs, as those of a program of its own."""
    given = {
        atom: each
        for atom, each in zip(equation.invars, inputs, strict=True)
        if not isinstance(atom, Literal)
    }
    alone = Jaxpr((), list(given), list(equation.outvars), [equation], equation.effects)
    return jaxpr_as_fun(ClosedJaxpr(alone, ()))(*given.values())


def _laid_out(view: View, equation: Any) -> View:
    if equation.primitive.name == "convert_element_type":  # sums are kept in a width of their own
        return view
    return View(
        view.leaf, lambda leaf: equation.primitive.bind(view.layout(leaf), **equation.params)
    )


def _product(equation: Any, seen: Sequence[View | None]) -> Product | None:
    """The equation as a product of an activation with a weight, if it is one."""
    if equation.primitive.name != "dot_general" or sum(each is not None for each in seen) != 1:
        return None
    summed, batched = equation.params["dimension_numbers"]
    if batched[0]:
        return None
    left = seen[0] is None
    x, w = (equation.invars[index].aval.shape for index in ((0, 1) if left else (1, 0)))
    inner, over = summed if left else summed[::-1]
    free = [axis for axis in range(len(w)) if axis not in over]
    return Product(
        view=next(each for each in seen if each is not None),
        shape=w,
        axes=(*over, *free),
        inner=tuple(inner),
        left=left,
        rows=math.prod(size for axis, size in enumerate(x) if axis not in inner),
        columns=math.prod(w[axis] for axis in free),
        dtype=equation.outvars[0].aval.dtype,
    )


class Tapped(NamedTuple):
    """Gradients of the leaves read outside products, by leaf [n, ...]; x [n, T, I] and δ [n, T, O]
    of each product."""

    gradients: dict[int, jax.Array]
    inputs: list[jax.Array]
    cotangents: list[jax.Array]


def tapped_gradients(plan: Plan, params: Any, examples: Any) -> Tapped:
    """One backward pass of a batch that differentiates by the outputs of products in place of their
    weights."""
    leaves = jax.tree.leaves(params)
    n = jax.tree.leaves(examples)[0].shape[0]
    taps = [jnp.zeros((n, each.rows, each.columns), each.dtype) for each in plan.products]
    views = _views(plan.program, len(leaves))

    def loss(
        read: dict[int, jax.Array], taps: list[jax.Array], example: Any
    ) -> tuple[jax.Array, list[jax.Array]]:
        inputs: list[jax.Array] = []

        def meet(product: Product, x: jax.Array, y: jax.Array) -> jax.Array:
            inputs.append(product.matrix(x))
            return y + product.output(taps[len(inputs) - 1], y.shape)

        filled = [read.get(index, leaf) for index, leaf in enumerate(leaves)]
        (value,), _ = _run(
            plan.program, [*filled, *jax.tree.leaves(example)], views, meet, lambda _: None
        )
        return value, inputs

    gradient = jax.vmap(jax.grad(loss, (0, 1), has_aux=True), (None, 0, 0))
    (found, cotangents), inputs = gradient(
        {index: leaves[index] for index in plan.read}, taps, examples
    )
    return Tapped(found, inputs, cotangents)


class LeafSums(NamedTuple):
    """Of n gradients of one leaf: mean, sum of squared deviations, sign sum, zeros in its layout,
    and norms² [n]."""

    mean: jax.Array
    square: jax.Array
    sign_sum: jax.Array
    zeros: jax.Array
    square_norms: jax.Array


def leaf_sums(plan: Plan, leaf: int, like: jax.Array, tapped: Tapped) -> LeafSums:
    """Sums over the per-example gradients of a leaf that is in at least one product."""
    places = plan.of(leaf)
    products = [plan.products[index] for index in places]
    pairs = [(tapped.inputs[index], tapped.cotangents[index]) for index in places]
    if not plan.plain(leaf):
        parts = (pairs, [tapped.gradients[leaf]] if leaf in plan.read else [])

        def gradient(part: Any) -> jax.Array:
            pairs, read = part
            shares = [
                each.place(_weight_gradient(*pair), like)
                for each, pair in zip(products, pairs, strict=True)
            ]
            return functools.reduce(jnp.add, [*shares, *read])

        return _streamed(gradient, parts)
    inputs, cotangents = pairs[0]
    streamed = lambda: _streamed(lambda pair: _weight_gradient(*pair), (inputs, cotangents))  # noqa: E731
    sums = _outer(inputs[:, 0], cotangents[:, 0], streamed) if products[0].rows == 1 else streamed()

    def placed(matrix: jax.Array) -> jax.Array:
        return products[0].place(matrix.astype(jnp.result_type(float)), like).astype(matrix.dtype)

    return LeafSums(
        placed(sums.mean),
        placed(sums.square),
        placed(sums.sign_sum),
        placed(sums.zeros),
        sums.square_norms,
    )


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
        found = [
            gradient(jax.tree.map(lambda leaf, index=index: leaf[index], block))
            for index in range(count)
        ]
        first, second, signs = sums
        for each in found:
            deviation = each - centre
            first, second, signs = (
                first + deviation,
                second + deviation**2,
                signs + _sign_code(each),
            )
        return (first, second, signs), jnp.stack([(each**2).sum() for each in found])

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
    """Sign and zero of each element in one number, so that one pass over the gradient counts
    both."""
    code = jnp.where(gradient > 0, 1, jnp.where(gradient < 0, -1, 0))
    return jnp.where(gradient == 0, ZERO, code).astype(jnp.int32)


def _outer(inputs: jax.Array, cotangents: jax.Array, otherwise: Callable[[], LeafSums]) -> LeafSums:
    """Sums over n outer products of inputs [n, I] and cotangents [n, O], without forming one of
    them.

    Squares, signs and zeros of x ⊗ δ are outer products too: (x²)ᵀδ², sign(x)ᵀ sign(δ), |sign
    x|ᵀ|sign δ|.
    """
    n = len(inputs)
    x, d = (
        each.astype(jnp.promote_types(each.dtype, jnp.float32)) for each in (inputs, cotangents)
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
    some = lambda values: (values != 0).astype(values.dtype)  # noqa: E731

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
