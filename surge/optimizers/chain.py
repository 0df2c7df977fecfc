"""An optimizer as everything else has it: its spec, its optax chain, and what its Rule says."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from surge.optimizers.rule import Rule, Stationary, whole
from surge.optimizers.spec import BATCH_SIZE, Spec, parse, text_of
from surge.theory.scaling import co_scale

SCHEDULED = ("schedule", "warmup", "warmup_steps")


@dataclass(frozen=True)
class Optimizer:
    """(learning_rate, batch_size, total_steps) -> optax chain, all three may be traced.

    The chain is clip, direction, weight decay, schedule, learning rate. With total_steps None there
    is no schedule, and the full rate throughout. Equal specs are equal optimizers, so that a
    compiled program serves both.

    Attributes:
      spec: the text that it was made of.
      entry: keywords -> Rule.
      parsed: the spec taken apart.
      unit: examples that a batch size is counted in: of a ghost batch, else 1.
      sign_like, bends, needs, norm_batch, least_batch: see `Rule`.
    """

    spec: str
    entry: Callable[..., Any]
    parsed: Spec = field(compare=False, repr=False)
    sign_like: bool = False
    bends: bool = False
    needs: tuple[str, ...] = ()
    norm_batch: int = 1
    least_batch: int = 1
    unit: int = 1

    def __call__(
        self, learning_rate: Any, batch_size: Any, total_steps: Any
    ) -> optax.GradientTransformation:
        rule, decay, warmup = self._at(batch_size)
        rate = optax.scale_by_learning_rate(learning_rate)
        pieces = [*self._clip(), rule.transform]
        if self.parsed.common.get("decay_independent"):
            pieces += [rate, *self._decay(rule, -decay), *self._schedule(warmup, total_steps)]
        else:
            pieces += [*self._decay(rule, decay), *self._schedule(warmup, total_steps), rate]
        return optax.chain(*pieces)

    @property
    def scheduled(self) -> str:
        """Its keyword that counts a run's steps; "" where none does."""
        common = self.parsed.common
        counting = (key for key in ("warmup", "schedule") if key in common)
        return next((key for key in counting if common[key] != "constant"), "")

    def weights(self, batch_size: float) -> np.ndarray:
        """How a direction weighs the gradients of the last steps, newest first [k]; sum 1.

        1/Σw² is the number of batches that the momentum averages: (1 + β)/(1 − β) for β, 71 for
        Lion's (0.9, 0.99).
        """
        weights = self._at(batch_size)[0].weights
        assert weights is not None
        return weights()

    def examples(self, batch_size: int) -> int:
        """κB: examples behind one update, whose momentum averages κ = 1/Σw² batches."""
        return int(np.ceil(batch_size / (self.weights(batch_size) ** 2).sum()))

    def settle(self, state: Any, first: Any, second: Any, params: Any, batch_size: Any) -> Any:
        """The state of the chain where gradients have had stationary moments for long.

        Args:
          state: of the chain that the optimizer made.
          first: E G, a pytree like params.
          second: E G², likewise; both of gradients of batches of batch_size.
          params: where the gradients are taken.
          batch_size: B, which decay rates may follow.
        """
        settle = self._at(batch_size)[0].settle
        assert settle is not None
        index = len(self._clip())  # of the direction in the chain
        at = Stationary(first, second, params, batch_size * self.unit)
        return (*state[:index], settle(state[index], at), *state[index + 1 :])

    def held(self, steps: int) -> "Optimizer":
        """Without schedule, and at rate 0 for the first steps, in which its state settles."""
        common = {key: one for key, one in self.parsed.common.items() if key not in SCHEDULED}
        text = text_of(self.parsed.name, self.parsed.own | common | {"hold": steps})
        return make_optimizer(text).counted_in(self.unit)

    def counted_in(self, unit: int) -> "Optimizer":
        """The same for batch sizes that are counted in units of so many examples."""
        return replace(self, unit=unit)

    def _at(self, batch_size: Any) -> tuple[Rule, Any, Any]:
        """The rule, weight decay and warmup steps, as co-scaling has them at a batch size."""
        spec, examples = self.parsed, batch_size * self.unit
        warmup = spec.common.get("warmup_steps", 0)
        rule = _rule(spec, spec.own, examples)
        decay = spec.common.get("weight_decay", rule.weight_decay)
        if "scaling" not in spec.common:
            return rule, decay, warmup
        ratio = examples / spec.common["base_batch_size"]
        given = _defaults(spec) | spec.own | {"weight_decay": decay, "warmup_steps": warmup}
        moved = co_scale(spec.common["scaling"], ratio, **given)
        decay = moved.pop("weight_decay")
        warmup = moved.pop("warmup_steps")
        return _rule(spec, moved, examples), decay, warmup

    def _clip(self) -> list[optax.GradientTransformation]:
        common = self.parsed.common
        return [optax.clip_by_global_norm(common["clip"])] if "clip" in common else []

    def _decay(self, rule: Rule, decay: Any) -> list[optax.GradientTransformation]:
        common = self.parsed.common
        if "weight_decay" not in common and not rule.weight_decay:
            return []
        return [optax.add_decayed_weights(decay, _matrices if common.get("decay_mask") else None)]

    def _schedule(self, warmup_steps: Any, total_steps: Any) -> list[optax.GradientTransformation]:
        common, pieces = self.parsed.common, []
        if total_steps is None:
            return pieces
        if common.keys() & set(SCHEDULED):
            warmup = common["warmup"] * total_steps if "warmup" in common else warmup_steps
            share = schedule(common.get("schedule", "constant"), warmup, total_steps)
            pieces.append(optax.scale_by_schedule(share))
        if "hold" in common:
            steps = common["hold"]
            pieces.append(optax.scale_by_schedule(lambda step: jnp.where(step < steps, 0.0, 1.0)))
        return pieces


def make_optimizer(spec: str) -> Optimizer:
    """An optimizer from its spec.

    Args:
      spec: name or module:function, or either with (keyword=literal, ...); keywords are those of
        the function and of `spec.COMMON`.

    Raises:
      ValueError: see `parse`; or the function's rule is not whole, see `whole`; or a weight decay
        is spoken of that there is none of.
    """
    parsed = parse(spec)
    rule = _rule(parsed, parsed.own, 1)
    spoken = {"decay_mask", "decay_independent"} & parsed.common.keys()
    if spoken and not parsed.common.get("weight_decay", rule.weight_decay):
        raise ValueError(f"{spoken.pop()} says how weights decay: give weight_decay, like 0.1")
    names = ("sign_like", "bends", "needs", "norm_batch", "least_batch")
    said = {name: getattr(rule, name) for name in names}
    return Optimizer(spec, parsed.entry, parsed, **said)


def schedule(kind: str, warmup_steps: Any, total_steps: Any) -> Callable[[Any], Any]:
    """The learning rate at a step as a share of its full value.

    It is above 0 in every step, and 1 in a run of one.
    """

    def share(step: Any) -> Any:
        length = jnp.maximum(total_steps - warmup_steps, 1)
        decaying = jnp.clip((step - warmup_steps) / length, 0, 1)
        decay = {
            "constant": 1.0,
            # (1 + cos πx)/2, without its cancellation near 0
            "cosine": jnp.cos(jnp.pi / 2 * decaying) ** 2,
            "wsd": jnp.minimum((1 - step / total_steps) / 0.2, 1),
        }[kind]
        return decay * jnp.minimum((step + 1) / jnp.maximum(warmup_steps, 1), 1)

    return share


def _matrices(params: Any) -> Any:
    """True for arrays of two or more axes: what is multiplied with, not added or scaled by."""
    return jax.tree.map(lambda leaf: jnp.ndim(leaf) > 1, params)


def _rule(spec: Spec, own: dict[str, Any], batch_size: Any) -> Rule:
    """The rule of a spec; a function that takes a batch_size is given that of the batch."""
    told = {BATCH_SIZE: batch_size} if BATCH_SIZE in spec.parameters else {}
    return whole(spec.name, spec.entry(**own, **told))


def _defaults(spec: Spec) -> dict[str, Any]:
    """Keywords of a function with the values that they have where a spec says nothing."""
    given = spec.parameters.items()
    return {
        name: one.default
        for name, one in given
        if one.default is not one.empty and name != BATCH_SIZE
    }
