"""surge: the optimal learning rate of Adam-style optimizers as a function of batch size."""

from typing import Any


def __getattr__(name: str) -> Any:
    if name not in ("measure", "Measurement"):
        raise AttributeError(f"module 'surge' has no attribute {name!r}")
    from surge import api  # not before it is asked for: importing surge starts no JAX

    return getattr(api, name)
