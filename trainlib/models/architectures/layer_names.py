"""What the names of modules and parameters tell."""

from __future__ import annotations

from collections.abc import Iterable


def is_in(name: str, layers: Iterable[str]) -> bool:
    """Return True for the name of one of these layers, or of a parameter or module within one."""
    return any(name == layer or name.startswith(f"{layer}.") for layer in layers)
