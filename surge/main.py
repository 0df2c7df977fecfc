"""Measures, sweeps, fits and reports one experiment.

python -m surge.main --config=configs/mnist1d.py [--workdir=DIR] [--stages=measure,sweep,fit,report]
"""

from collections.abc import Sequence
from logging import WARNING, Formatter
from pathlib import Path

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from surge.cli import config_fault, fail

STAGES = ("measure", "sweep", "fit", "report")

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Experiment, as FILE.py or FILE.py:VARIANT.", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where results go; default runs/NAME-VARIANT of the config."
)
_STAGES = flags.DEFINE_list(
    "stages", list(STAGES), "Stages to run, in order, each from the workdir alone."
)


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses the command line; whatever is wrong in it, or in the config file, ends in one
    sentence."""
    from surge.training.hardware import one_device_per_core

    one_device_per_core()  # before the config file, which may ask what devices there are
    try:
        positional = flags.FLAGS(list(argv))
    except Exception as error:  # the config file is a program: it may raise anything
        misspelt = isinstance(error, flags.UnrecognizedFlagError) and not error.flagname.startswith(
            "config."
        )
        fail(error if misspelt else config_fault(argv) or error)
    if not isinstance(_CONFIG.value, ConfigDict):
        fail(config_fault(argv))
    if not _STAGES.value or not set(_STAGES.value) <= set(STAGES):
        fail(
            f"--stages={','.join(_STAGES.value)} is no list of stages: choose among {','.join(STAGES)}"
        )
    return positional


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        fail(f"unexpected argument {argv[1]!r}: every option is a flag, --name=value")
    from surge import pipeline

    handler, package = logging.get_absl_handler(), str(Path(__file__).parent)
    handler.setFormatter(Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    handler.addFilter(
        lambda record: record.levelno >= WARNING or record.pathname.startswith(package)
    )
    name = config_flags.get_config_filename(flags.FLAGS["config"])
    path, _, variant = name.partition(":")
    default = Path("runs") / "-".join(filter(None, (Path(path).stem, variant)))
    workdir = Path(_WORKDIR.value or default)
    try:
        pipeline.run(_CONFIG.value, workdir, _STAGES.value)
    except pipeline.UserError as error:
        fail(error)
    except OSError as error:
        fail(
            f"{error.strerror or error} ({error.filename or workdir}): what was finished before is kept"
        )
    except KeyboardInterrupt:
        fail("interrupted: the same command goes on from the last finished piece")


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
