"""GPT-2 (Radford et al. 2019): pre-LN, tied embeddings, learned positions.

Parameters are named as in transformers.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from surge.tasks import Task
from surge.tasks.gpt_weights import load_weights
from surge.tasks.text import STDLIB
from surge.tasks.windows import text_data


class Size(NamedTuple):
    """Shape of a GPT."""

    vocabulary: int = 50_257
    context: int = 1_024
    width: int = 768
    depth: int = 12
    heads: int = 12


SIZES = {
    "gpt2": Size(),
    "distilgpt2": Size(depth=6),
    "small": Size(256, 128, 128, 4, 4),
    "tiny": Size(256, 64, 32, 2, 2),
}


def dense(features: int, name: str, dtype: Any, scale: float = 1.0) -> nn.Dense:
    """A dense layer with GPT-2's initialisation."""
    return nn.Dense(
        features, dtype=dtype, kernel_init=nn.initializers.normal(0.02 * scale), name=name
    )


def causal_attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Of arrays [T, heads, d], in a form for CPU.

    A training step of the small GPT is a quarter faster by it than by JAX's own. Weights are
    normalised after they have met the values, as in FlashAttention: fewer passes over
    [heads, T, T].
    """
    query, key, value = (array.swapaxes(0, 1) for array in (query, key, value))
    length, width = query.shape[1:]

    def rows(first: int, end: int) -> jax.Array:
        mask = jnp.where(jnp.tri(end - first, end, first, dtype=bool), 0.0, -jnp.inf)
        scaled = query[:, first:end] * width**-0.5
        keys = key[:, :end].swapaxes(1, 2)
        products = jnp.matmul(scaled, keys, preferred_element_type=jnp.float32) + mask
        highest = jax.lax.stop_gradient(products.max(-1, keepdims=True))
        weights = jnp.exp(products - highest)
        return (weights.astype(value.dtype) @ value[:, :end]) / weights.sum(-1, keepdims=True)

    # The first half of the queries never meets the second half of the keys.
    half = length // 2
    parts = [rows(0, half), rows(half, length)] if half else [rows(0, length)]
    return jnp.concatenate(parts, 1).swapaxes(0, 1).astype(value.dtype)


class Attention(nn.Module):
    """Causal self-attention [T, width] -> [T, width]."""

    size: Size
    dtype: Any = jnp.float32
    attention: Literal["xla", "cudnn"] = "xla"

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        length, width = inputs.shape
        qkv = dense(3 * width, "c_attn", self.dtype)(inputs)
        heads = [part.reshape(length, self.size.heads, -1) for part in jnp.split(qkv, 3, -1)]
        if jax.default_backend() == "cpu":
            mixed = causal_attention(*heads)
        else:
            mixed = jax.nn.dot_product_attention(
                *heads, is_causal=True, implementation=self.attention
            )
        project = dense(width, "c_proj", self.dtype, (2 * self.size.depth) ** -0.5)
        return project(mixed.reshape(length, width))


class FeedForward(nn.Module):
    """Two dense layers with GELU between them.

    Also returns an empty array, where experts return their loads.
    """

    size: Size
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        hidden = dense(4 * self.size.width, "c_fc", self.dtype)(inputs)
        hidden = nn.gelu(hidden, approximate=True)
        project = dense(self.size.width, "c_proj", self.dtype, (2 * self.size.depth) ** -0.5)
        return project(hidden), jnp.zeros(0)


class Block(nn.Module):
    """One pre-LN layer; statistics of the normalisations are float32 whatever the dtype."""

    size: Size
    dtype: Any
    attention: Literal["xla", "cudnn"]
    feed_forward: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        normed = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="ln_1")(inputs)
        inputs = inputs + Attention(self.size, self.dtype, self.attention, name="attn")(normed)
        normed = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="ln_2")(inputs)
        outputs, extra = self.feed_forward(self.size, self.dtype, name="mlp")(normed)
        return inputs + outputs, extra


class GPT(nn.Module):
    """Tokens [T] -> (logits [T, vocabulary] in float32, extras [depth, ...]).

    Extras are what the feed-forward layers say besides their outputs.

    Attributes:
      size: shape.
      dtype: of the computation; parameters and softmax stay float32.
      attention: "xla", or "cudnn" for FlashAttention on NVIDIA (bfloat16 only; no forward-mode
        derivatives, so for sweeps and not for curvature). CPU has a form of its own.
      remat: recompute each layer in the backward pass, to save memory.
      feed_forward: module class (size, dtype) of each layer.
    """

    size: Size
    dtype: Any = jnp.float32
    attention: Literal["xla", "cudnn"] = "xla"
    remat: bool = False
    feed_forward: Callable[..., nn.Module] = FeedForward

    @nn.compact
    def __call__(self, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        normal = nn.initializers.normal
        embed = nn.Embed(
            self.size.vocabulary, self.size.width, embedding_init=normal(0.02), name="wte"
        )
        positions = self.param("wpe", normal(0.02), (self.size.context, self.size.width))
        states = (embed(tokens) + positions[: len(tokens)]).astype(self.dtype)
        layer = nn.remat(Block) if self.remat else Block
        extras = []
        for index in range(self.size.depth):
            block = layer(
                self.size, self.dtype, self.attention, self.feed_forward, name=f"h_{index}"
            )
            states, extra = block(states)
            extras.append(extra)
        states = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="ln_f")(states)
        weight = embed.embedding.astype(self.dtype)
        return jnp.dot(states, weight.T, preferred_element_type=jnp.float32), jnp.stack(extras)


def token_losses(model: nn.Module, params: Any, window: jax.Array) -> tuple[jax.Array, Any]:
    """Cross-entropy of the next token in nats [T] over a window [T + 1], and the model's extras."""
    logits, extra = model.apply(params, window[:-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, window[1:]), extra


def text(
    size: str = "small",
    source: str = STDLIB,
    tokenizer: str = "bytes",
    vocabulary: int | None = None,
    context: int | None = None,
    evaluation_examples: int = 64,
    weights: str = "",
    dtype: str = "float32",
    attention: Literal["xla", "cudnn"] = "xla",
    remat: bool = False,
    stream: bool = False,
) -> Task:
    """A GPT on any text; one example is one window, its loss the mean over its tokens in nats.

    Args:
      size: name in SIZES: gpt2, distilgpt2, small, tiny.
      source: see `text.text_tokens`.
      tokenizer: "bytes" or a tokenizer.json.
      vocabulary: where it differs from the named size's.
      context: tokens predicted per example, where it differs from the named size's.
      evaluation_examples: windows that losses are reported on.
      weights: a model.safetensors to start from instead of a random initialisation; "" for none. It
        fits its own size and vocabulary, and any context up to its own.
      dtype: of the computation.
      attention: see `GPT`.
      remat: see `GPT`.
      stream: leave the tokens in their memory-mapped file and read windows as they are drawn, for
        texts larger than a device; else they are moved there whole.

    Raises:
      ValueError: unknown size or attention, or text or weights that cannot be used.
    """
    if size not in SIZES:
        raise ValueError(f"size must be one of {', '.join(SIZES)}, got {size!r}")
    if attention not in ("xla", "cudnn"):
        raise ValueError(f"attention must be xla or cudnn, got {attention!r}")
    shape = SIZES[size]
    shape = shape._replace(
        vocabulary=vocabulary or shape.vocabulary, context=context or shape.context
    )
    model = GPT(shape, jnp.dtype(dtype), attention, remat)
    loaded = load_weights(weights, model, SIZES) if weights else None
    return Task(
        init=lambda key: loaded or model.init(key, jnp.zeros(shape.context, jnp.int32)),
        loss=lambda params, window: token_losses(model, params, window)[0].mean(),
        **text_data(
            source, tokenizer, shape.context, evaluation_examples, shape.vocabulary, stream
        ),
    )
