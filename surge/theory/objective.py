"""What a run is judged by: one number for each run from its recorded losses, lower is better."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

CROSSINGS = ("first", "half", "mean")  # by what a run is judged to have met the target of a fall
RUNNING = 5  # evaluations in a running mean


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
    first *evaluation* that is judged to be at or below the target; the loss K steps later is
    interpolated linearly in the steps between two evaluations, so evaluations much further apart
    than K say little of it.

    Judged by the loss itself, the first crossing selects lucky dips, the deeper the noisier a run
    is, and what follows is in part a return to the mean: at small K the value of high learning
    rates is biased upwards. Two other crossings select less:

    * "half": the crossing is judged on one half of the evaluation set and the fall taken on the
      other. What is luck of the examples is gone; the parameters' own luck, a bouncing run that is
      low for all examples at once, is not.
    * "mean": the crossing is that of the mean of the last RUNNING evaluations, and the fall starts
      at the one after it, which had no part in that. What lasts from one evaluation to the next
      remains.

    Attributes:
      target: the loss from which on the fall is counted.
      steps: K.
      crossing: one of CROSSINGS.
    """

    target: float
    steps: int
    crossing: str = "first"
    judged_by: ClassVar[str] = "fall"

    @property
    def target_loss(self) -> float | None:
        return self.target

    def value(
        self,
        loss: np.ndarray,  # [..., eval]
        diverged: np.ndarray,  # [...]
        eval_steps: Any,  # [eval], or with leading axes that broadcast against loss
        half_loss: np.ndarray | None = None,  # [..., eval] on one half of the evaluation set
    ) -> np.ndarray:  # [...]
        """Loss K steps after the crossing minus loss at the crossing, so a fall is negative.

        inf where the target is not met, or the run diverged before the evaluation that follows
        those K steps; nan where the run ended earlier in another way, at max_steps or stop_loss:
        what it would have done is not known.

        Raises:
          ValueError: the crossing is judged on one half, and `half_loss` is None.
        """
        loss = _finite(loss)
        at_steps = np.broadcast_to(np.asarray(eval_steps, float), loss.shape)
        judged, fallen = self._sides(loss, half_loss)
        reached = judged <= self.target
        first = reached.argmax(-1)
        if self.crossing == "mean":
            first = np.minimum(first + 1, loss.shape[-1] - 1)
        later, after = _loss_at(fallen, at_steps, _at(at_steps, first) + self.steps)
        fall = later - _at(fallen, first)
        return np.where(reached.any(-1) & ~_lost(loss, diverged, after), fall, np.inf)

    def _sides(self, loss: np.ndarray, half_loss: np.ndarray | None) -> tuple[Any, Any]:
        """What the crossing is judged on, and what the fall is taken of, both [..., eval]."""
        if self.crossing == "mean":
            return _running_mean(loss), loss
        if self.crossing == "first":
            return loss, loss
        if half_loss is None:
            raise ValueError("the runs have no loss of one half of the evaluation set")
        half_loss = _finite(half_loss)
        return half_loss, 2 * loss - half_loss


@dataclass(frozen=True)
class LossAfter:
    """The loss some steps after a state that all runs branch from.

    What `FallAfter` is after, without a crossing: no run can have been lucky before it began.

    Attributes:
      start: loss of the shared state.
      steps: K.
    """

    start: float
    steps: int
    crossing: ClassVar[str] = "shared"
    judged_by: ClassVar[str] = "fall"

    @property
    def target_loss(self) -> float | None:
        return self.start

    def value(
        self,
        loss: np.ndarray,  # [..., eval]
        diverged: np.ndarray,  # [...]
        eval_steps: Any,  # [eval] since the shared state, or with leading axes
    ) -> np.ndarray:  # [...]
        """Loss after K steps; inf where the run diverged by then, nan where it ended otherwise."""
        loss = _finite(loss)
        at_steps = np.broadcast_to(np.asarray(eval_steps, float), loss.shape)
        end = np.full(loss.shape[:-1], float(self.steps))
        later, after = _loss_at(loss, at_steps, end)
        return np.where(_lost(loss, diverged, after), np.inf, later)


Objective = StepsTo | FinalLoss | FallAfter | LossAfter


def needs_halves(objective: Objective) -> bool:
    """Whether its `value` takes the loss of one half of the evaluation set as well."""
    return isinstance(objective, FallAfter) and objective.crossing == "half"


def _at(values: np.ndarray, index: np.ndarray) -> np.ndarray:
    """values [..., eval] at index [...]."""
    return np.take_along_axis(values, index[..., None], -1)[..., 0]


def _loss_at(
    loss: np.ndarray,  # [..., eval]
    at_steps: np.ndarray,  # [..., eval]
    end: np.ndarray,  # [...]
) -> tuple[np.ndarray, np.ndarray]:
    """Loss at a step, nan where it was not recorded; index of the first evaluation from there."""
    evals = loss.shape[-1]
    after = (at_steps < end[..., None]).sum(-1)
    recorded = after < evals
    index = np.minimum(after, evals - 1)
    before = np.maximum(index - 1, 0)
    since = _at(at_steps, before)
    share = (end - since) / np.maximum(_at(at_steps, index) - since, 1.0)
    value = _at(loss, before) + share * (_at(loss, index) - _at(loss, before))
    return np.where(recorded, value, np.nan), after


def _lost(loss: np.ndarray, diverged: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Whether runs diverged by an evaluation [...].

    The loss that a diverged run recorded last may be finite, and is what it diverged with.
    """
    return diverged.astype(bool) & (after >= _last(loss))


def _running_mean(loss: np.ndarray) -> np.ndarray:
    """Mean of the last RUNNING evaluations [..., eval]; nan before there are so many."""
    padding = np.full((*loss.shape[:-1], RUNNING - 1), np.nan)
    padded = np.concatenate([padding, loss], -1)
    return np.lib.stride_tricks.sliding_window_view(padded, RUNNING, -1).mean(-1)


def _finite(loss: np.ndarray) -> np.ndarray:
    """An infinite loss says no more than nan, and inf - inf would warn."""
    return np.where(np.isfinite(loss), loss, np.nan)


def _last(loss: np.ndarray) -> np.ndarray:
    """Index of the last finite loss of [..., eval]; 0 where there is none."""
    return np.isfinite(loss).cumsum(-1).argmax(-1)
