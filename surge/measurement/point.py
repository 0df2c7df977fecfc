"""A checkpoint as statistics see it, with what several of them need, computed once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np

from surge.gradients import independent, one_step
from surge.gradients.directions import GROUPS
from surge.gradients.layers import Layers, layers_of
from surge.gradients.noise import GradientNoise, gradient_noise
from surge.gradients.ratio import as_mean
from surge.gradients.steps import Steps, sample_steps
from surge.optimizers import Optimizer, make_optimizer
from surge.tasks import Task, ghost_batches
from surge.theory.second_order import Hessian
from surge.training.branch import BranchOracle

BOUNDS = ("value", "low", "high")  # of every estimate with an interval
_draw = jax.jit(lambda draw, data, keys: jax.vmap(draw, (None, 0))(data, keys), static_argnums=0)


@dataclass(frozen=True)
class Problem:
    """What all checkpoints of a run share.

    Where only a batch of examples has a loss, its ghost batches stand in for examples: moments are
    those of mini-batches. Whatever counts examples does so nonetheless.

    Attributes:
      task: what was trained.
      specs: label -> spec of each optimizer that is asked about.
      batch_sizes: B [b], in examples.
      seed: of all that is drawn.
      examples: whose gradients are taken at each checkpoint.
      directions: sampled for each optimizer and batch size.
      horizons: steps after which branches are compared.
      branch_examples: that the branches of one optimizer and batch size may train on.
    """

    task: Task
    specs: Mapping[str, str]
    batch_sizes: Sequence[int]
    seed: int
    examples: int
    directions: int
    horizons: Sequence[int]
    branch_examples: int

    @property
    def unit(self) -> int:
        """Examples behind whatever has a loss of its own."""
        return 1 if self.task.batch_loss is None else self.task.ghost

    @property
    def units(self) -> list[int]:
        """Batch sizes counted in units."""
        return [size // self.unit for size in self.batch_sizes]

    @cached_property
    def single(self) -> Task:
        """The task of single units."""
        return self.task if self.task.batch_loss is None else ghost_batches(self.task)

    @cached_property
    def optimizers(self) -> dict[str, Optimizer]:
        """Label -> optimizer, for batch sizes counted in units."""
        return {
            label: make_optimizer(spec).counted_in(self.unit) for label, spec in self.specs.items()
        }

    @cached_property
    def branch(self) -> BranchOracle:
        """The oracle beyond one step."""
        key = jax.random.fold_in(jax.random.key(self.seed), 2_000_000)
        return BranchOracle(self.task, key, self.branch_examples)


@dataclass(frozen=True)
class Point:
    """One checkpoint.

    Attributes:
      problem: what it is a checkpoint of.
      params: its parameters.
      index: of the checkpoint, which its draws depend on.
    """

    problem: Problem
    params: Any
    index: int

    @cached_property
    def _keys(self) -> jax.Array:
        """Of examples, probes and steps."""
        key = jax.random.fold_in(jax.random.key(self.problem.seed), 1_000_000 + self.index)
        return jax.random.split(key, 3)

    @cached_property
    def layers(self) -> Layers:
        """Of the parameters."""
        return layers_of(self.params)

    @cached_property
    def single(self) -> Task:
        """Of single units; where they have weights, one whose plain mean acts as theirs."""
        single = self.problem.single
        if single.weight is None:
            return single
        loss = as_mean(single.loss, single.weight, self.params, single.evaluation)
        return single._replace(loss=loss, weight=None)

    @cached_property
    def noise(self) -> GradientNoise:
        """Gradients of single units."""
        problem, single = self.problem, self.single
        size = problem.examples // GROUPS // problem.unit
        batches = [
            _draw(single.draw, single.data, jax.random.split(key, size))
            for key in jax.random.split(self._keys[0], GROUPS)
        ]
        return gradient_noise(single.loss, self.params, batches, problem.unit)

    @cached_property
    def hessian(self) -> Hessian:
        """Of the loss on the evaluation subset."""
        single = self.single
        return independent.flat_hessian(single.loss, self.params, single.evaluation, self._keys[1])

    @cached_property
    def steps(self) -> Steps:
        """Sampled steps of each optimizer at each batch size."""
        problem, single = self.problem, self.single
        return sample_steps(
            single.loss,
            self.params,
            single.draw,
            single.data,
            single.evaluation,
            problem.optimizers,
            problem.units,
            self._keys[2],
            count=problem.directions,
            layers=self.layers.of,
        )

    @cached_property
    def oracle(self) -> dict[str, one_step.OneStepLR]:
        """Label -> true one-step optimum of each optimizer."""
        samples = self.steps.samples.items()
        return {label: one_step.one_step_oracle(steps) for label, steps in samples}


def bounds(*estimates: Any) -> np.ndarray:
    """Value, low and high of each estimate [..., 3]."""
    return np.array([[found.value, found.low, found.high] for found in estimates])
