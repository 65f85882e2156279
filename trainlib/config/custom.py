"""Names of a user's own parts: `custom:TinyNet` was passed to `trainlib.fit`, `code:TinyNet` comes from `--code`.

A configuration records such a name, but cannot build the part from it alone.
"""

from __future__ import annotations

from pydantic import ValidatorFunctionWrapHandler

PREFIX = "custom:"
CODE_PREFIX = "code:"


def is_custom(name: object) -> bool:
    """Return True if a name stands for a part of the user's own: one passed to `trainlib.fit`, or one of `--code`."""
    return isinstance(name, str) and name.startswith((PREFIX, CODE_PREFIX))


def is_code(name: object) -> bool:
    """Return True if a name stands for a part that code given by `--code` registers."""
    return isinstance(name, str) and name.startswith(CODE_PREFIX)


def own_name(name: str) -> str:
    """Return the part's own name: `TinyNet` of `code:TinyNet`."""
    return name.partition(":")[2]


def allow_custom(name: object, handler: ValidatorFunctionWrapHandler) -> object:
    """Accept a name of a user's own part beside those that the field's own validator accepts; a wrap validator."""
    return name if is_custom(name) else handler(name)


def custom_part_missing(name: str) -> str:
    """Return the message that a part of this name cannot be built from a configuration; it follows the key."""
    if is_code(name):
        return f"got {name}, a part of your own: add `--code FILE.py`, which registers it, to the command"
    return (
        f"got {name}, which was given in Python and is in no file: run the script that calls trainlib.fit, or choose "
        "another name"
    )
