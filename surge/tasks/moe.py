"""Fine-grained mixture of experts with shared experts (DeepSeekMoE, arXiv 2401.06066) in a GPT."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from surge.tasks import Task, by_ghosts
from surge.tasks.gpt import GPT, SIZES, Size, token_losses
from surge.tasks.text import STDLIB
from surge.tasks.windows import text_data


class Experts(nn.Module):
    """Shared experts and the `active` best of `routed` ones: [T, width] -> [T, width].

    Also returns [2, routed]: the share of tokens' choices that each expert got, times routed, and
    its mean probability; the balance loss is their inner product, 1 when balanced. Every expert
    computes every token and unchosen ones get weight 0: exact under any vmap, at routed / active
    times the arithmetic of sparse dispatch.
    """

    size: Size
    dtype: Any = jnp.float32
    routed: int = 8
    active: int = 2
    shared: int = 1
    hidden: int = 64

    @nn.compact
    def __call__(self, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        width = inputs.shape[-1]
        experts = self.routed + self.shared
        normal = nn.initializers.normal
        up = self.param("up", normal(0.02), (experts, width, self.hidden)).astype(self.dtype)
        down = self.param(
            "down", normal(0.02 * (2 * self.size.depth) ** -0.5), (experts, self.hidden, width)
        )
        router = self.param("router", normal(0.02), (width, self.routed))
        probabilities = jax.nn.softmax(inputs.astype(jnp.float32) @ router)  # [T, routed]
        _, chosen = jax.lax.top_k(probabilities, self.active)
        mask = jax.nn.one_hot(chosen, self.routed).sum(-2)
        always = jnp.ones((len(inputs), self.shared))
        gates = jnp.concatenate([always, probabilities * mask], -1).astype(self.dtype)
        hidden = nn.gelu(jnp.einsum("td,edh->teh", inputs, up)) * gates[..., None]
        outputs = jnp.einsum("teh,ehd->td", hidden, down.astype(self.dtype))
        load = jax.lax.stop_gradient(mask.mean(0)) * self.routed / self.active
        return outputs, jnp.stack([load, probabilities.mean(0)])


def text(
    size: str = "tiny",
    source: str = STDLIB,
    tokenizer: str = "bytes",
    vocabulary: int | None = None,
    context: int | None = None,
    routed: int = 8,
    active: int = 2,
    shared: int = 1,
    hidden: int = 64,
    balance: float = 0.01,
    balance_over: str = "sequence",
    ghost: int = 16,
    evaluation_examples: int = 64,
    dtype: str = "float32",
    remat: bool = False,
    stream: bool = False,
) -> Task:
    """A GPT whose feed-forward layers are mixtures of experts, on any text.

    Args:
      size, source, tokenizer, vocabulary, context, dtype, remat, stream: see `gpt.text`.
      routed: experts that tokens choose among, in each layer.
      active: experts chosen for a token.
      shared: experts that every token uses.
      hidden: width of one expert.
      balance: weight of the load-balancing loss, summed over layers.
      balance_over: "sequence" balances each example by itself, so that the loss of one example
        exists and per-example gradients are exact; "batch" balances over ghost batches, as trainers
        do over what a device holds, which couples examples: then the task has a batch loss only.
      ghost: examples in a ghost batch, which batch sizes must be multiples of.
      evaluation_examples: windows that losses are reported on.

    Raises:
      ValueError: an unknown size or balance, more active experts than routed, or text that cannot
        be used.
    """
    if size not in SIZES:
        raise ValueError(f"size must be one of {', '.join(SIZES)}, got {size!r}")
    if balance_over not in ("sequence", "batch"):
        raise ValueError(f"balance_over must be sequence or batch, got {balance_over!r}")
    if not 1 <= active <= routed:
        raise ValueError(f"active must be 1 to routed ({routed}), got {active}")
    shape = SIZES[size]
    shape = shape._replace(
        vocabulary=vocabulary or shape.vocabulary, context=context or shape.context
    )
    layer = partial(Experts, routed=routed, active=active, shared=shared, hidden=hidden)
    model = GPT(shape, jnp.dtype(dtype), remat=remat, feed_forward=layer)

    def coupled_loss(params: Any, batch: jax.Array) -> jax.Array:
        losses, routing = jax.vmap(partial(token_losses, model), (None, 0))(params, batch)
        load, probability = jnp.moveaxis(routing.mean(0), -2, 0)  # each [layer, routed]
        return losses.mean() + balance * (load * probability).sum()

    def single_loss(params: Any, window: jax.Array) -> jax.Array:
        if balance_over == "batch":
            raise ValueError(
                "a batch-level balance couples the examples of a batch: choose "
                "balance_over='sequence'"
            )
        return coupled_loss(params, window[None])

    return Task(
        init=lambda key: model.init(key, jnp.zeros(shape.context, jnp.int32)),
        loss=single_loss,
        batch_loss=by_ghosts(coupled_loss, ghost) if balance_over == "batch" else None,
        ghost=ghost,
        **text_data(
            source, tokenizer, shape.context, evaluation_examples, shape.vocabulary, stream
        ),
    )
