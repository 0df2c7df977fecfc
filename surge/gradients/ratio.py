"""A loss that is a ratio of means: its gradient noise is that of a mean of other losses."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from surge.gradients.curvature import LossFn, mean_loss, widened


def as_mean(loss_fn: LossFn, weigh: Callable[[Any], jax.Array], params: Any, batch: Any) -> LossFn:
    """A loss of single examples whose plain mean acts at θ as L = Σ w·l / Σ w does.

    The gradient of a batch of B is a ratio. To first order in 1/B it is the mean of
    μ + (w/w̄)(∇l − μ), with μ the gradient of L and w̄ the mean weight (the delta method; Cochran,
    Sampling Techniques, chapter 6). These are the gradients at θ of (w/w̄) l + (1 − w/w̄)⟨μ, θ⟩,
    whose mean also has the curvature of L. At B = 1, where weights cancel, it is no statement.

    Args:
      loss_fn: (params, example) -> scalar.
      weigh: example -> weight of at least 0, of which not all are 0.
      params: θ.
      batch: pytree [n, ...] that μ and w̄ are taken over.
    """
    mean_weight = jax.vmap(weigh)(batch).mean()
    here = widened(params)

    def share(example: Any) -> jax.Array:
        return weigh(example) / mean_weight

    def scaled(at: Any, example: Any) -> jax.Array:
        return share(example) * loss_fn(at, example)

    mu = widened(jax.jit(jax.grad(mean_loss(scaled, batch)))(params))

    def loss(at: Any, example: Any) -> jax.Array:
        # Away from θ, not from 0: differences of losses keep their digits.
        along = jax.tree.map(lambda leaf, old, slope: ((leaf - old) * slope).sum(), at, here, mu)
        rest = (1 - share(example)) * jnp.stack(jax.tree.leaves(along)).sum()
        return scaled(at, example) + rest

    return loss
