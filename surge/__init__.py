"""surge: the optimal learning rate of Adam-style optimizers as a function of batch size."""

import importlib
import importlib.metadata
from typing import Any

# What is public, and the module it comes from; importing surge alone starts no JAX.
_HOMES = {
    "Measurement": "surge.api",
    "measure": "surge.api",
    "results": "surge.report.page",
    "noise": "surge.noise",
    "plan": "surge.plan",
    "suggest": "surge.suggest",
    "Tracker": "surge.tracker",
}

__all__ = ["Measurement", "Tracker", "measure", "plan", "results", "suggest"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.metadata.version("surge")
    if name not in _HOMES:
        raise AttributeError(f"module 'surge' has no attribute {name!r}")
    module = importlib.import_module(_HOMES[name])
    # The module surge.suggest is callable: it is the function too.
    return module if _HOMES[name] == f"surge.{name}" else getattr(module, name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
