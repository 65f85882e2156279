"""The description of a key of the configuration."""

from __future__ import annotations

from typing import NamedTuple


class Description(NamedTuple):
    """A key's entry in docs/config.md.

    meaning   one or more sentences in Markdown
    example   a `key=value` that can be typed on the command line
    """

    meaning: str
    example: str
