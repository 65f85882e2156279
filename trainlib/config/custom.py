"""Names of parts that were given in Python, such as `custom:TinyNet`: no file can bring such a part."""

from __future__ import annotations

from pydantic import ValidatorFunctionWrapHandler

PREFIX = "custom:"


def is_custom(name: object) -> bool:
    """Whether a name stands for a model, a loss or a data set that was given in Python."""
    return isinstance(name, str) and name.startswith(PREFIX)


def or_custom(name: object, handler: ValidatorFunctionWrapHandler) -> object:
    """A validator that lets such a name pass beside the ones that a field allows."""
    return name if is_custom(name) else handler(name)


def not_here(name: str) -> str:
    """Why a part of this name cannot be made from a configuration, for a message after its key."""
    return (
        f"got {name}, which was given in Python and is in no file: run the script that calls trainlib.fit, or choose "
        "another name"
    )
