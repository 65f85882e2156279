"""The form in which a key of the configuration is described."""

from __future__ import annotations

from typing import NamedTuple


class Description(NamedTuple):
    """meaning: one or more sentences in Markdown; example: a `key=value` of the command line."""

    meaning: str
    example: str
