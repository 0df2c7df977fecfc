"""GPT-2 (Radford et al. 2019): pre-LN, tied embeddings, learned positions; parameters named as in
transformers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from surge.tasks import Task
from surge.tasks.text import STDLIB, text_tokens

HELD_OUT = 20  # the last twentieth of a text is never trained on


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
    """Of arrays [T, heads, d]; on CPU a training step of the small GPT is a quarter faster than by
    JAX's own.

    Weights are normalised after they have met the values, as in FlashAttention: fewer passes over
    [heads, T, T].
    """
    query, key, value = (each.swapaxes(0, 1) for each in (query, key, value))
    length, width = query.shape[1:]

    def rows(first: int, end: int) -> jax.Array:
        mask = jnp.where(jnp.tri(end - first, end, first, dtype=bool), 0.0, -jnp.inf)
        near, values = query[:, first:end] * width**-0.5, value[:, :end]
        products = (
            jnp.matmul(near, key[:, :end].swapaxes(1, 2), preferred_element_type=jnp.float32) + mask
        )
        weights = jnp.exp(products - jax.lax.stop_gradient(products.max(-1, keepdims=True)))
        return (weights.astype(value.dtype) @ values) / weights.sum(-1, keepdims=True)

    half = length // 2  # the first half of the queries never meets the second half of the keys
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
        heads = [each.reshape(length, self.size.heads, -1) for each in jnp.split(qkv, 3, -1)]
        if jax.default_backend() == "cpu":
            mixed = causal_attention(*heads)
        else:
            mixed = jax.nn.dot_product_attention(
                *heads, is_causal=True, implementation=self.attention
            )
        return dense(width, "c_proj", self.dtype, (2 * self.size.depth) ** -0.5)(
            mixed.reshape(length, width)
        )


class FeedForward(nn.Module):
    """Two dense layers with GELU between them; also returns nothing, where experts return their
    loads."""

    size: Size
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        hidden = nn.gelu(dense(4 * self.size.width, "c_fc", self.dtype)(inputs), approximate=True)
        outputs = dense(self.size.width, "c_proj", self.dtype, (2 * self.size.depth) ** -0.5)(
            hidden
        )
        return outputs, jnp.zeros(0)


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
    """Tokens [T] -> (logits [T, vocabulary] in float32, what the feed-forward layers say besides
    [depth, ...]).

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
        layer, extras = nn.remat(Block) if self.remat else Block, []
        for index in range(self.size.depth):
            block = layer(
                self.size, self.dtype, self.attention, self.feed_forward, name=f"h_{index}"
            )
            states, extra = block(states)
            extras.append(extra)
        states = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="ln_f")(states)
        weight = embed.embedding.astype(self.dtype)
        return jnp.dot(states, weight.T, preferred_element_type=jnp.float32), jnp.stack(extras)


def convert(tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    """Parameters of `GPT`, float32, from tensors named as transformers names GPT-2's.

    Raises:
      ValueError: a tensor is missing.
    """
    arrays = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    params: dict[str, Any] = {}

    def put(path: str, tensor: str) -> None:
        if tensor not in arrays:
            raise ValueError(f"not the weights of a GPT-2: tensor {tensor} is missing")
        *parents, last = path.split("/")
        place = params
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = jnp.asarray(arrays[tensor], jnp.float32)

    put("wte/embedding", "wte.weight")
    put("wpe", "wpe.weight")
    depth = len({name.split(".")[1] for name in arrays if name.startswith("h.")})
    norms = ["ln_f", *(f"h_{index}/{name}" for index in range(depth) for name in ("ln_1", "ln_2"))]
    parts = ("attn/c_attn", "attn/c_proj", "mlp/c_fc", "mlp/c_proj")
    layers = [f"h_{index}/{name}" for index in range(depth) for name in parts]
    for path in (*norms, *layers):
        theirs = path.replace("h_", "h.", 1).replace("/", ".")
        put(f"{path}/{'scale' if path in norms else 'kernel'}", f"{theirs}.weight")
        put(f"{path}/bias", f"{theirs}.bias")
    return {"params": params}


def load_safetensors(path: str) -> dict[str, Any]:
    """Parameters of `GPT` from a published checkpoint's model.safetensors.

    Raises:
      ValueError: no such file, `safetensors` is not installed, or not a GPT-2.
    """
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
    except ImportError:
        raise ValueError(f"{path} needs safetensors: pip install safetensors") from None
    if not Path(path).is_file():
        raise ValueError(f"no weights at {path}: give the path of a GPT-2's model.safetensors")
    try:
        return convert(load_file(path))
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file ({error})") from None


def load_weights(path: str, model: GPT) -> dict[str, Any]:
    """Parameters of a model from a published checkpoint, without the positions beyond the model's
    context.

    Raises:
      ValueError: no such weights, see `load_safetensors`, or they are of a model of another shape.
    """
    params = load_safetensors(path)
    held = params["params"]
    context, width = held["wpe"].shape
    vocabulary, depth = len(held["wte"]["embedding"]), sum(name.startswith("h_") for name in held)
    held["wpe"] = held["wpe"][: model.size.context]
    wanted = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(1, jnp.int32))
    if jax.tree.map(jnp.shape, params) != jax.tree.map(jnp.shape, wanted):
        alike = [name for name, size in SIZES.items() if (size.width, size.depth) == (width, depth)]
        raise ValueError(
            f"{path} holds a GPT of width {width}, depth {depth}, vocabulary {vocabulary} and context {context}, not "
            f"{model.size}: choose {' or '.join(f'size={name}' for name in alike) or 'another size'}, "
            f"vocabulary={vocabulary} and a context of at most {context}"
        )
    return params


def draw_window(data: dict[str, Any], key: jax.Array) -> jax.Array:
    """A uniformly drawn window of tokens; data is {"tokens": [n], "window": [length] of
    anything}."""
    tokens, length = data["tokens"], data["window"].shape[0]
    start = jax.random.randint(key, (), 0, tokens.shape[0] - length + 1)
    return jax.lax.dynamic_slice(jnp.asarray(tokens), (start,), (length,)).astype(jnp.int32)


def streamed_window(tokens: np.ndarray, length: int) -> Callable[[Any, jax.Array], jax.Array]:
    """A draw from tokens that stay on the host, memory-mapped: a step moves its own windows only to
    the device.

    Starts are 64-bit, so a text may be of any size; the host is called once for a whole
    (micro-)batch of all lanes.
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


def token_losses(model: nn.Module, params: Any, window: jax.Array) -> tuple[jax.Array, Any]:
    """Cross-entropy of each next token of a window [T + 1] in nats, [T], and what else the model
    says."""
    logits, extra = model.apply(params, window[:-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, window[1:]), extra


def text_data(
    source: str, tokenizer: str, length: int, count: int, vocabulary: int, stream: bool
) -> dict[str, Any]:
    """Fields of a Task: data, draw, rows, and evaluation windows of the training text; `length`
    tokens are predicted.

    Raises:
      ValueError: the text is missing, shorter than a window or `count` of them, or has tokens
        outside the vocabulary.
    """
    tokens, _ = split_held_out(text_tokens(source, tokenizer))
    if len(tokens) < length + 1:
        raise ValueError(
            f"the text of {source} has {len(tokens)} training tokens, shorter than a window of {length + 1}"
        )
    if len(tokens) - length < count:
        raise ValueError(
            f"the text of {source} has {len(tokens) - length} windows, below evaluation_examples={count}"
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
    loaded = load_weights(weights, model) if weights else None
    return Task(
        init=lambda key: loaded or model.init(key, jnp.zeros(shape.context, jnp.int32)),
        loss=lambda params, window: token_losses(model, params, window)[0].mean(),
        **text_data(
            source, tokenizer, shape.context, evaluation_examples, shape.vocabulary, stream
        ),
    )
