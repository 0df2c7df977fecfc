"""Measures, sweeps, fits and reports one experiment.

python -m surge.main --config=configs/mnist1d.py [--workdir=DIR] [--stages=measure,sweep,fit,report]
"""

import difflib
from collections.abc import Sequence
from logging import WARNING, Formatter
from pathlib import Path

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from surge.cli import fail

STAGES = ("measure", "sweep", "fit", "report")

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Experiment, as FILE.py or FILE.py:VARIANT.", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where results go; default runs/NAME-VARIANT of the config.")
_STAGES = flags.DEFINE_list("stages", list(STAGES), "Stages to run, in order, each from the workdir alone.")


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses the command line; whatever is wrong in it, or in the config file, ends in one sentence."""
    from surge.training.sweep import one_device_per_core

    one_device_per_core()  # before the config file, which may ask what devices there are
    try:
        positional = flags.FLAGS(list(argv))
        if _CONFIG.value is None:
            raise flags.Error("--config is missing: give one, like --config=configs/mnist1d.py")
        if unknown := [stage for stage in _STAGES.value if stage not in STAGES]:
            raise flags.Error(f"--stages has no {', '.join(unknown)}: choose among {','.join(STAGES)}")
        return positional
    except (AttributeError, KeyError):
        fail(_unknown_field(argv))
    except (flags.Error, TypeError, ValueError, OSError, SyntaxError) as error:
        fail(f"--config: {error}" if isinstance(error, SyntaxError) else error)


def _unknown_field(argv: Sequence[str]) -> str:
    """The sentence for the first --config.FIELD that the config file does not have."""
    bare = [argument for argument in argv if not argument.startswith("--config.")]
    config = config_flags.DEFINE_config_file("config", flag_values=(values := flags.FlagValues()), sys_argv=bare)
    values(bare, known_only=True)
    for path in (each.removeprefix("--config.").partition("=")[0] for each in argv if each.startswith("--config.")):
        node = config.value
        for name in path.split("."):
            if not isinstance(node, ConfigDict) or name not in node:
                fields = list(node) if isinstance(node, ConfigDict) else []
                near = difflib.get_close_matches(name, fields) or fields
                return f"the config has no field {path}: did you mean {' or '.join(near) or 'its parent'}?"
            node = node[name]
    return "a --config.FIELD flag names a field that the config does not have"


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        fail(f"unexpected argument {argv[1]!r}: every option is a flag, --name=value")
    from surge import pipeline

    handler, package = logging.get_absl_handler(), str(Path(__file__).parent)
    handler.setFormatter(Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    handler.addFilter(lambda record: record.levelno >= WARNING or record.pathname.startswith(package))
    name = config_flags.get_config_filename(flags.FLAGS["config"])
    path, _, variant = name.partition(":")
    default = Path("runs") / "-".join(filter(None, (Path(path).stem, variant)))
    try:
        pipeline.run(_CONFIG.value, Path(_WORKDIR.value or default), _STAGES.value)
    except pipeline.UserError as error:
        fail(error)
    except OSError as error:
        fail(f"{error.strerror or error} ({error.filename or 'no file named'}): what was finished before is kept")
    except KeyboardInterrupt:
        fail("interrupted: the same command goes on from the last finished piece")


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
