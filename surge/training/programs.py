"""The compiled programs of a block: its lanes begin, and go on, together on every device."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.stages import Compiled

from surge.optimizers import make_optimizer
from surge.tasks import Task
from surge.training.rewriting import rewritten
from surge.training.run import Run, make_advance, make_begin


class Programs(NamedTuple):
    """begin and advance of a run, compiled for a block of R learning rates and S seeds on each
    device.

    begin(None, rates, keys, batch_size, eval_steps, evaluation, start) -> runs
    advance(runs, rates, keys, batch_size, eval_steps, stop_loss, data, evaluation, since, until) ->
      runs: of rates
    [device, R], keys [S] and runs [device, R, S], which it takes the memory of.
    """

    begin: Compiled
    advance: Compiled

    def bytes(self) -> int:
        """Memory that a device needs for arguments and temporaries, results not counted."""
        sizes = (program.memory_analysis() for program in self)
        return max(each.temp_size_in_bytes + each.argument_size_in_bytes for each in sizes if each)


def compile_begin(
    task: Task, spec: str, own: tuple, evaluation: Any, start: Any, *, form: str
) -> Compiled:
    """`Programs.begin` for arguments like these.

    Args:
      task: what is trained.
      spec: of the optimizer.
      own: rates, keys, batch_size, eval_steps of a block.
      evaluation: of the task, as it lies on the devices.
      start: a State, or None.
      form: how the lanes of a device share it: "vmap" or "map", or "alone" for one lane that equals
        a plain loop bit for bit.
    """
    begin = make_begin(task, make_optimizer(spec))
    lanes = _lanes(lambda _, *arguments: begin(*arguments), form)
    lowered = jax.pmap(lanes, in_axes=(None, 0, *(None,) * 5)).lower(None, *own, evaluation, start)
    return lowered.compile(compiler_options=_options(form))


def compile_advance(
    task: Task,
    spec: str,
    begin: Compiled,
    own: tuple,
    shared: tuple,
    steps: tuple,
    *,
    microbatch_size: int,
    form: str,
) -> Compiled:
    """`Programs.advance` for arguments like these.

    Args:
      task, spec, own, form: those of begin, the program that the runs come from.
      shared: stop_loss, data, evaluation.
      steps: since, until.
      microbatch_size: examples per gradient.
    """
    names = ("learning_rate", "seed") if form == "vmap" else ()
    advance = make_advance(
        task, make_optimizer(spec), microbatch_size=microbatch_size, axis_name=names
    )
    lanes = _lanes(advance, form)
    lanes = rewritten(lanes) if _fast(form) else lanes
    runs = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), begin.out_info)
    mapped = jax.pmap(lanes, in_axes=(0, 0, *(None,) * 8), donate_argnums=0)
    return mapped.lower(runs, *own, *shared, *steps).compile(compiler_options=_options(form))


def _fast(form: str) -> bool:
    """Whether rounding may differ from a plain loop's; one lane alone keeps its order."""
    return jax.default_backend() == "cpu" and form != "alone"


def _options(form: str) -> dict[str, Any] | None:
    """Level 1 compiles these programs twice as fast, and their matrix products are library calls
    either way."""
    return {"xla_backend_optimization_level": 1} if _fast(form) else None


def _lanes(one: Callable[..., Run], form: str) -> Callable[..., Run]:
    """one(run, rate, key, shared...) -> Run for runs [R, S] (or None), rates [R] and keys [S]."""

    def lanes(runs: Run | None, rates: jax.Array, keys: jax.Array, *shared: Any) -> Run:
        def side_by_side(runs: Run | None, rate: jax.Array) -> Run:
            return jax.vmap(lambda run, key: one(run, rate, key, *shared), axis_name="seed")(
                runs, keys
            )

        def in_turns(row: tuple[Run | None, jax.Array]) -> Run:
            runs, rate = row
            return jax.lax.map(lambda lane: one(lane[0], rate, lane[1], *shared), (runs, keys))

        if form == "vmap":
            return jax.vmap(side_by_side, axis_name="learning_rate")(runs, rates)
        return jax.lax.map(in_turns, (runs, rates))

    return lanes
