"""Optimizers by name: each a `Rule`, all that surge must know of it. One paper, one file.

`make_optimizer("adam(b1=0, clip=1.0)")` is an optax chain whose learning rate is an argument.
"""

import importlib
import pkgutil

# A file of this folder is known by lying in it: importing it enters its rules in ENTRIES.
for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

from surge.optimizers.chain import Optimizer, make_optimizer  # noqa: E402
from surge.optimizers.rule import ENTRIES, Rule, entry  # noqa: E402
from surge.optimizers.step import update  # noqa: E402

__all__ = ["ENTRIES", "Optimizer", "Rule", "entry", "make_optimizer", "update"]
