"""Command lines of the programs, and config files, that are wrong."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from inputs.case import Input, program
from surge import __main__ as surge
from surge import cli, fit_table, main, suggest

QUADRATIC = "--config=surge:quadratic"
MAIN = {  # arguments -> words
    "": "--config is missing",
    "--config=": "names no file",
    "--config=nowhere.py": "does not exist",
    "--config=.": "is a folder",
    "--config=surge:mnist2d": "comes with no config 'mnist2d'",
    "--config=surge:quadratic:huge": "has no variant 'huge'",
    f"{QUADRATIC} --config.sedes=3": "did you mean seeds",
    f"{QUADRATIC} --config.seeds=three": "seeds",
    f"{QUADRATIC} --config.seeds=1e3": "seeds",
    f"{QUADRATIC} --config.seeds=": "seeds",
    f"{QUADRATIC} --config.seeds=1000000000": "config.max_cells",
    f"{QUADRATIC} --config.seed=100000000000000000000": "config.seed must be at most",
    f"{QUADRATIC} --config.seeds.first=3": "did you mean its parent",
    f"{QUADRATIC} --config.stop_loss=nan": "finite number",
    f"{QUADRATIC} --config.stop_loss=inf": "finite number",
    f"{QUADRATIC} --config.evals=1000000000": "at most 10,000",
    f"{QUADRATIC} --config.max_steps=1000000000000": "at most",
    f"{QUADRATIC} --config.learning_rate_ratio=1.0000001": "learning_rate_ratio",
    f"{QUADRATIC} --config.batch_sizes=('a',)": "batch_sizes",
    f"{QUADRATIC} --config.batch_sizes=(4,": "batch_sizes",
    f"{QUADRATIC} --config.measure=3": "measure",
    f"{QUADRATIC} --config.grid=sparse": "'dense' or 'adaptive'",
    f"{QUADRATIC} --config.task=nowhere:task": "No module named",
    f"{QUADRATIC} --config.task=surge.tasks.mlp": "module:function",
    f"{QUADRATIC} --config.task=surge.tasks.mlp:nothing": "has no function nothing",
    f"{QUADRATIC} --config.task=surge.tasks.mlp:__doc__": "config.task",
    f"{QUADRATIC} --config.task=math:sqrt": "config.task",
    f"{QUADRATIC} --config.task=builtins:dict": "config.task",
    f"{QUADRATIC} --config.task=..:x": "config.task",
    f"{QUADRATIC} --config.task_args.hessian=round": "hessian",
    f"{QUADRATIC} --config.task_args.hessain=diagonal": "hessain",
    f"{QUADRATIC} --config.optimizers.sgd.spec=sdg": "optimizers.sgd.spec",
    f"{QUADRATIC} --config.optimizers.adam.spec=adam": "no field",
    f"{QUADRATIC} --stages=": "no list of stages",
    f"{QUADRATIC} --stages=fit,": "no list of stages",
    f"{QUADRATIC} --stages=train": "no list of stages",
    f"{QUADRATIC} --wrokdir=x": "wrokdir",
    f"{QUADRATIC} stray": "unexpected argument 'stray'",
    f"{QUADRATIC} --workdir=gs://bucket/run": "remote address",
    f"{QUADRATIC} --workdir=s3://bucket/run": "remote address",
    f"{QUADRATIC} --workdir=/dev/null": "is a file",
    f"{QUADRATIC} --workdir=/dev/null/below": "/dev/null",
    f"{QUADRATIC} --workdir=/proc/nowhere/run": "/proc/nowhere",
    f"{QUADRATIC} --workdir={300 * 'a'}": "name too long",
    f"{QUADRATIC} --workdir=empty --stages=fit": "holds no sweep",
    f"{QUADRATIC} --workdir=empty --stages=report": "holds nothing to report",
}
SUGGEST = {
    "": "from_batch_size",
    "--from_batch_size=256": "from_lr",
    "--from_batch_size=256 --from_lr=3e-4": "to_batch_size",
    "--from_batch_size=few --from_lr=3e-4 --to_batch_size=2048": "from_batch_size",
    "--from_batch_size=-1 --from_lr=3e-4 --to_batch_size=2048": "from_batch_size",
    "--from_batch_size=256 --from_lr=0 --to_batch_size=2048": "from_lr",
    "--from_batch_size=256 --from_lr=3e-4 --to_batch_size=nan": "to_batch_size",
    "--from_batch_size=256 --from_lr=3e-4 --to_batch_size=inf": "to_batch_size",
    "--from_batch_size=256 --from_lr=1e400 --to_batch_size=512": "from_lr",
    "--from_batch_size=256 --from_lr=3e-4 --to_batch_size=512 --horizon_ratio=0": "horizon_ratio",
    "--from_batch_size=256 --from_lr=3e-4 --to_batch_size=512 --optimizer=adma": "did you mean",
    "--from_batch_size=256 --from_lr=3e-4 --to_batch_size=512 --optimizer=adam(b1=2)": "b1",
    "--from_batch_size=256 --from_lr=3e-4 --to_batch_size=512 --workdir=nowhere": "does not exist",
    "--from_batch_size=256 --from_lr=3e-4 --to_batch_size=512 --workdir=.": "holds no fit",
    "--from_batch_size=256 --from_lr=3e-4 --to_batch_size=512 --table=no.csv": "does not exist",
    "--from_batch_size=256 --from_lr=3e-4 --to_batch_size=512 --table=x --workdir=y": "not both",
    "runs.csv": "is not a flag",
    "--form_lr=3": "form_lr",
}
SURGE = {
    "train": "surge has no program 'train'",
    "fit": "surge has no program 'fit'",
    "fit_table": "give one table of runs",
}
CONFIGS = {  # a config file -> words
    "def get_config(:\n": "SyntaxError",
    "import torhc\n": "No module named 'torhc'",
    "def get_config():\n    return confg\n": "line 2: NameError",
    "def get_config():\n    return 1 / 0\n": "line 2: ZeroDivisionError",
    "config = {}\n": "defines no get_config()",
    "def get_config():\n    return {'seed': 0}\n": "must return an ml_collections.ConfigDict",
    "def get_config():\n    pass\n": "not NoneType",
    "def get_config(): return get_config()\n": "RecursionError",
    "def get_config(one, two): pass\n": "TypeError",
    "get_config = 3\n": "not callable",
    "from surge.config import default as get_config\n": "config.task",
    "\0": "config.py",
    "": "defines no get_config()",
}
ANSWERED = {  # arguments of `surge` -> words of the answer
    "--help": "fit_table",
    "--version": ".",
    "main --help": "--workdir",
    "fit_table --help": "--batch_size",
    "suggest --help": "--from_lr",
    "suggest --from_batch_size=256 --from_lr=3e-4 --to_batch_size=2048": "rests on no sweep",
    "suggest --from_batch_size=256 --from_lr=3e-4 --to_batch_size=256": "rate 0.0003",
    "suggest --from_batch_size=256 --from_lr=3e-4 --to_batch_size=1e12 --json": '"lr"',
}


def inputs() -> list[Input]:
    """Each command line, and each config file."""
    return [
        *(_line("main", main.main, arguments, words) for arguments, words in MAIN.items()),
        *(_line("suggest", suggest.main, arguments, words) for arguments, words in SUGGEST.items()),
        *(Input("command", f"surge {line}", _surge(line), words) for line, words in SURGE.items()),
        *(
            Input("command", f"surge {line}", _surge(line), words, refused=False)
            for line, words in ANSWERED.items()
        ),
        *(Input("config file", repr(text), _file(text), words) for text, words in CONFIGS.items()),
        Input("command", "both programs beside a user's flags", _notebook, "imported", False),
    ]


def _line(name: str, function: Callable[..., Any], arguments: str, words: str) -> Input:
    return Input(
        "command", f"{name} {arguments}"[:90], program(function, *arguments.split()), words
    )


def _surge(arguments: str) -> Callable[[], None]:
    def act() -> None:
        sys.argv = ["surge", *arguments.split()]
        surge.main()

    return act


def _file(text: str) -> Callable[[], None]:
    def act() -> None:
        Path("config.py").write_text(text)
        program(main.main, "--config=config.py", "--workdir=out")()

    return act


def _notebook() -> str:
    from absl import flags

    for name in ("config", "workdir", "stages", "loss", "group", "seed", "batch_size"):
        flags.DEFINE_string(name, "mine", "")
    main.define(["notebook"])
    fit_table.own_flags()
    flags.FLAGS(["notebook", "--workdir=ours"])
    assert flags.FLAGS.config == "mine" and cli.MISTAKE == 2
    return "imported"
