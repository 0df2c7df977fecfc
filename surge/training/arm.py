"""An arm of a sweep: a controller of the batch size, and how the learning rate follows it."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from surge.optimizers.spec import near, split
from surge.optimizers.step import ExampleMoments
from surge.training.controllers import CONTROLLERS, NORMS, Controller, Statistics

MEMORY = 0.95  # share of the smoothed noise and signal that a step keeps of the one before
MOST_EXAMPLES = 2**32 - 1  # of a run, which counts them in 32 bits
COMMON = {"most": 4096, "follow": "constant"}


class Control(NamedTuple):
    """What a run carries of its batch size.

    Attributes:
      batch_size, rate: of the next step; rate multiplies the learning rate.
      first: batch size of the first step.
      examples: trained on so far.
      noise, signal: smoothed B tr Σ̂ and B|μ|², whose ratio is the noise scale.
      spent: the next batch would go beyond the run's examples, so there is none.
    """

    batch_size: jax.Array
    rate: jax.Array
    first: jax.Array
    examples: jax.Array
    noise: jax.Array
    signal: jax.Array
    spent: jax.Array


class Controlled(NamedTuple):
    """The state of an optimizer in a run whose batch size moves."""

    inner: Any
    control: Control


def _surge(batch_size: Any, first: Any, scale: Any) -> Any:
    def height(size: Any) -> Any:
        return 1 / (jnp.sqrt(scale / size) + jnp.sqrt(size / scale))

    return height(batch_size) / height(first)


# How ε_opt(B)/ε_opt(B0) is read: (B, B0, noise scale) -> factor. The last two need the noise scale.
FOLLOW: dict[str, Callable[[Any, Any, Any], Any]] = {
    "constant": lambda batch_size, first, scale: 1.0,
    "sqrt": lambda batch_size, first, scale: jnp.sqrt(batch_size / first),
    "linear": lambda batch_size, first, scale: batch_size / first,
    "surge": _surge,  # of Adam and of signs
    "saturating": lambda batch_size, first, scale: (1 + scale / first) / (1 + scale / batch_size),
}
MEASURED = ("surge", "saturating")


@dataclass(frozen=True)
class Arm:
    """A spec taken apart; equal specs are equal arms, so that a compiled program serves both.

    Attributes:
      spec: the text that it was made of.
      controller: of the batch size.
      most: largest batch size.
      follow: by which rule the rate follows, a key of FOLLOW.
    """

    spec: str
    controller: Controller = field(compare=False)
    most: int
    follow: str

    @property
    def needs(self) -> tuple[str, ...]:
        """Signals beside the mean gradient."""
        return self.controller.needs or (NORMS if self.follow in MEASURED else ())

    @property
    def least_batch(self) -> int:
        """Examples that the first batch must have: a variance takes two."""
        return 2 if self.needs else 1

    def begin(self, batch_size: Any) -> Control:
        """Before the first step."""
        size = jnp.asarray(batch_size, jnp.int32)
        zero = jnp.zeros(())
        count = jnp.zeros((), jnp.uint32)
        return Control(size, jnp.ones(()), size, count, zero, zero, jnp.zeros((), bool))

    def update(
        self,
        control: Control,
        gradient: Any,
        moments: ExampleMoments | None,
        max_examples: Any,
    ) -> Control:
        """After a step: (B, ε) of the next one, from the gradients of this.

        Args:
          control: of this step.
          gradient: its mean gradient G, a pytree.
          moments: of its single gradients; None where the arm needs none.
          max_examples: budget of the run.
        """
        examples = control.examples + control.batch_size.astype(jnp.uint32)
        seen = _statistics(control, gradient, moments)
        noise = MEMORY * control.noise + (1 - MEMORY) * seen.batch_size * seen.noise
        signal = MEMORY * control.signal + (1 - MEMORY) * (
            seen.batch_size * seen.square - seen.noise
        )
        scale = jnp.where(signal > 0, noise / signal, jnp.nan)
        progress = examples.astype(jnp.float32) / jnp.asarray(max_examples, jnp.float32)
        choice = self.controller.choose(seen._replace(progress=progress, noise_scale=scale))

        wanted = jnp.where(jnp.isnan(choice.batch_size), seen.batch_size, choice.batch_size)
        size = jnp.clip(jnp.ceil(wanted), 1, self.most)
        follow = FOLLOW[self.follow](size, seen.first, scale)
        rate = jnp.where(jnp.isfinite(follow), choice.rate * follow, control.rate)
        size = size.astype(jnp.int32)
        left = jnp.asarray(max_examples, jnp.uint32) - examples
        return Control(
            batch_size=size,
            rate=rate.astype(control.rate.dtype),
            first=control.first,
            examples=examples,
            noise=noise.astype(control.noise.dtype),
            signal=signal.astype(control.signal.dtype),
            spent=size.astype(jnp.uint32) > left,
        )


def _statistics(control: Control, gradient: Any, moments: ExampleMoments | None) -> Statistics:
    size = control.batch_size.astype(jnp.float32)
    square = _total(jax.tree.map(_square, gradient))
    example_square, along = jnp.nan, jnp.nan
    if moments is not None:
        example_square = _total(moments.square_norm)
        along = jnp.nan if moments.inner is None else moments.inner
    return Statistics(
        batch_size=size,
        first=control.first.astype(jnp.float32),
        progress=jnp.nan,
        square=square,
        noise=jnp.maximum(example_square - square, 0) * size / (size - 1),
        along=along,
        example_square=example_square,
        noise_scale=jnp.nan,
    )


def _square(leaf: jax.Array) -> jax.Array:
    return (leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)) ** 2).sum()


def _total(tree: Any) -> jax.Array:
    return jnp.stack(jax.tree.leaves(tree)).sum()


def make_arm(spec: str) -> Arm | None:
    """An arm from its spec; None for "constant", with which a run is as without.

    Raises:
      ValueError: not of the form name(keyword=literal, ...), or an unknown name, keyword or value;
        the message names near ones.
    """
    name, keywords = split(spec, "batches", "norm_test(eta=0.5)")
    if name not in CONTROLLERS:
        raise ValueError(f"unknown controller {name!r}: {near(name, CONTROLLERS)}")
    parameters = inspect.signature(CONTROLLERS[name]).parameters
    most, follow = (keywords.get(key, default) for key, default in COMMON.items())
    own = {key: value for key, value in keywords.items() if key not in COMMON}
    for keyword, value in own.items():
        if keyword not in parameters:
            choices = [*parameters, *COMMON]
            raise ValueError(f"unknown keyword of {name} {keyword!r}: {near(keyword, choices)}")
        _positive(keyword, value)
    missing = [
        keyword
        for keyword, one in parameters.items()
        if one.default is one.empty and keyword not in own
    ]
    if missing:
        raise ValueError(f"{name} needs {missing[0]}, like {name}({missing[0]}=...)")
    if follow not in FOLLOW:
        raise ValueError(f"unknown follow {follow!r}: {near(str(follow), FOLLOW)}")
    if type(most) is not int or most < 1:
        raise ValueError(f"most must be a whole number of at least 1, got {most!r}")
    made = CONTROLLERS[name](**own)
    if (name, follow) == ("constant", "constant"):
        return None
    return Arm(spec, made, most, follow)


def _positive(keyword: str, value: Any) -> None:
    numbers = value if isinstance(value, tuple | list) else (value,)
    for number in numbers:
        switch = isinstance(number, bool)
        if not switch and not (isinstance(number, int | float) and 0 < number < float("inf")):
            raise ValueError(f"{keyword} must be above 0 and finite, got {value!r}")
