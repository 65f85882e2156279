"""Names of parts that were passed to `trainlib.fit` as Python objects, such as `custom:TinyNet`.

A configuration records such a name, but cannot build the part from it.
"""

from __future__ import annotations

from pydantic import ValidatorFunctionWrapHandler

PREFIX = "custom:"


def is_custom(name: object) -> bool:
    """Return True if a name stands for a model, a loss or a data set that was passed as a Python object."""
    return isinstance(name, str) and name.startswith(PREFIX)


def allow_custom(name: object, handler: ValidatorFunctionWrapHandler) -> object:
    """Accept a `custom:` name beside the names that the field's own validator accepts; a pydantic wrap validator."""
    return name if is_custom(name) else handler(name)


def custom_part_missing(name: str) -> str:
    """Return the message that a part of this name cannot be built from a configuration; it follows the key."""
    return (
        f"got {name}, which was given in Python and is in no file: run the script that calls trainlib.fit, or choose "
        "another name"
    )
