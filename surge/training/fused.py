"""A step whose update happens inside the backward pass, as LOMO and AdaLomo do (arXiv 2310.10195).

Of a model that is a stack of alike blocks the backward pass goes from the last to the first: it
recomputes a block, updates it at once, and hands down the cotangent of its input only. One block's
gradient lives at a time, where a plain step holds all of them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from surge import optimizers

Optimizer = optax.GradientTransformation


class Stack(NamedTuple):
    """A loss as a stack of alike blocks, of one batch.

    Attributes:
      begin: (outer parameters, batch) -> what the first block reads.
      block: (parameters of one block, what it reads) -> what the next one reads, of equal shape.
      finish: (outer parameters, what the last block gives, batch) -> loss.
    """

    begin: Callable[[Any, Any], Any]
    block: Callable[[Any, Any], Any]
    finish: Callable[[Any, Any, Any], jax.Array]


class Parts(NamedTuple):
    """Parameters, or their optimizer's state: of all that is no block, and of blocks [L, ...]."""

    outer: Any
    blocks: Any


def init_state(transform: Optimizer, params: Parts) -> Parts:
    """A state for each block, and one for the outer parameters."""
    return Parts(transform.init(params.outer), jax.vmap(transform.init)(params.blocks))


def fused_step(stack: Stack, transform: Optimizer) -> Callable[..., tuple[Parts, Parts, jax.Array]]:
    """step(params, state, batch) -> (params, state, loss), a block updated as soon as it can be.

    Donate params and state, so that blocks are overwritten where they lie. A transformation sees
    one block at a time: anything that spans all of them, like a clip by the global norm, would take
    a pass of its own.
    """

    def step(params: Parts, state: Parts, batch: Any) -> tuple[Parts, Parts, jax.Array]:
        states, last = _forward(stack, params, batch)
        loss, back = jax.vjp(lambda outer, x: stack.finish(outer, x, batch), params.outer, last)
        outer, cotangent = back(jnp.ones_like(loss))

        def down(carry: tuple[Any, Any], at: tuple[jax.Array, Any]) -> tuple[Any, None]:
            cotangent, (blocks, held) = carry
            index, read = at
            own, own_state = _at(blocks, index), _at(held, index)
            cotangent, gradient = _backward(stack, own, read, cotangent)
            moved, new_state = _updated(transform, gradient, own_state, own)
            overwritten = _put(blocks, moved, index), _put(held, new_state, index)
            return (cotangent, overwritten), None

        depth = jax.tree.leaves(params.blocks)[0].shape[0]
        carry = cotangent, (params.blocks, state.blocks)
        (cotangent, (blocks, held)), _ = jax.lax.scan(
            down, carry, (jnp.arange(depth), states), reverse=True
        )
        gradient = _outer(stack, params.outer, batch, cotangent, outer)
        moved, outer_state = _updated(transform, gradient, state.outer, params.outer)
        return Parts(moved, blocks), Parts(outer_state, held), loss

    return step


def plain_step(stack: Stack, transform: Optimizer) -> Callable[..., tuple[Parts, Parts, jax.Array]]:
    """The same step with all gradients first, then all updates: what the fused one is held to."""

    def step(params: Parts, state: Parts, batch: Any) -> tuple[Parts, Parts, jax.Array]:
        states, last = _forward(stack, params, batch)
        loss, back = jax.vjp(lambda outer, x: stack.finish(outer, x, batch), params.outer, last)
        outer, cotangent = back(jnp.ones_like(loss))

        def down(cotangent: Any, at: tuple[Any, Any]) -> tuple[Any, Any]:
            return _backward(stack, *at, cotangent)

        cotangent, gradients = jax.lax.scan(down, cotangent, (params.blocks, states), reverse=True)
        gradient = _outer(stack, params.outer, batch, cotangent, outer)
        moved, outer_state = _updated(transform, gradient, state.outer, params.outer)
        blocks, held = jax.lax.map(
            lambda each: _updated(transform, *each), (gradients, state.blocks, params.blocks)
        )
        return Parts(moved, blocks), Parts(outer_state, held), loss

    return step


def _forward(stack: Stack, params: Parts, batch: Any) -> tuple[Any, Any]:
    """What each block reads [L, ...], and what the last one gives."""

    def up(read: Any, block: Any) -> tuple[Any, Any]:
        return stack.block(block, read), read

    last, states = jax.lax.scan(up, stack.begin(params.outer, batch), params.blocks)
    return states, last


def _backward(stack: Stack, block: Any, read: Any, cotangent: Any) -> tuple[Any, Any]:
    """The cotangent of what a block reads, and its gradient."""
    _, back = jax.vjp(stack.block, block, read)
    gradient, below = back(cotangent)
    return below, gradient


def _outer(stack: Stack, outer: Any, batch: Any, cotangent: Any, above: Any) -> Any:
    """The gradient of the outer parameters, from both ends of the stack."""
    _, back = jax.vjp(lambda outer: stack.begin(outer, batch), outer)
    return jax.tree.map(jnp.add, back(cotangent)[0], above)


def _updated(transform: Optimizer, gradient: Any, state: Any, params: Any) -> tuple[Any, Any]:
    # Behind a barrier the compiler rounds an update alike, whatever stands before it.
    gradient, state, params = jax.lax.optimization_barrier((gradient, state, params))
    updates, state = optimizers.update(transform, gradient, state, params)
    return optax.apply_updates(params, updates), state


def _at(tree: Any, index: jax.Array) -> Any:
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, 0, False), tree)


def _put(tree: Any, part: Any, index: jax.Array) -> Any:
    """An update of a slice, which the compiler does in place."""

    def put(whole: jax.Array, part: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_index_in_dim(whole, part, index, 0)

    return jax.tree.map(put, tree, part)
