"""Which members of a parametrized test are quick."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import pytest


def slow_but(quick: Collection[Any], values: Sequence[Any]) -> list[Any]:
    """Return the values as parameters of a test, marked as slow but for those that `quick` names.

    A tuple stands for several parameters.
    """
    return [
        pytest.param(
            *(value if isinstance(value, tuple) else [value]), marks=() if value in quick else pytest.mark.slow
        )
        for value in values
    ]
