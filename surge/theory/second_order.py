"""The loss to second order along one step, and arithmetic whose gradients are finite at its limits.

Undefined is nan, no finite value inf, and neither makes a gradient nan.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

FAR = 40.0  # standard deviations from 0 at which a sign is certain, in float64 too


class Hessian(NamedTuple):
    """A symmetric matrix [P, P] known by its diagonal [P] and its product with a vector [P] -> [P].

    With a `jax.tree_util.Partial` for the product, as the constructors below make it, it may be
    passed to jitted functions.
    """

    diagonal: jax.Array
    product: Callable[[jax.Array], jax.Array]

    @classmethod
    def dense(cls, matrix: jax.Array) -> "Hessian":
        """From the matrix [P, P] itself."""
        return cls(jnp.diagonal(matrix), Partial(jnp.matmul, matrix))

    @classmethod
    def low_rank(cls, diagonal: jax.Array, factor: jax.Array) -> "Hessian":
        """diag(diagonal) + factor factorᵀ, with factor [P, K]."""
        return cls(diagonal + (factor**2).sum(-1), Partial(_low_rank_product, diagonal, factor))


def _low_rank_product(diagonal: jax.Array, factor: jax.Array, vector: jax.Array) -> jax.Array:
    return diagonal * vector + factor @ (factor.T @ vector)


class OneStep(NamedTuple):
    """One optimizer step u to second order: E[L(θ − εu)] = L − εa + ε²q/2.

    McCandlish et al., arXiv 1812.06162, section 2.2.

    Attributes:
      drift: a = E[uᵀμ].
      curvature: q = E[uᵀHu].
    """

    drift: jax.Array
    curvature: jax.Array

    @property
    def optimal_lr(self) -> jax.Array:
        """a/q, the rate with the largest expected fall of the loss.

        nan where q <= 0: there is no minimum, or q underflows.
        """
        return jnp.where(self.curvature > 0, safe_ratio(self.drift, self.curvature), jnp.nan)

    @property
    def gain(self) -> jax.Array:
        """a²/2q, the expected fall of the loss at the optimal rate; nan where q <= 0."""
        # In this order a² cannot overflow.
        fall = self.drift * safe_ratio(self.drift, self.curvature) / 2
        return jnp.where(self.curvature > 0, fall, jnp.nan)


@jax.custom_jvp
def safe_ratio(top: jax.Array, bottom: jax.Array) -> jax.Array:
    """top/bottom, 0 where bottom <= 0."""
    # JAX's own derivative has 1/bottom², which overflows float32 at 1e-20.
    return jnp.where(bottom <= 0, 0.0, top / nonzero(bottom))


@safe_ratio.defjvp
def _ratio_jvp(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[jax.Array, jax.Array]:
    top, bottom = primals
    top_dot, bottom_dot = tangents
    value = safe_ratio(top, bottom)
    slope = (top_dot - value * bottom_dot) / nonzero(bottom)
    return value, jnp.where(bottom <= 0, 0.0, slope)


def nonzero(value: jax.Array) -> jax.Array:
    """1 where value <= 0: keeps gradients finite where the result is masked."""
    return jnp.where(value <= 0, 1.0, value)


def safe_hypot(one: jax.Array, other: jax.Array) -> jax.Array:
    """√(one² + other²); `jnp.hypot` has a nan gradient where an argument is tiny."""
    high = jnp.maximum(jnp.abs(one), jnp.abs(other))
    low = jnp.minimum(jnp.abs(one), jnp.abs(other))
    return high * jnp.sqrt(1 + safe_ratio(low, high) ** 2)


def standardised(batch_size: Any, mu: Any, sigma: Any) -> jax.Array:
    """√B·μ/σ within ±FAR: the mean of G_B in its own standard deviations; 0 where μ = σ = 0."""
    root = jnp.sqrt(jnp.asarray(batch_size))
    mu = jnp.asarray(mu)
    sigma = jnp.asarray(sigma, jnp.result_type(float))
    far = root * jnp.abs(mu) > FAR * sigma
    return jnp.where(far, FAR * jnp.sign(mu), safe_ratio(root * jnp.where(far, 0.0, mu), sigma))


def at_each(function: Callable[[jax.Array], OneStep], batch_size: Any) -> OneStep:
    """What `function` gives at each batch size, any shape [...]."""
    sizes = jnp.asarray(batch_size, jnp.result_type(float))
    flat = jax.vmap(function)(sizes.reshape(-1))
    return OneStep(*(values.reshape(sizes.shape) for values in flat))
