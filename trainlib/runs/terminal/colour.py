"""Colour for single words on a terminal that has it; https://no-color.org is heeded."""

from __future__ import annotations

import os
from typing import TextIO

_CODES = {"red": "31", "green": "32", "yellow": "33", "cyan": "36"}


def has_colour(stream: TextIO) -> bool:
    """Return True if what is written to a stream goes to a terminal that shows colours, and nobody asked for none."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"


def coloured(text: str, colour: str, stream: TextIO) -> str:
    """Return a text in a colour (red, green, yellow or cyan), in bold; as it is where the stream has none."""
    return f"\x1b[1;{_CODES[colour]}m{text}\x1b[0m" if has_colour(stream) and colour in _CODES else text
