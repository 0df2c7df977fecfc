"""surge: the optimal learning rate of Adam-style optimizers as a function of batch size."""

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    # Not before they are asked for: importing surge starts no JAX.
    if name == "suggest":
        return importlib.import_module("surge.suggest")
    if name in ("measure", "Measurement"):
        return getattr(importlib.import_module("surge.api"), name)
    raise AttributeError(f"module 'surge' has no attribute {name!r}")
