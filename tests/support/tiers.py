"""Which members of a parametrized test are quick."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import pytest


def slow_but(quick: Collection[Any], values: Sequence[Any]) -> list[Any]:
    """Return the values as parameters of a test, marked as slow but for those that `quick` names.

    A tuple stands for several parameters.
    """
    return _marked(quick, values, pytest.mark.slow)


def quick_or_soak(quick: Collection[Any], values: Sequence[Any]) -> list[Any]:
    """Return the same with all others for `make soak`: many members of one kind, each of which takes seconds."""
    return _marked(quick, values, pytest.mark.soak)


def _marked(quick: Collection[Any], values: Sequence[Any], mark: pytest.MarkDecorator) -> list[Any]:
    return [
        pytest.param(*(value if isinstance(value, tuple) else [value]), marks=() if value in quick else mark)
        for value in values
    ]
