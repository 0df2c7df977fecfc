"""Traced programs, walked equation by equation."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, jaxpr_as_fun

INLINED = ("jit", "pjit", "closed_call")  # calls whose inside may be read as if it stood outside
RECOMPUTED = ("remat2", "checkpoint")  # what jax.checkpoint makes, by version

Visit = Callable[[JaxprEqn, list[Any]], Sequence[Any]]


def walk(program: ClosedJaxpr, args: Sequence[Any], visit: Visit) -> list[Any]:
    """The outputs of a program, each of whose equations is left to a visitor.

    Values are whatever the visitor makes of them: arrays, or records that hold more. Only literals
    and the program's own constants are sure to be arrays.

    Args:
      program: traced.
      args: its inputs.
      visit: (equation, inputs) -> outputs. `evaluate` is the one that changes nothing; of a call in
        INLINED the inside can be walked likewise, `walk(equation.params["jaxpr"], inputs, visit)`.
    """
    jaxpr = program.jaxpr
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*program.consts, *args], strict=True))

    def value(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for equation in jaxpr.eqns:
        inputs = [value(atom) for atom in equation.invars]
        outputs = visit(equation, inputs)
        values |= dict(zip(equation.outvars, outputs, strict=True))
    return [value(atom) for atom in jaxpr.outvars]


def evaluate(equation: JaxprEqn, inputs: Sequence[Any]) -> list[Any]:
    """The outputs of any equation of a program, as those of a program of its own."""
    given = {
        atom: value
        for atom, value in zip(equation.invars, inputs, strict=True)
        if not isinstance(atom, Literal)
    }
    alone = Jaxpr((), list(given), list(equation.outvars), [equation], equation.effects)
    return jaxpr_as_fun(ClosedJaxpr(alone, ()))(*given.values())


def inner_programs(equation: JaxprEqn) -> Iterator[ClosedJaxpr]:
    """Programs that are themselves a parameter of an equation: a call's, a loop's body."""
    for parameter in equation.params.values():
        if isinstance(parameter, ClosedJaxpr):
            yield parameter
        elif isinstance(parameter, Jaxpr) and not parameter.constvars:  # of what is recomputed
            yield ClosedJaxpr(parameter, ())


def with_inner(equation: JaxprEqn, change: Callable[[ClosedJaxpr], ClosedJaxpr]) -> JaxprEqn:
    """The equation with every program in it changed, branches too."""

    def changed(parameter: Any) -> Any:
        if isinstance(parameter, ClosedJaxpr):
            return change(parameter)
        if isinstance(parameter, tuple) and any(isinstance(p, ClosedJaxpr) for p in parameter):
            return tuple(changed(part) for part in parameter)
        return parameter

    return equation.replace(params={name: changed(p) for name, p in equation.params.items()})
