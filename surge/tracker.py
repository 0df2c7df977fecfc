"""The noise scale of a training, followed while it runs, in the user's own loop.

tracker = surge.Tracker.of(params)
noise = tracker.init()                                               # a pytree of arrays
noise = tracker.update(noise, tracker.from_examples(loss, params, examples))  # every 100 steps
surge.suggest(..., noise=tracker.reading(noise))

All but `reading` is pure and can be jitted; the state checkpoints with the rest of a training.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from surge.gradients import observation
from surge.gradients.layers import layers_of
from surge.gradients.observation import ADAM, B_SIMPLE, SCALES, SIGN, SQUARED, Observation
from surge.noise import Reading
from surge.theory.noise import Estimate, undefined
from surge.theory.smoothing import SHORTEST, Smoothed, dual_noise_scale, noise_scale

PARTS = 3  # of a scale; the number of a reading is the column after them
NOTHING = "every gradient is zero, or there is no matrix among the parameters"


class State(NamedTuple):
    """Sums over readings, each scale's (s) of every layer and of all of them together (r rows).

    Attributes:
      count, skipped: readings that count, and those that were not finite.
      examples: behind all that count.
      unit: what parts are divided by, the size of the first noise [s, r].
      mean: weighted mean of parts and of their number, the last being 0 [s, r, 4].
      scatter: weighted sums of squared deviations and products [s, r, 4, 4].
    """

    count: jax.Array
    skipped: jax.Array
    examples: jax.Array
    unit: jax.Array
    mean: jax.Array
    scatter: jax.Array


class MultiStepsState(NamedTuple):
    """That of `optax.MultiSteps`, squared norms of the micro-batches so far, and the tracker's."""

    inner: optax.MultiStepsState
    squares: jax.Array  # [scale, leaf]
    noise: State


@dataclass(frozen=True)
class Tracker:
    """Follows noise scales with their intervals; `of` makes one.

    Attributes:
      layers: names.
      layer_of: the layer of each leaf of the parameters.
      scales: names of those that are followed.
      half_life: in readings, after which one counts half.
    """

    layers: tuple[str, ...]
    layer_of: tuple[int, ...]
    scales: tuple[str, ...]
    half_life: float

    @classmethod
    def of(
        cls, params: Any, scales: Sequence[str] = (B_SIMPLE, SIGN), half_life: float = 10.0
    ) -> "Tracker":
        """A tracker for parameters of this structure.

        Args:
          params: pytree of arrays or of their shapes.
          scales: "b_simple", "sign", "nuclear" and "adam": see `surge.gradients.observation`.
          half_life: in readings, at least 2. Over a half-life the training should move little: the
            interval allows for a drift along a line, and for as much beside it.

        Raises:
          ValueError: no such scale, or a half-life that is too short.
        """
        if not scales or not set(scales) <= set(SCALES):
            raise ValueError(f"scales must be of {', '.join(SCALES)}, got {', '.join(scales)}")
        if not SHORTEST <= half_life < np.inf:
            raise ValueError(f"half_life must be at least {SHORTEST:g}, got {half_life:g}")
        layers = layers_of(params)
        return cls(tuple(layers.names), layers.of, tuple(scales), float(half_life))

    def init(self) -> State:
        """The state before the first reading."""
        rows = len(self.scales), len(self.layers) + 1
        nothing = jnp.zeros((), jnp.int32)
        return State(
            count=nothing,
            skipped=nothing,
            examples=jnp.zeros(()),
            unit=jnp.ones(rows),
            mean=jnp.zeros((*rows, PARTS + 1)),
            scatter=jnp.zeros((*rows, PARTS + 1, PARTS + 1)),
        )

    def from_examples(
        self,
        loss_fn: Callable[[Any, Any], jax.Array],
        params: Any,
        examples: Any,
        second_moment: Any = None,
    ) -> Observation:
        """From a handful of examples, 8 or more: see `observation.of_examples`."""
        return observation.of_examples(loss_fn, params, examples, self.scales, second_moment)

    def from_gradients(
        self, gradients: Any, batch_size: int, second_moment: Any = None
    ) -> Observation:
        """From stacked gradients of micro-batches: see `observation.of_gradients`."""
        return observation.of_gradients(gradients, batch_size, self.scales, second_moment)

    def from_devices(
        self, gradient: Any, mean: Any, batch_size: int, axis_name: str, second_moment: Any = None
    ) -> Observation:
        """From a device's gradient and the mean of all: see `observation.of_devices`."""
        return observation.of_devices(
            gradient, mean, batch_size, axis_name, self.scales, second_moment
        )

    def update(self, state: State, seen: Observation) -> State:
        """The state with one more reading; one that is not finite is counted, and left out."""
        leaves = jnp.stack([seen.parts[scale] for scale in self.scales])
        rows = jnp.zeros((len(self.scales), len(self.layers), PARTS), leaves.dtype)
        rows = rows.at[:, jnp.array(self.layer_of)].add(leaves)
        parts = jnp.concatenate([rows, rows.sum(1, keepdims=True)], 1).astype(jnp.float32)
        sound = jnp.isfinite(parts).all()
        added = self._added(state, parts, seen.examples)
        left_out = state._replace(skipped=state.skipped + 1)
        return jax.tree.map(lambda new, old: jnp.where(sound, new, old), added, left_out)

    def _added(self, state: State, parts: jax.Array, examples: jax.Array) -> State:
        first = state.count == 0
        size = jnp.abs(parts[..., 0])
        unit = jnp.where(first, jnp.where(size > 0, size, 1.0), state.unit)
        row = jnp.concatenate([parts / unit[..., None], jnp.zeros_like(unit)[..., None]], -1)
        decay = 0.5 ** (1 / self.half_life)
        before = decay * (1 - decay**state.count) / (1 - decay)
        # Readings are numbered back from the last one: their numbers stay small.
        mean = state.mean.at[..., -1].add(-1.0)
        apart = row - mean
        products = apart[..., :, None] * apart[..., None, :]
        return State(
            count=state.count + 1,
            skipped=state.skipped,
            examples=state.examples + examples,
            unit=unit,
            mean=jnp.where(first, row, mean + apart / (before + 1)),
            scatter=decay * state.scatter + before / (before + 1) * products,
        )

    def reading(self, state: State) -> Reading:
        """Every scale with its 95% interval, as a whole and by layer."""
        state = jax.device_get(state)
        found = [
            [self._estimate(state, index, row) for row in range(len(self.layers) + 1)]
            for index in range(len(self.scales))
        ]
        return Reading(
            {scale: rows[-1] for scale, rows in zip(self.scales, found, strict=True)},
            {
                scale: dict(zip(self.layers, rows[:-1], strict=True))
                for scale, rows in zip(self.scales, found, strict=True)
            },
            int(state.count),
            int(state.skipped),
        )

    def _estimate(self, state: State, scale: int, row: int) -> Estimate:
        count = int(state.count)
        mean = np.asarray(state.mean, float)[scale, row]
        scatter = np.asarray(state.scatter, float)[scale, row]
        examples = float(state.examples) / max(count, 1)
        if count and not mean[:PARTS].any():
            return undefined(round(float(state.examples)), 0.0, 0.0, NOTHING)
        if self.scales[scale] in SQUARED:
            told = np.ix_([0, 1, 3], [0, 1, 3])
            found = noise_scale(
                Smoothed(mean[[0, 1, 3]], scatter[told], count, self.half_life), examples
            )
        else:
            found = dual_noise_scale(Smoothed(mean, scatter, count, self.half_life), examples)
        unit = float(state.unit[scale, row])
        return found._replace(
            numerator=unit * found.numerator, denominator=unit * found.denominator
        )

    def around(
        self, multi_steps: optax.MultiSteps, batch_size: int
    ) -> optax.GradientTransformationExtraArgs:
        """`optax.MultiSteps` that also gives a reading at each step that it takes.

        It takes the same steps; noise is `state.noise`. A micro-batch costs its squared norm.

        Args:
          multi_steps: that averages gradients, of at least two micro-batches.
          batch_size: examples in a micro-batch.

        Raises:
          ValueError: a scale that norms do not tell.
        """
        if not set(self.scales) <= set(SQUARED):
            raise ValueError(f"norms of micro-batches tell {', '.join(SQUARED)} alone")

        def init(params: Any) -> MultiStepsState:
            leaves = len(jax.tree.leaves(params))
            squares = jnp.zeros((len(self.scales), leaves))
            return MultiStepsState(multi_steps.init(params), squares, self.init())

        def update(
            updates: Any, state: Any, params: Any = None, **extra: Any
        ) -> tuple[Any, MultiStepsState]:
            gradient = updates
            old = state.inner
            step, new = multi_steps.update(gradient, old, params, **extra)
            stepped = jnp.greater(new.gradient_step, old.gradient_step)
            taken = stepped | jnp.greater(new.mini_step, old.mini_step)
            norms = self._square_norms(gradient, old)
            squares = state.squares + jnp.where(taken, norms, 0.0)
            count = jnp.asarray(old.mini_step) + 1

            def reading(noise: State) -> State:
                mean = jax.tree.map(
                    lambda sum_, one: sum_ + (one - sum_) / count, old.acc_grads, gradient
                )
                pairs = zip(squares / count, self._square_norms(mean, old), strict=True)
                parts = [observation.of_square_norms(*pair, batch_size, count) for pair in pairs]
                seen = Observation(
                    dict(zip(self.scales, parts, strict=True)),
                    (count * batch_size).astype(jnp.float32),
                )
                return self.update(noise, seen)

            noise = jax.lax.cond(stepped, reading, lambda noise: noise, state.noise)
            return step, MultiStepsState(new, jnp.where(stepped, 0.0, squares), noise)

        return optax.GradientTransformationExtraArgs(init, update)

    def _square_norms(self, gradient: Any, state: optax.MultiStepsState) -> jax.Array:
        """[scale, leaf], Adam's by the ν in its state."""
        weights: dict[str, Any] = {B_SIMPLE: None}
        if ADAM in self.scales:
            second_moment = optax.tree_utils.tree_get(state.inner_opt_state, "nu")
            weights[ADAM] = observation.preconditioner(second_moment)
        return jnp.stack(
            [observation.square_norms(gradient, weights[scale]) for scale in self.scales]
        )
