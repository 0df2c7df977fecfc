"""Batch sizes that move while training: a controller decides B of the next step from the last.

A spec reads like an optimizer's: "norm_test(eta=0.5, most=1024, follow='sqrt')". Each controller is
one function from its keywords to a `Controller`; two keywords are common to all of them (`arm`).
Sources: norm and inner product tests as in AdAdaGrad (arXiv 2402.11215), optimal batch size of SGD
(arXiv 2005.01097).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

NORMS = ("square_norm",)  # signals: the mean of |g_n|²,
INNER = ("square_norm", "inner")  # and the variance of ⟨g_n, G⟩
PAIR = 2  # examples that have a variance


class Statistics(NamedTuple):
    """What a step says of its batch of gradients g_n with mean G; nan where nobody asked.

    Attributes:
      batch_size: B of the step.
      first: B of the run's first step.
      progress: examples trained on by now, as a share of the run's budget.
      square: |G|².
      noise: tr Σ̂, the variances of single gradients, with B − 1.
      along: Var_n ⟨g_n, G⟩, with B − 1.
      example_square: mean of |g_n|².
      noise_scale: tr Σ/|μ|² in examples, of the last steps; nan where |μ|² is not seen.
    """

    batch_size: Any
    first: Any
    progress: Any
    square: Any
    noise: Any
    along: Any
    example_square: Any
    noise_scale: Any


class Choice(NamedTuple):
    """Of the next step: its batch size, nan for the same again, and what multiplies its rate."""

    batch_size: Any
    rate: Any = 1.0


class Controller(NamedTuple):
    """A function of statistics that chooses, and what it needs.

    Attributes:
      choose: Statistics -> Choice; pure. All that it remembers is the batch size of the step.
      needs: signals beside the mean gradient: "square_norm", "inner".
      least_batch: examples that the first batch must have.
    """

    choose: Callable[[Statistics], Choice]
    needs: tuple[str, ...] = ()
    least_batch: int = 1


CONTROLLERS: dict[str, Callable[..., Controller]] = {}


def controller(function: Callable[..., Controller]) -> Callable[..., Controller]:
    """Makes a function from keywords to a Controller known by its name, to every spec."""
    CONTROLLERS[function.__name__] = function
    return function


@controller
def constant() -> Controller:
    """The first batch size throughout."""
    return Controller(lambda seen: Choice(seen.first))


@controller
def doubling(every: float = 0.2) -> Controller:
    """Doubles whenever a share `every` of the run's examples has been trained on."""

    def choose(seen: Statistics) -> Choice:
        times = jnp.floor(seen.progress / every)
        return Choice(seen.first * 2.0**times)

    return Controller(choose)


@controller
def ramp(
    shares: Sequence[float],
    batch_sizes: Sequence[float],
    rates: Sequence[float] = (),
) -> Controller:
    """A plan: from each of these shares of the examples on, that batch size, and rate if given.

    Before the first share the run is as it began.

    Raises:
      ValueError: not as many of each, or shares that do not rise.
    """
    shares, batch_sizes = tuple(shares), tuple(batch_sizes)
    rates = tuple(rates) or (1.0,) * len(shares)
    rising = list(shares) == sorted(set(shares))
    if not shares or not len(shares) == len(batch_sizes) == len(rates) or not rising:
        raise ValueError(
            "ramp needs as many batch_sizes (and rates, if any) as shares, which rise, like"
            " ramp(shares=(0.1, 0.5), batch_sizes=(64, 256))"
        )

    def choose(seen: Statistics) -> Choice:
        place = (seen.progress >= jnp.asarray(shares)).sum()
        planned = jnp.asarray((0.0, *batch_sizes))[place]
        rate = jnp.asarray((1.0, *rates))[place]
        return Choice(jnp.where(place > 0, planned, seen.first), rate)

    return Controller(choose)


@controller
def norm_test(eta: float = 0.5, unbiased: bool = False) -> Controller:
    """B ← max(B, tr Σ̂/(η²|G|²)): batches grow until their noise is a share η of their gradient.

    As published |G|² is a batch's own, so that at B far below the noise scale the test asks for
    B/η² whatever the problem is, and it comes to rest at (1 − η²)/η² noise scales. `unbiased` asks
    for noise scale/η² instead.
    """

    def choose(seen: Statistics) -> Choice:
        scale = seen.noise_scale if unbiased else seen.noise / seen.square
        return Choice(_grown(seen, scale / eta**2))

    return Controller(choose, NORMS, PAIR)


@controller
def inner_product_test(theta: float = 0.5) -> Controller:
    """B ← max(B, Var_n⟨g_n, G⟩/(θ²|G|⁴)): noise along the gradient only.

    The variance is of the whole inner product; published code drops what parameters share of it.
    """

    def choose(seen: Statistics) -> Choice:
        return Choice(_grown(seen, seen.along / (theta * seen.square) ** 2))

    return Controller(choose, INNER, PAIR)


@controller
def augmented(theta: float = 0.5, nu: float = 1.0) -> Controller:
    """The inner product test, and noise across the gradient: tr Σ̂ without its part along G."""

    def choose(seen: Statistics) -> Choice:
        along = seen.along / (theta * seen.square) ** 2
        across = (seen.noise - seen.along / seen.square) / (nu**2 * seen.square)
        return Choice(_grown(seen, jnp.maximum(along, across)))

    return Controller(choose, INNER, PAIR)


@controller
def noise_scale(share: float = 1.0) -> Controller:
    """Ours: B follows `share` times the measured noise scale, up and down, never below the first.

    Smoothed over the last steps: an unbiased |μ|² in the denominator, which a single batch seldom
    shows.
    """

    def choose(seen: Statistics) -> Choice:
        return Choice(jnp.maximum(seen.first, share * seen.noise_scale))

    return Controller(choose, NORMS, PAIR)


@controller
def optimal_batch(
    rows: int,
    smoothness: float,
    largest: float,
    convexity: float,
    accuracy: float,
    own_rate: bool = False,
) -> Controller:
    """The batch size of fewest examples to |θ − θ*|² ≤ accuracy, by SGD (arXiv 2005.01097).

    The mean of |∇f_i(θ*)|² is read as that of the batch at hand, so that a start far away begins
    with large batches.

    Args:
      rows: examples n.
      smoothness: L of the mean loss.
      largest: L of the least smooth single loss.
      convexity: μ of strong convexity.
      accuracy: that is sought.
      own_rate: the rate is multiplied by that of the same analysis, which is then right at 1.

    Raises:
      ValueError: constants that no mean of losses has.
    """
    if not smoothness <= largest <= rows * smoothness:
        raise ValueError(
            f"largest lies between smoothness and rows times it, got {largest} for smoothness"
            f" {smoothness} and rows {rows}"
        )
    bounds = rows, smoothness, largest

    def choose(seen: Statistics) -> Choice:
        ratio = 2 * seen.example_square / (accuracy * convexity)
        size = jnp.clip(cheapest(*bounds, ratio), 1, rows)
        rate = step_size(*bounds, size, seen.example_square, convexity, accuracy)
        return Choice(size, rate if own_rate else 1.0)

    return Controller(choose, NORMS)


def cheapest(rows: int, smoothness: float, largest: float, ratio: Any) -> jax.Array:
    """τ* = n(c − L_max + L)/(c − L_max + nL), 1 where c ≤ L_max, for ratio c = 2h̄/(eμ)."""
    excess = jnp.maximum(ratio - largest, 0.0)
    return jnp.where(excess > 0, rows * (excess + smoothness) / (excess + rows * smoothness), 1.0)


def step_size(
    rows: int,
    smoothness: float,
    largest: float,
    batch_size: Any,
    example_square: Any,
    convexity: float,
    accuracy: float,
) -> jax.Array:
    """γ(τ) = ½ min(1/𝓛(τ), eμ/2σ(τ)) of batches without replacement."""
    scale = batch_size * (rows - 1)
    rest = rows - batch_size
    expected = (rows * (batch_size - 1) * smoothness + rest * largest) / scale
    noise = rest / scale * example_square
    return 0.5 * jnp.minimum(1 / expected, accuracy * convexity / (2 * noise))


def _grown(seen: Statistics, size: Any) -> Any:
    """Never smaller than it is, nan (the same again) where the test has no answer."""
    return jnp.maximum(seen.batch_size, size)
