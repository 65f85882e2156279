"""Text of unknown origin, made fit for a terminal, a log or a page: names of files and classes, reasons, messages."""

from __future__ import annotations

import shutil
import sys
import textwrap

from trainlib.runs.terminal.colour import coloured


def printable(text: str, keep: str = "") -> str:
    r"""Return a text in which everything that does not show as a character is escaped, like `\x1b` or `\u202e`.

    That is what steers a terminal, changes the direction of writing or cannot be encoded. Bytes of a file's name that
    are no UTF-8 are written as such: `\xe9`.

    keep   characters that stay as they are, such as line ends
    """
    if text.isprintable():
        return text
    return text.translate(_TABLES.setdefault(keep, _Table(keep)))


def lines(text: object) -> str:
    """Return a message of one or more lines, made printable."""
    return printable(str(text), keep="\n")


def print_error(error: object) -> None:
    """Print `error: ...` on standard error; on a terminal in colour, with lines that are broken between words."""
    text = lines(f"error: {error}")
    if sys.stderr.isatty():
        width = shutil.get_terminal_size().columns
        text = "\n".join(_broken(line, width) for line in text.split("\n"))
    print(coloured("error:", "red", sys.stderr) + text.removeprefix("error:"), file=sys.stderr)


def _broken(line: str, width: int) -> str:
    """Return a line as several, of at most `width` characters where words allow it, indented as its beginning is."""
    indent = line[: len(line) - len(line.lstrip())]
    return textwrap.fill(
        line,
        width,
        subsequent_indent=indent if len(indent) < width // 2 else "",
        break_long_words=False,
        break_on_hyphens=False,
        replace_whitespace=False,
    )


def encode_anything() -> None:
    """Let standard output escape what its encoding lacks, from now on, instead of raising UnicodeEncodeError."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)  # what replaces it in a notebook or a test has none
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")


class _Table(dict[int, str]):
    """What each character becomes, by its number: worked out when it is first asked for, as logs are long."""

    def __init__(self, keep: str):
        self._keep = keep

    def __missing__(self, number: int) -> str:
        character = chr(number)
        shown = character if character.isprintable() or character in self._keep else _escaped(character)
        self[number] = shown
        return shown


_TABLES: dict[str, _Table] = {}


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # how Python holds a byte that it could not decode
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()
