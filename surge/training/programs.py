"""The compiled programs of a block: its lanes begin, and go on, together on every device."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.stages import Compiled

from surge.optimizers import make_optimizer
from surge.tasks import Task
from surge.training.rewriting import rewritten
from surge.training.run import Run, make_run


class Programs(NamedTuple):
    """begin and advance of `make_run`, compiled for a block of R learning rates and S seeds on each device.

    begin(None, rates, keys, batch_size, eval_steps, evaluation, start) -> runs
    advance(runs, rates, keys, batch_size, eval_steps, stop_loss, data, evaluation, since, until) -> runs: of rates
    [device, R], keys [S] and runs [device, R, S], which it takes the memory of.
    """

    begin: Compiled
    advance: Compiled

    def bytes(self) -> int:
        """Memory that a device needs for arguments and temporaries, results not counted."""
        sizes = (program.memory_analysis() for program in self)
        return max(each.temp_size_in_bytes + each.argument_size_in_bytes for each in sizes if each)


def compile_programs(
    task: Task, spec: str, own: tuple, start: Any, shared: tuple, steps: tuple, *, microbatch_size: int, form: str
) -> Programs:
    """Compiles for arguments like these.

    Args:
      task: what is trained.
      spec: of the optimizer.
      own: rates, keys, batch_size, eval_steps of a block.
      start: a State, or None.
      shared: stop_loss, data, evaluation.
      steps: since, until.
      microbatch_size: examples per gradient.
      form: how the lanes of a device share it: "vmap" or "map", or "alone" for one lane that equals a plain loop bit
        for bit.
    """
    names = ("learning_rate", "seed") if form == "vmap" else ()
    begin, advance = make_run(task, make_optimizer(spec), microbatch_size=microbatch_size, axis_name=names)
    begins, advances = _lanes(lambda _, *arguments: begin(*arguments), form), _lanes(advance, form)
    # A lane alone keeps the order and the rounding of a plain loop. Level 1 compiles these programs twice as fast,
    # and their matrix products are library calls either way.
    fast = jax.default_backend() == "cpu" and form != "alone"
    options = {"xla_backend_optimization_level": 1} if fast else None
    begins = jax.pmap(begins, in_axes=(None, 0, *(None,) * 5)).lower(None, *own, shared[-1], start)
    advances = jax.pmap(rewritten(advances) if fast else advances, in_axes=(0, 0, *(None,) * 8), donate_argnums=0)
    advances = advances.lower(begins.out_info, *own, *shared, *steps)
    return Programs(begins.compile(compiler_options=options), advances.compile(compiler_options=options))


def _lanes(one: Callable[..., Run], form: str) -> Callable[..., Run]:
    """one(run, rate, key, shared...) -> Run for runs [R, S] (or None), rates [R] and keys [S]."""

    def lanes(runs: Run | None, rates: jax.Array, keys: jax.Array, *shared: Any) -> Run:
        def side_by_side(runs: Run | None, rate: jax.Array) -> Run:
            lane = jax.vmap(lambda run, key: one(run, rate, key, *shared), axis_name="seed")
            return lane(runs, keys)

        def in_turns(row: tuple[Run | None, jax.Array]) -> Run:
            runs, rate = row
            return jax.lax.map(lambda lane: one(lane[0], rate, lane[1], *shared), (runs, keys))

        if form == "vmap":
            return jax.vmap(side_by_side, axis_name="learning_rate")(runs, rates)
        return jax.lax.map(in_turns, (runs, rates))

    return lanes
