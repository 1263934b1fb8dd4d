"""Which cases of a test run each time: some run with `make test-long` alone, where one case shows what all would."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def first(values: Iterable[Any], often: int = 1) -> list[Any]:
    """Values for `pytest.mark.parametrize`; those after the first `often` are `long`. A tuple stands for several."""
    return [
        value if n < often else pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.long)
        for n, value in enumerate(values)
    ]
