"""Windows of tokens: what a language model draws, and what its loss is reported on."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from surge.tasks.text import text_tokens

HELD_OUT = 20  # the last twentieth of a text is never trained on


def draw_window(data: dict[str, Any], key: jax.Array) -> jax.Array:
    """A uniformly drawn window; data is {"tokens": [n], "window": [length] of anything}."""
    tokens = data["tokens"]
    length = data["window"].shape[0]
    start = jax.random.randint(key, (), 0, tokens.shape[0] - length + 1)
    return jax.lax.dynamic_slice(jnp.asarray(tokens), (start,), (length,)).astype(jnp.int32)


def streamed_window(tokens: np.ndarray, length: int) -> Callable[[Any, jax.Array], jax.Array]:
    """A draw from tokens that stay on the host, memory-mapped.

    A step moves only its own windows to the device. Starts are 64-bit, so a text may be of any
    size; the host is called once for a whole (micro-)batch of all lanes.
    """

    def read(bits: Any) -> np.ndarray:
        high, low = np.moveaxis(np.asarray(bits).astype(np.uint64), -1, 0)
        start = ((high << np.uint64(32)) | low) % np.uint64(len(tokens) - length + 1)
        return tokens[start[..., None].astype(np.int64) + np.arange(length)].astype(np.int32)

    def draw(_: Any, key: jax.Array) -> jax.Array:
        shape = jax.ShapeDtypeStruct((length,), jnp.int32)
        return jax.pure_callback(read, shape, jax.random.bits(key, (2,)), vmap_method="expand_dims")

    return draw


def windows(tokens: np.ndarray, count: int, length: int) -> np.ndarray:
    """`count` windows [count, length], evenly spaced through the tokens."""
    starts = np.linspace(0, len(tokens) - length, count).astype(int)
    return np.stack([tokens[start : start + length] for start in starts]).astype(np.int32)


def split_held_out(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(training tokens, the last twentieth, held out)."""
    cut = len(tokens) - len(tokens) // HELD_OUT
    return tokens[:cut], tokens[cut:]


def text_data(
    source: str, tokenizer: str, length: int, count: int, vocabulary: int, stream: bool
) -> dict[str, Any]:
    """Fields of a Task: data, draw, rows, and evaluation windows of the training text.

    Args:
      source: see `text.text_tokens`.
      tokenizer: see `text.text_tokens`.
      length: tokens predicted in a window.
      count: evaluation windows.
      vocabulary: tokens must be below it.
      stream: leave the tokens on the host, see `streamed_window`.

    Raises:
      ValueError: the text is missing, shorter than a window or `count` of them, or has tokens
        outside the vocabulary.
    """
    tokens, _ = split_held_out(text_tokens(source, tokenizer))
    if len(tokens) < length + 1:
        raise ValueError(
            f"the text of {source} has {len(tokens)} training tokens, shorter than a window of "
            f"{length + 1}"
        )
    if len(tokens) - length < count:
        raise ValueError(
            f"the text of {source} has {len(tokens) - length} windows, below "
            f"evaluation_examples={count}"
        )
    if int(tokens.max()) >= vocabulary:
        raise ValueError(
            f"the text of {source} has token {tokens.max()}, outside the vocabulary of {vocabulary}"
        )
    fields = {"evaluation": windows(tokens, count, length + 1), "rows": len(tokens) - length}
    if stream:
        return fields | {"draw": streamed_window(tokens, length + 1), "data": ()}
    return fields | {
        "draw": draw_window,
        "data": {"tokens": tokens, "window": np.zeros(length + 1, np.uint8)},
    }
