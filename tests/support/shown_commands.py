"""The commands that pages of the documentation show, as they stand in indented and fenced blocks."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from paths import REPOSITORY

PROGRAMS = ("launch", "python", "torchrun", "accelerate", "make")


@dataclass(frozen=True)
class Command:
    """A command that a page shows.

    words             as a shell splits them, without variables set before them
    yaml              the YAML block before it on its page
    expected_error    the lines below it up to the next command, where they are an error's; else None
    """

    page: str
    line: int
    words: tuple[str, ...]
    yaml: str
    expected_error: str | None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {shlex.join(self.words)}"


def blocks(text: str) -> Iterator[tuple[str, int, list[str]]]:
    """Language, number of the first line, and lines of each fenced block; an indented block has the language ''."""
    language: str | None = None
    first, lines = 0, list[str]()
    for number, line in enumerate([*text.splitlines(), ""], 1):
        if line.startswith("```"):
            if language is None:
                yield "", first, lines
                language, first, lines = line[3:].strip(), number + 1, []
            else:
                yield language, first, lines
                language, lines = None, []
        elif language is not None:
            lines.append(line)
        elif line.startswith("    "):
            first = first if lines else number
            lines.append(line[4:])
        else:
            yield "", first, lines
            lines = []


def commands(page: Path) -> Iterator[Command]:
    before = ""
    for language, first, lines in blocks(page.read_text()):
        if language in ("yaml", "python", "json"):
            before = "\n".join(lines) if language == "yaml" else before
            continue
        numbered = iter(enumerate(lines, first))
        for number, line in numbered:
            while line.endswith("\\"):
                line = line[:-1] + next(numbered)[1].strip()
            shown = line.removeprefix("$ ")
            if not re.match(rf"(?:[A-Z_]+=\S+ )*(?:{'|'.join(PROGRAMS)}) ", shown):
                continue
            words = list(
                itertools.dropwhile(lambda word: word.split("=")[0].isupper(), shlex.split(shown, comments=True))
            )
            below = itertools.takewhile(lambda each: not each.startswith("$ "), lines[number - first + 1 :])
            shown_below = "\n".join(below).strip()
            error = shown_below if shown_below.startswith(("error: ", "Usage: ")) else None
            yield Command(str(page.relative_to(REPOSITORY)), number, tuple(words), before, error)
