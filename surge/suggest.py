"""The learning rate at another batch size, with its interval and what it rests on.

python -m surge.suggest --from_batch_size=256 --from_lr=3e-4 --to_batch_size=2048 --optimizer=adamw
[--workdir=DIR | --table=FILE] [--noise=LOG --small=32 --big=512]
[--probe=my_task:task --target_loss=1.2 --run_examples=1e6] [--json]

From Python: surge.suggest(from_batch_size=256, from_lr=3e-4, to_batch_size=2048). Evidence is a
workdir of surge.main or surge.fit_table (its sweep, its checkpoint, or both) or a table of runs,
and a log of |G|² at two batch sizes (a table, or event files of TensorBoard), which tells the noise
scale; without it the rules alone answer, with the errors they made where they were judged. A probe
runs a few cells of your own task where the rate is open by more than a factor √2 to each side.
"""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from absl import flags

from surge import cli
from surge import evidence as evidences
from surge.evidence import Bound, Evidence
from surge.hyperparameters import rule_ends
from surge.noise import Reading
from surge.optimizers.spec import parse
from surge.plan import figure, plan
from surge.plan import lines as plan_lines
from surge.probe import FILE, Asked
from surge.probe import probe as run
from surge.report.formats import interval, number
from surge.suggestion import SHOWN, WIDE, Suggestion, given, suggestion, told
from surge.tables import reading as tables
from surge.tasks import Task
from surge.theory.noise import Estimate
from surge.workdir.files import ResultError, finite_or_none, write_bytes

NUMBERS = {
    "from_batch_size": (None, "Batch size at which the rate was tuned."),
    "from_lr": (None, "The rate that was right there."),
    "to_batch_size": (None, "The new batch size."),
    "horizon_ratio": (1.0, "New / old length of the run in examples."),
    "small": (None, "Examples in the small batch of --noise."),
    "big": (None, "Examples in the big batch of --noise."),
    "target_loss": (None, "Loss that the runs of a probe are to reach."),
    "run_examples": (None, "Examples that a run of yours is trained on to its end."),
}
TEXTS = {
    "optimizer": ("adamw", "Name or spec, like 'adamw(b2=0.95)'."),
    "workdir": (None, "Of surge.main or surge.fit_table: the evidence."),
    "label": (None, "Which optimizer or group, like width=256, where it is not --optimizer's."),
    "table": (None, "Of runs, as surge.fit_table takes it: the evidence."),
    "noise": (None, "Log of |G|² of small and big batches: a table, or event files."),
    "small_column": (None, "Of |G|² of the small batch in --noise, where its name lacks the word."),
    "big_column": (None, "Of |G|² of the big batch there."),
    "probe": (None, "Task as module:function: run a few cells of it where the rate is open."),
    "figure": (None, "File for the figure of --plan, an SVG."),
    "probe_file": (FILE, "Keeps the runs of a probe: the same command goes on from them."),
    "budget": ("5%", "Of a probe, as a share of the examples of a dense sweep."),
}
COLUMNS = {  # of a table, where their names do not say it
    "batch_size": "Column of the batch size in the table.",
    "learning_rate": "Column of the learning rate in the table.",
    "loss": "Column of the loss at the end of a run in the table.",
    "steps": "Column of the steps to the target in the table.",
    "tokens": "Column of the examples or tokens to the target in the table.",
    "seed": "Column of the seed in the table.",
}
SWITCHES = {
    "maximize": "A high value of the table is good.",
    "plan": "Print steps and examples of other batch sizes, and a ramp, for a run of --run_steps.",
    "branch": "Let a probe start at the checkpoint of --workdir, and not at initialisation.",
    "json": "Print the answer as JSON.",
}
LISTS = {
    "group": "Column of the table whose values are fitted apart, such as a width.",
    "where": "COL=VALUE: take only those rows of the table.",
}
PLANNED = (  # to `plan` as they are
    *("from_batch_size", "from_lr", "to_batch_size", "optimizer", "workdir", "label", "table"),
    *("group", "where", "maximize", "noise", "small", "big", "small_column", "big_column"),
    *("run_steps", "time_budget", "example_budget"),
)
OF_A_PLAN = {
    "run_steps": "Steps of the run that was tuned, for --plan.",
    "time_budget": "Share of that run's time, for --plan; a step takes equally long whatever B.",
    "example_budget": "Share of that run's examples, for --plan.",
}
PASSED = (
    *NUMBERS,
    *(name for name in TEXTS if name != "figure"),
    *LISTS,
    "maximize",
    "branch",
)  # to `suggest` as they are
MARKS = {"sqrt": "√B", "linear": "linear", "constant": "constant"}


def suggest(
    *,
    from_batch_size: float | None = None,
    from_lr: float | None = None,
    to_batch_size: float | None = None,
    optimizer: str = "adamw",
    workdir: Path | str | None = None,
    label: str | None = None,
    table: Path | str | None = None,
    group: Sequence[str] = (),
    where: Sequence[str] = (),
    maximize: bool = False,
    horizon_ratio: float = 1.0,
    columns: Mapping[str, str | None] | None = None,
    noise: Path | str | Estimate | Reading | None = None,
    small: float | None = None,
    big: float | None = None,
    small_column: str | None = None,
    big_column: str | None = None,
    probe: str | Task | None = None,
    target_loss: float | None = None,
    run_examples: float | None = None,
    budget: float = 0.05,
    probe_file: Path | str = "probe.json",
    branch: bool = False,
) -> Suggestion:
    """The learning rate at a new batch size from one that is right at another.

    Args:
      from_batch_size, from_lr: B0 and the rate that was tuned there.
      to_batch_size: B.
      optimizer: name or spec, like "adamw(b2=0.95, weight_decay=0.1, warmup_steps=2000)".
      workdir: of surge.main or surge.fit_table.
      label: of the optimizer or group that is asked about, as in "width=256"; None: `optimizer`.
      table: of runs, as surge.fit_table takes it.
      group, where, maximize: of the table, as surge.fit_table takes them. Other groups inform the
        one that is asked for where they differ from it by numbers only and have its shape.
      horizon_ratio: new / old length of the run in examples, which weight decay follows.
      columns: batch_size, learning_rate, loss, steps, tokens or seed -> column of the table; what
        is not given is guessed.
      noise: the reading of a surge.Tracker, an estimate of surge.noise.from_norms, or a log as
        surge.noise.logged takes it, with the four that follow.
      small, big, small_column, big_column: of that log.
      probe: a task, or its module:function, that may be run where the interval is wider than ±√2:
        to target_loss, until it is not or the budget is spent.
      target_loss: that the runs of a probe are to reach.
      run_examples: that a run is trained on to its end.
      budget: of a probe, as a share of a dense sweep of such runs.
      probe_file: keeps the runs of a probe; the same call goes on from it.
      branch: whether a probe starts at the workdir's checkpoint, and not at initialisation.

    Raises:
      ValueError: a number that is missing or not above 0, both workdir and table, an optimizer that
        is not known, or a task that cannot be trained.
      ResultError: a workdir, a table, a log or a probe_file that cannot be used as asked.

    Example:
      >>> said = suggest(from_batch_size=256, from_lr=3e-4, to_batch_size=2048, optimizer="adam")
      >>> said.low < said.lr < said.high
      True
      >>> f"{said.alternatives['linear'].lr:.2g}"
      '0.0024'
    """
    evidence = evidences.gathered(
        optimizer,
        workdir=workdir,
        label=label,
        table=table,
        named={"group": group, "where": where, "maximize": maximize, **(columns or {})},
        noise=noise,
        log=(small, big, small_column, big_column),
    )
    if probe is not None:
        if branch and workdir is None:
            raise ValueError("branch starts at a checkpoint of a workdir: give workdir")
        source = Path(workdir) if workdir is not None and branch else None
        asked = Asked(probe, target_loss, run_examples, budget, Path(probe_file), source)
        base, lr, size = given(from_batch_size, from_lr, to_batch_size, horizon_ratio)
        evidence = _probed(evidence, asked, optimizer, base, lr, size)
    return suggestion(
        evidence,
        from_batch_size=from_batch_size,
        from_lr=from_lr,
        to_batch_size=to_batch_size,
        optimizer=optimizer,
        horizon_ratio=horizon_ratio,
    )


def _probed(
    evidence: Evidence, asked: Asked, optimizer: str, base: float, lr: float, size: float
) -> Evidence:
    """The evidence with a few runs of the task, where it leaves the rate open."""
    before = told(evidence, size, base).transfer
    if before.high / before.low <= WIDE:
        remark = "no probe: the interval is within a factor √2 to each side without one"
        return evidence._replace(remarks=[*evidence.remarks, remark])
    return evidence._replace(probed=run(asked, optimizer, size, lr, before))


def lines(said: Suggestion) -> list[str]:
    """A suggestion in words: the answer first, then what it rests on, what else, and its end."""
    old = f"batch size {said.from_batch_size:g}, rate {said.from_lr:.3g}"
    new = f"batch size {said.to_batch_size:g}, rate {said.lr:.3g} {interval(said.low, said.high)}"
    out = [f"{old}  ->  {new}  (95%)"]
    if said.why:
        out.append(said.why)
    out += [f"rests on {sentence}" for sentence in said.rests_on]
    steps = said.to_batch_size / said.from_batch_size
    out.append(
        "what moves is a ratio: horizon in examples, schedule and task stay those of the old rate, "
        f"with {max(steps, 1 / steps):.3g} times {'fewer' if steps > 1 else 'more'} steps"
    )
    out += [_cost(name, said) for name in SHOWN]
    out += _hyperparameters(said)
    if said.resumed:
        out.append(said.resumed)
    out.append(_where("more batch costs over 20% more examples", said.overhead))
    out.append(_where("the rate does not rise", said.rises_to))
    if said.trials:
        out.append("rates to try: " + ", ".join(f"{rate:.3g}" for rate in said.trials))
    out += [f"warning: {sentence}" for sentence in said.warnings]
    return [*out, said.paste]


def _cost(name: str, said: Suggestion) -> str:
    rule = said.alternatives[name]
    if said.unit == "steps":
        cost = f"{_share(rule.cost)} steps [{_share(rule.low)}, {_share(rule.high)}]"
    else:
        cost = f"+{rule.cost:.2g} loss [{rule.low:.2g}, {rule.high:.2g}]"
    fails = f", fails in {rule.fails:.0%}" if rule.fails > 0.005 else ""
    return f"{MARKS[name]} would give {rule.lr:.3g}: {cost}{fails}"


def _share(value: float) -> str:
    return "10x or more" if value >= 10 else f"+{value:.0%}"


def _hyperparameters(said: Suggestion) -> list[str]:
    """What would follow the batch size, rule by rule, and where a rule ends."""
    titles = {
        "half_life": "decay rates by half-life in examples (β^ratio)",
        "sde": "by the SDE rule (1 − β scaled)",
        "timescale": "weight decay by batch size and horizon",
    }
    out = []
    for rule, moved in said.co_scaled.items():
        if isinstance(moved, str):
            out.append(f"{titles[rule]}: {moved}")
        else:
            values = ", ".join(f"{name} {value:.4g}" for name, value in moved.items())
            out.append(f"{titles[rule]}: {values}")
    high, name = rule_ends(parse(said.optimizer))
    if math.isfinite(high):
        out.append(f"the SDE rule ends at {high:.4g} times the batch size, where {name} is 0")
    if out:
        out.append("the rate above is for decay rates as they were, as in all that it rests on")
    return out


def _where(what: str, bound: Bound) -> str:
    why = f" ({bound.why})" if bound.why else ""
    if math.isfinite(bound.value):
        return f"{what} beyond B = {number(bound.value)} {interval(bound.low, bound.high)}{why}"
    if bound.low > 0:
        return f"{what} beyond a B of at least {number(bound.low)}{why}"
    return f"{what} beyond some B: cannot tell which; {bound.why}"


def own_flags() -> flags.FlagValues:
    """The flags of the program."""
    values = flags.FlagValues()
    for name, (default, meaning) in NUMBERS.items():
        flags.DEFINE_float(name, default, meaning, flag_values=values)
    for name, (default, meaning) in TEXTS.items():
        flags.DEFINE_string(name, default, meaning, flag_values=values)
    for name, meaning in OF_A_PLAN.items():
        flags.DEFINE_float(name, None, meaning, flag_values=values)
    for name, meaning in COLUMNS.items():
        flags.DEFINE_string(name, None, meaning, flag_values=values)
    for name, meaning in SWITCHES.items():
        flags.DEFINE_bool(name, False, meaning, flag_values=values)
    for name, meaning in LISTS.items():
        flags.DEFINE_multi_string(name, [], meaning, flag_values=values)
    return values


def main(argv: Sequence[str]) -> None:
    """The program, `argv` being its name and its arguments."""
    values = own_flags()
    argv = cli.parse(values, argv, __doc__)
    if len(argv) > 1:
        cli.fail(f"{argv[1]} is not a flag: a table is given as --table={argv[1]}")
    flag = values.flag_values_dict()
    try:
        if flag["plan"]:
            print("\n".join(_planned(flag)))
            return
        flag["budget"] = _share_of(flag["budget"])
        columns = {name: flag[name] for name in COLUMNS}
        said = suggest(**{name: flag[name] for name in PASSED}, columns=columns)
    except (ResultError, ValueError, OSError) as error:
        cli.fail(error)
    print(json.dumps(plain(said), indent=1) if flag["json"] else "\n".join(lines(said)))


def _planned(flag: Mapping[str, Any]) -> list[str]:
    """The plan that the flags ask for, in words; its figure is written."""
    columns = {name: flag[name] for name in COLUMNS}
    made = plan(**{name: flag[name] for name in PLANNED}, columns=columns)
    if flag["figure"]:
        write_bytes(flag["figure"], figure(made).encode())
    return plan_lines(made)


def _share_of(text: str) -> float:
    """A share as it is written on a command line: 5% or 0.05.

    Raises:
      ValueError: it is neither.
    """
    share = tables.number(text)
    if math.isnan(share):
        raise ValueError(f"--budget must be a share of a dense sweep, like 5%, got {text!r}")
    return share


def plain(said: Any) -> Any:
    """A suggestion in JSON types, nan and infinities as null."""
    if hasattr(said, "_asdict"):
        return {name: plain(value) for name, value in said._asdict().items()}
    if isinstance(said, dict):
        return {name: plain(value) for name, value in said.items()}
    return finite_or_none(list(said) if isinstance(said, tuple) else said)


class _Callable(ModuleType):
    """This module called is `suggest` called: surge.suggest is the module once it is imported."""

    __call__ = staticmethod(suggest)


sys.modules[__name__].__class__ = _Callable

if __name__ == "__main__":
    cli.run(main)
