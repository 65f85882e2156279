"""Text of unknown origin, made fit for a terminal, a log or a page: names of files and classes, reasons, messages."""

from __future__ import annotations

import sys


def printable(text: str, keep: str = "") -> str:
    r"""Return a text in which everything that does not show as a character is escaped, like `\x1b` or `\u202e`.

    That is what steers a terminal, changes the direction of writing or cannot be encoded. Bytes of a file's name that
    are no UTF-8 are written as such: `\xe9`.

    keep   characters that stay as they are, such as line ends
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else _escaped(c) for c in text)


def lines(text: object) -> str:
    """Return a message of one or more lines, made printable."""
    return printable(str(text), keep="\n")


def print_error(error: object) -> None:
    """Print `error: ...` on standard error."""
    print(f"error: {lines(error)}", file=sys.stderr)


def encode_anything() -> None:
    """Let standard output escape what its encoding lacks, from now on, instead of raising UnicodeEncodeError."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)  # what replaces it in a notebook or a test has none
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # how Python holds a byte that it could not decode
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()
