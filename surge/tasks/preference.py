"""Pairs of which one is preferred: Bradley-Terry, and adaptive scaling (arXiv 2406.02764).

One example is a pair; its loss is of the difference of two rewards, δ = r(chosen) − r(rejected):

    ℓ(δ) = min over τ in [low, high] of −τ log 2σ(δ/τ) + ρτ

The derivative by τ is ρ − KL(σ(δ/τ) ‖ ½), so the best τ keeps |δ|/τ at κ_ρ = logit p*, where p* > ½
has log 2 − H(p*) = ρ: τ* = clip(|δ|/κ_ρ, low, high). No iteration is needed. Between low·κ_ρ and
high·κ_ρ the loss is linear; nearer to 0 and further out it is logistic, at the temperatures low and
high. The published code solves for τ by some Newton steps and leaves out ρτ and the 2.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize

from surge.tasks import Task, draw_from_arrays, first_rows
from surge.tasks.mlp import MLP
from surge.tasks.text import STDLIB, text_tokens
from surge.tasks.windows import draw_window

BYTES = 256
PATCH = 4  # bytes that the text's reward model reads together

PairLoss = Callable[[jax.Array], jax.Array]


def scale_of(rho: float) -> float:
    """κ_ρ, at which |δ|/τ is held; inf where no probability is that far from ½ (ρ ≥ log 2).

    Args:
      rho: ρ > 0 in nats, the divergence from ½ that a pair may have.
    """
    if rho >= math.log(2):
        return math.inf

    def excess(logit: float) -> float:
        share = 1 / (1 + math.exp(-logit))
        entropy = math.log1p(math.exp(-logit)) + (1 - share) * logit
        return math.log(2) - entropy - rho

    return float(np.asarray(optimize.brentq(excess, 0.0, 700.0)))


def bradley_terry(delta: jax.Array) -> jax.Array:
    """−log σ(δ)."""
    return jax.nn.softplus(-delta)


def adaptive(rho: float = 0.1, low: float = 0.1, high: float = 5.0) -> PairLoss:
    """ℓ(δ) of adaptive preference scaling, with its exact first and second derivatives.

    Args:
      rho: ρ > 0; from log 2 on every pair has temperature low.
      low, high: bounds of the temperature, above 0.

    Raises:
      ValueError: out of these ranges.
    """
    if not (rho > 0 and 0 < low <= high < math.inf):
        raise ValueError(f"rho must be above 0 and 0 < low <= high, got {rho}, {low}, {high}")
    kappa = scale_of(rho)

    def ratio(delta: jax.Array) -> jax.Array:
        """δ/τ*, constant where the loss is linear."""
        size = jnp.abs(delta)
        middle = jnp.sign(delta) * (kappa if math.isfinite(kappa) else 0.0)
        outside = jnp.where(size < low * kappa, delta / low, delta / high)
        return jnp.where((size < low * kappa) | (size > high * kappa), outside, middle)

    @jax.custom_jvp
    def loss(delta: jax.Array) -> jax.Array:
        temperature = jnp.clip(jnp.abs(delta) / kappa, low, high)
        return temperature * (rho - math.log(2) + jax.nn.softplus(-ratio(delta)))

    @loss.defjvp
    def _(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
        # The derivative through τ* is 0: where τ* moves it is a minimum.
        [delta], [tangent] = primals, tangents
        return loss(delta), -jax.nn.sigmoid(-ratio(delta)) * tangent

    return loss


def _objective(objective: str, rho: float, low: float, high: float) -> PairLoss:
    choices = {"adaptive": adaptive(rho, low, high), "bradley_terry": bradley_terry}
    if objective not in choices:
        raise ValueError(f"objective must be adaptive or bradley_terry, got {objective!r}")
    return choices[objective]


def synthetic(
    objective: str = "adaptive",
    features: int = 16,
    widths: Sequence[int] = (32,),
    pairs: int = 4_000,
    evaluation_examples: int = 512,
    sharpness: float = 2.0,
    rho: float = 0.1,
    low: float = 0.1,
    high: float = 5.0,
    seed: int = 0,
) -> Task:
    """Pairs of Gaussian points, preferred by a Bradley-Terry model of a linear reward.

    Args:
      objective: "adaptive" or "bradley_terry".
      features: of a point.
      widths: hidden layers of the reward model; () is linear.
      pairs: how many there are.
      evaluation_examples: the first ones, which losses are reported on.
      sharpness: standard deviation of the true reward of a point.
      rho, low, high: see `adaptive`.
      seed: of the pairs.

    Raises:
      ValueError: see `adaptive`; another objective, or fewer pairs than the evaluation's.
    """
    of_pair = _objective(objective, rho, low, high)
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(pairs, 2, features)).astype(np.float32)
    direction = rng.normal(size=features)
    reward = sharpness * points @ (direction / np.linalg.norm(direction))
    first = rng.random(pairs) < 1 / (1 + np.exp(reward[:, 1] - reward[:, 0]))
    ordered = np.where(first[:, None, None], points, points[:, ::-1])
    data = {"chosen": ordered[:, 0], "rejected": ordered[:, 1]}
    network = MLP(tuple(widths), 1)

    def loss(params: Any, pair: Any) -> jax.Array:
        rewards = [jnp.asarray(network.apply(params, pair[name]))[0] for name in data]
        return of_pair(rewards[0] - rewards[1])

    return Task(
        init=lambda key: network.init(key, jnp.zeros(features)),
        loss=loss,
        data=data,
        draw=draw_from_arrays,
        evaluation=first_rows(data, evaluation_examples, "the pairs"),
    )


class TextReward(nn.Module):
    """Bytes [T] -> a reward: patches of bytes, a hidden layer, the mean over patches."""

    width: int = 32

    @nn.compact
    def __call__(self, text: jax.Array) -> jax.Array:
        embedded = nn.Embed(BYTES, self.width // PATCH)(text)
        hidden = nn.gelu(nn.Dense(self.width)(embedded.reshape(-1, PATCH * (self.width // PATCH))))
        return nn.Dense(1)(hidden.mean(0))[0]


def text(
    objective: str = "adaptive",
    source: str = STDLIB,
    context: int = 32,
    width: int = 32,
    evaluation_examples: int = 256,
    mistaken: float = 0.1,
    rho: float = 0.1,
    low: float = 0.1,
    high: float = 5.0,
    seed: int = 0,
) -> Task:
    """Windows of text, preferred to copies in which a random share of the bytes is another.

    Args:
      objective: "adaptive" or "bradley_terry".
      source: see `text.text_tokens`.
      context: bytes of a window, a multiple of 4.
      width: of the reward model, likewise.
      evaluation_examples: pairs that losses are reported on.
      mistaken: share of pairs in which the copy is preferred.
      rho, low, high: see `adaptive`.
      seed: of the evaluation's pairs.

    Raises:
      ValueError: see `adaptive`; another objective, or a context or width that is no multiple of 4.
    """
    if context % PATCH or width % PATCH or not context or not width:
        raise ValueError(f"context and width must be multiples of {PATCH}, got {context}, {width}")
    of_pair = _objective(objective, rho, low, high)
    network = TextReward(width)
    tokens = text_tokens(source)
    data = {"tokens": tokens, "window": np.zeros(context, np.int8)}

    def draw(data: Any, key: jax.Array) -> Any:
        at, share, where, what, wrong = jax.random.split(key, 5)
        window = draw_window(data, at)
        replaced = jax.random.uniform(where, (context,)) < jax.random.uniform(share)
        copy = jnp.where(replaced, jax.random.randint(what, (context,), 0, BYTES), window)
        pair = jnp.stack([window, copy])
        return jnp.where(jax.random.uniform(wrong) < mistaken, pair[::-1], pair)

    def loss(params: Any, pair: jax.Array) -> jax.Array:
        rewards = [jnp.asarray(network.apply(params, one)) for one in (pair[0], pair[1])]
        return of_pair(rewards[0] - rewards[1])

    keys = jax.random.split(jax.random.key(seed), evaluation_examples)
    return Task(
        init=lambda key: network.init(key, jnp.zeros(context, jnp.int32)),
        loss=loss,
        data=data,
        draw=draw,
        evaluation=jax.jit(jax.vmap(draw, (None, 0)))(data, keys),
    )
