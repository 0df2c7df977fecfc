"""The plan of `surge.suggest --plan`: how many steps and examples each batch size takes, the one
that a budget asks for, and a ramp of batch size, rate and β2 through training."""

import math
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from surge.evidence import Bound, Evidence, gathered
from surge.hyperparameters import hyperparameters
from surge.optimizers.spec import parse
from surge.report import drawing, plan_figure, svg
from surge.report.formats import count, interval, number
from surge.suggestion import given, noise_scale, told
from surge.theory import planning
from surge.theory.planning import Stretch, Trade
from surge.theory.scaling import co_scale

RANGE = range(-6, 7)  # powers of two about B0 that are listed


class Phase(NamedTuple):
    """A part of a ramp: its first step, its steps, and what they are done with.

    Attributes:
      lr: with its 95% interval.
      b2: of the optimizer, with its half-life in examples; nan where it has none.
    """

    start: int
    steps: int
    batch_size: int
    lr: Bound
    b2: float


class Plan(NamedTuple):
    """Batch sizes for a run that is tuned at one.

    Attributes:
      noise: the noise scale that steps follow.
      own: the user's run.
      trades: other batch sizes to the same loss, at the noise scale, and at the ends of its
        interval.
      for_time, for_examples: batch size for a share of the time and of the examples; nan and a
        reason where none will do.
      phases: of a ramp; none where nothing tells the noise scale along training.
      why: the reason then, else "".
    """

    noise: Bound
    own: Trade
    trades: list[tuple[Trade, Trade, Trade]]
    for_time: Bound | None
    for_examples: Bound | None
    phases: list[Phase]
    why: str

    def schedule(self, step: Any) -> jax.Array:
        """The learning rate of the ramp at a step: an optax schedule.

        Raises:
          ValueError: there is no ramp.
        """
        return self._at([phase.lr.value for phase in self.phases], step)

    def batch_size(self, step: Any) -> jax.Array:
        """The batch size of the ramp at a step; raises as `schedule` does."""
        return self._at([phase.batch_size for phase in self.phases], step)

    def b2(self, step: Any) -> jax.Array:
        """β2 of the ramp at a step, for `optax.inject_hyperparams`; raises as `schedule` does."""
        return self._at([phase.b2 for phase in self.phases], step)

    def _at(self, values: list[Any], step: Any) -> jax.Array:
        if not values:
            raise ValueError(self.why)
        starts = jnp.array([phase.start for phase in self.phases])
        return jnp.array(values)[jnp.searchsorted(starts, step, side="right") - 1]


def plan(
    *,
    from_batch_size: float | None = None,
    from_lr: float | None = None,
    run_steps: float | None = None,
    to_batch_size: float | None = None,
    optimizer: str = "adamw",
    time_budget: float | None = None,
    example_budget: float | None = None,
    columns: Mapping[str, str | None] | None = None,
    **known: Any,
) -> Plan:
    """Batch sizes for a run that is tuned at one, from what is known of its task.

    Args:
      from_batch_size, from_lr, optimizer: the run that was tuned.
      run_steps: its steps.
      to_batch_size: batch size in the middle of a ramp; None: from_batch_size.
      time_budget, example_budget: shares of the run's time and examples.
      columns: as `surge.suggest` takes them.
      **known: workdir, label, table, group, where, maximize, noise, small, big, small_column and
        big_column, likewise; a ramp needs a workdir that was measured at several losses.

    Raises:
      ValueError: a number that is missing or not above 0, or nothing that tells a noise scale.
      ResultError: a workdir, a table or a log that cannot be used as asked.
    """
    of_log = [known.pop(name, None) for name in ("small", "big", "small_column", "big_column")]
    of_table = {name: known.pop(name) for name in ("group", "where", "maximize") if name in known}
    evidence = gathered(optimizer, named=of_table | dict(columns or {}), log=tuple(of_log), **known)
    base, lr, size = given(from_batch_size, from_lr, to_batch_size or from_batch_size)
    if run_steps is None or not 0 < run_steps < math.inf:
        raise ValueError("how many steps does the run at from_batch_size take? give run_steps")
    noise = noise_scale(evidence)
    if not math.isfinite(noise.value):
        raise ValueError(f"a plan needs a noise scale: {noise.why}")
    scales = [noise.value, noise.low, noise.high]
    sizes = [base * 2.0**power for power in RANGE if base * 2.0**power >= 1]
    curves = [[planning.trade(one, base, run_steps, end) for one in sizes] for end in scales]
    phases, why = _phases(evidence, noise, base, lr, size, optimizer, run_steps)
    return Plan(
        noise,
        planning.trade(base, base, run_steps, noise.value),
        [*zip(*curves, strict=True)],
        _asked(planning.size_for_time, time_budget, base, noise),
        _asked(planning.size_for_examples, example_budget, base, noise),
        phases,
        why,
    )


def _asked(function: Any, share: float | None, base: float, noise: Bound) -> Bound | None:
    """The batch size for a budget at the noise scale and at both ends of its interval."""
    if share is None:
        return None
    if not 0 < share < math.inf:
        raise ValueError(f"a budget must be a share above 0 of the run's own, got {share}")
    value, *ends = (function(share, base, scale) for scale in (noise.value, noise.low, noise.high))
    if math.isnan(value):
        return Bound(value, value, value, f"no batch size does with {share:g} of the run's")
    known = sorted(end for end in ends if not math.isnan(end))
    low, high = (known[0], known[-1]) if len(known) == 2 else (math.nan, math.nan)
    return Bound(value, low, high, "" if len(known) == 2 else "an end of its interval is open")


def _phases(
    evidence: Evidence,
    noise: Bound,
    base: float,
    lr: float,
    size: float,
    optimizer: str,
    run_steps: float,
) -> tuple[list[Phase], str]:
    """The ramp: at each batch size the rate that its noise scale then asks for."""
    if len(evidence.course) < 2:
        return (
            [],
            "a ramp needs the noise scale at several checkpoints: --stages=measure, --workdir",
        )
    examples = planning.trade(size, base, run_steps, noise.value).examples
    middle = evidence.known.b_simple
    phases = []
    start = 0
    for stretch in planning.ramp(evidence.course, size, middle, examples):
        steps = max(1, round(stretch.examples / stretch.batch_size))
        phases.append(_phase(evidence, stretch, start, steps, base, lr, optimizer))
        start += steps
    return phases, ""


def _phase(
    evidence: Evidence,
    stretch: Stretch,
    start: int,
    steps: int,
    base: float,
    lr: float,
    optimizer: str,
) -> Phase:
    known = evidence.known
    unsure = math.sqrt(known.b_simple_high / known.b_simple_low)
    there = known._replace(
        b_simple=stretch.noise,
        b_simple_low=stretch.noise / unsure,
        b_simple_high=stretch.noise * unsure,
    )
    said = told(evidence._replace(known=there), stretch.batch_size, base).transfer
    values = hyperparameters(parse(optimizer))
    moved = co_scale("half_life", stretch.batch_size / base, b2=values.get("b2", 0.0))
    b2 = moved["b2"] if "b2" in values else math.nan
    rate = Bound(said.ratio * lr, said.low * lr, said.high * lr)
    return Phase(start, steps, stretch.batch_size, rate, b2)


def lines(plan: Plan) -> list[str]:
    """A plan in words and tables."""
    noise = f"{number(plan.noise.value)} {interval(plan.noise.low, plan.noise.high)}"
    out = [f"noise scale {noise}, {plan.noise.why}", "batch size      steps   examples"]
    for middle, low, high in plan.trades:
        mark = "  <- your run" if middle.batch_size == plan.own.batch_size else ""
        ends = sorted((low.steps, high.steps))
        out.append(
            f"{count(middle.batch_size):>10} {number(middle.steps):>10} "
            f"{middle.examples:>10.3g}   steps {interval(ends[0], ends[1])}{mark}"
        )
    for what, size in (("time", plan.for_time), ("examples", plan.for_examples)):
        if size is not None:
            why = f" ({size.why})" if size.why else ""
            told = f"B = {number(size.value)} {interval(size.low, size.high)}"
            out.append(f"within the budget of {what}: {told}{why}")
    if plan.why:
        return [*out, plan.why]
    out.append("ramp: from step, batch size, rate (the factor on your schedule's peak), b2")
    for phase in plan.phases:
        rate = f"{phase.lr.value:.3g} {interval(phase.lr.low, phase.lr.high)}"
        out.append(f"{phase.start:>10} {phase.batch_size:>10} {rate}  {phase.b2:.4g}")
    return out


def figure(plan: Plan) -> str:
    """The hyperbola with the user's run on it, and the ramp, as one SVG file."""
    panel = drawing.Panel("Steps against examples", lambda axes: plan_figure.trade(axes, plan))
    return svg.standalone(svg.element(panel, "plan"))


class _Callable(ModuleType):
    """This module called is `plan` called: surge.plan is the module once it is imported."""

    __call__ = staticmethod(plan)


sys.modules[__name__].__class__ = _Callable
