"""Measures, sweeps, fits and reports one experiment.

python -m surge.main --config=configs/mnist1d.py [--workdir=DIR] [--stages=measure,sweep,fit,report]

--config=surge:mnist1d takes a config that comes with surge; --config.FIELD=VALUE changes a field.
"""

from __future__ import annotations

from collections.abc import Sequence
from logging import Formatter
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from absl import flags

from surge.cli import HELP, config_fault, fail, log_ours, parse, run, shipped

STAGES = ("measure", "sweep", "fit", "report")


def define(argv: Sequence[str]) -> flags.FlagValues:
    """The flags, those for fields of the config among them, which `argv` names."""
    from absl import flags
    from ml_collections import config_flags

    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config",
        None,
        "Experiment, as FILE.py or FILE.py:VARIANT, or surge:NAME or surge:NAME:VARIANT.",
        flag_values=values,
        sys_argv=list(argv),
        lock_config=True,
    )
    flags.DEFINE_string(
        "workdir",
        None,
        "Where results go; default runs/NAME-VARIANT of the config.",
        flag_values=values,
    )
    flags.DEFINE_list(
        "stages",
        list(STAGES),
        "Stages to run, in order, each from the workdir alone.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "shard",
        "",
        "i/n: this is process i of n (i from 0) that share the workdir, as of a Slurm array; each "
        "claims piece by piece.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "launcher",
        "local",
        ["local", "ray"],
        "Where pieces of the sweep run: in this process, or on workers of Ray.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "ray_address",
        "",
        "Of a running Ray cluster, or auto; without one a cluster is started here.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "cells",
        "auto",
        ["auto", "narrow", "wide"],
        "Runs each on one device (narrow), or one at a time on all of them (wide); auto: on CPU "
        "narrow, else by what fits.",
        flag_values=values,
    )
    return values


def parse_flags(argv: Sequence[str]) -> flags.FlagValues:
    """The flags with their values; a mistake there or in the config file ends in one sentence."""
    argv = shipped(argv)
    values = define(argv)
    if set(HELP) & set(argv):
        parse(values, argv, __doc__)
    from absl.flags import UnrecognizedFlagError
    from ml_collections import ConfigDict

    from surge.training.hardware import one_device_per_core

    one_device_per_core()  # before the config file, which may ask what devices there are
    try:
        positional = values(argv)
    except Exception as error:  # the config file is a program: it may raise anything
        misspelt = isinstance(error, UnrecognizedFlagError) and not error.flagname.startswith(
            "config."
        )
        fail(error if misspelt else config_fault(argv) or error)
    if not isinstance(values["config"].value, ConfigDict):
        fail(config_fault(argv))
    if not values.stages or not set(values.stages) <= set(STAGES):
        stages = ",".join(values.stages)
        fail(f"--stages={stages} is no list of stages: choose among {','.join(STAGES)}")
    if len(positional) > 1:
        fail(f"unexpected argument {positional[1]!r}: every option is a flag, --name=value")
    return values


def main(argv: Sequence[str]) -> None:
    """The program, `argv` being its name and its arguments."""
    values = parse_flags(argv)
    _log_times()
    from ml_collections import config_flags

    name = config_flags.get_config_filename(values["config"])
    path, _, variant = name.partition(":")
    default = Path("runs") / "-".join(filter(None, (Path(path).stem, variant)))
    workdir = Path(values.workdir or default)
    from surge import pipeline
    from surge.launch import Launch, read_shard

    try:
        launch = Launch(values.launcher, values.ray_address, read_shard(values.shard), values.cells)
        pipeline.run(values.config, workdir, values.stages, launch)
    except pipeline.UserError as error:
        fail(error)
    except BrokenPipeError:
        raise
    except OSError as error:
        where = error.filename or workdir
        fail(f"{error.strerror or error} ({where}): what was finished before is kept")


def _log_times() -> None:
    """Shows our lines of the log with their time, in a notebook too."""
    from absl import logging

    log_ours()
    logging.get_absl_handler().setFormatter(Formatter("%(asctime)s %(message)s", "%H:%M:%S"))


if __name__ == "__main__":
    run(main)
