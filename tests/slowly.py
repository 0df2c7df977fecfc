"""Cases of a test that the default suite leaves to `pytest -m slow`."""

from typing import Any

import pytest


def slow(*cases: Any) -> list[Any]:
    """Each case, a value or a tuple of them, marked as slow."""
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)
        for case in cases
    ]
