"""The GPT's loss in the parts that a fused step walks through: what is no block, and the blocks."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from surge.tasks.gpt import Block, FeedForward, Size


def split(params: Any, depth: int) -> tuple[Any, Any]:
    """Parameters of `gpt.GPT` as (those of no block, those of blocks [depth, ...])."""
    whole = params["params"]
    names = [f"h_{index}" for index in range(depth)]
    outer = {name: value for name, value in whole.items() if name not in names}
    blocks = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[whole[name] for name in names])
    return outer, blocks


def parts(size: Size) -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
    """begin, block and finish of the mean loss of windows [n, T + 1], in float32.

    begin(outer, windows) -> states [n, T, width]; block(own, states) -> states;
    finish(outer, states, windows) -> loss.
    """
    layer = Block(size, jnp.float32, "xla", FeedForward)

    def begin(outer: Any, windows: jax.Array) -> jax.Array:
        length = windows.shape[1] - 1
        return outer["wte"]["embedding"][windows[:, :-1]] + outer["wpe"][:length]

    def block(own: Any, states: jax.Array) -> jax.Array:
        return jax.vmap(lambda one: layer.apply({"params": own}, one)[0])(states)

    def finish(outer: Any, states: jax.Array, windows: jax.Array) -> jax.Array:
        normed = nn.LayerNorm(epsilon=1e-5).apply({"params": outer["ln_f"]}, states)
        logits = jnp.asarray(normed) @ outer["wte"]["embedding"].T
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, 1:])
        return losses.mean()

    return begin, block, finish
