"""What a run is judged by: one number for each run from its recorded losses, lower is better."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np


@dataclass(frozen=True)
class StepsTo:
    """log of the optimizer steps at which a run's loss first falls to a target.

    Between two evaluations log(steps) is interpolated linearly in the loss.

    Attributes:
      target: the loss that is sought.
    """

    target: float
    judged_by: ClassVar[str] = "steps"

    @property
    def target_loss(self) -> float | None:
        return self.target

    def value(
        self,
        loss: np.ndarray,  # [..., eval]
        diverged: np.ndarray,  # [...]
        eval_steps: Any,  # [eval], or with leading axes that broadcast against loss
    ) -> np.ndarray:  # [...]
        """log(steps); inf where the target is not reached, whether or not the run diverged."""
        del diverged  # what a run does after it has got there does not count
        loss = _finite(loss)
        log_steps = np.broadcast_to(np.log(eval_steps), loss.shape)
        reached = loss <= self.target
        first = reached.argmax(-1)
        before = np.maximum(first - 1, 0)
        high = _at(loss, before)
        low = _at(loss, first)
        share = (high - self.target) / np.where(high > low, high - low, 1.0)
        share = np.where(first > 0, share, 1.0)
        start = _at(log_steps, before)
        steps = start + share * (_at(log_steps, first) - start)
        return np.where(reached.any(-1), steps, np.inf)


@dataclass(frozen=True)
class FinalLoss:
    """The loss where a run ended."""

    judged_by: ClassVar[str] = "loss"
    target_loss: ClassVar[float | None] = None

    def value(
        self,
        loss: np.ndarray,  # [..., eval]
        diverged: np.ndarray,  # [...]
        eval_steps: Any,  # [eval]
    ) -> np.ndarray:  # [...]
        """The last finite loss; inf where the run diverged, nan where it recorded no loss."""
        del eval_steps
        return np.where(diverged, np.inf, _at(loss, _last(loss)))


@dataclass(frozen=True)
class FallAfter:
    """The change of the loss in some steps more, from where it first met a target.

    The protocol of the experiments in arXiv 2405.14578: train to the target, go on for a fixed
    number of steps K, and take the learning rate with the largest further fall. Counted from the
    first *evaluation* at or below the target; the loss K steps later is interpolated linearly in
    the steps between two evaluations, so evaluations much further apart than K say little of it.

    The first crossing selects lucky dips, the deeper the noisier a run is, and what follows is in
    part a return to the mean: at small K the value of high learning rates is biased upwards.

    Attributes:
      target: the loss from which on the fall is counted.
      steps: K.
    """

    target: float
    steps: int
    judged_by: ClassVar[str] = "fall"

    @property
    def target_loss(self) -> float | None:
        return self.target

    def value(
        self,
        loss: np.ndarray,  # [..., eval]
        diverged: np.ndarray,  # [...]
        eval_steps: Any,  # [eval], or with leading axes that broadcast against loss
    ) -> np.ndarray:  # [...]
        """Loss K steps after the crossing minus loss at the crossing, so a fall is negative.

        inf where the target is not met, or the run diverged before the evaluation that follows
        those K steps; nan where the run ended earlier in another way, at max_steps or stop_loss:
        what it would have done is not known.
        """
        loss = _finite(loss)
        at_steps = np.broadcast_to(np.asarray(eval_steps, float), loss.shape)
        reached = loss <= self.target
        first = reached.argmax(-1)
        end = _at(at_steps, first) + self.steps

        evals = loss.shape[-1]
        after = (at_steps < end[..., None]).sum(-1)  # the first evaluation at that step or later
        recorded = after < evals
        after = np.minimum(after, evals - 1)
        before = np.maximum(after - 1, 0)
        since = _at(at_steps, before)
        share = (end - since) / np.maximum(_at(at_steps, after) - since, 1.0)
        ended = _at(loss, before) + share * (_at(loss, after) - _at(loss, before))

        fall = np.where(recorded, ended - _at(loss, first), np.nan)
        # The loss that a diverged run recorded last may be finite, and is what it diverged with.
        lost = diverged.astype(bool) & (~recorded | (after >= _last(loss)))
        return np.where(reached.any(-1) & ~lost, fall, np.inf)


Objective = StepsTo | FinalLoss | FallAfter


def _at(values: np.ndarray, index: np.ndarray) -> np.ndarray:
    """values [..., eval] at index [...]."""
    return np.take_along_axis(values, index[..., None], -1)[..., 0]


def _finite(loss: np.ndarray) -> np.ndarray:
    """An infinite loss says no more than nan, and inf - inf would warn."""
    return np.where(np.isfinite(loss), loss, np.nan)


def _last(loss: np.ndarray) -> np.ndarray:
    """Index of the last finite loss of [..., eval]; 0 where there is none."""
    return np.isfinite(loss).cumsum(-1).argmax(-1)
