"""Errors and states in colour on a terminal that has it, and as they are anywhere else."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TextIO

import pytest

from launch.cli import main
from launch.cli.runs.status import _with_colours
from launch.local.console import say
from trainlib.errors import UserError
from trainlib.runs.terminal.printable import print_error

RED, GREEN, PLAIN = "\x1b[1;31m", "\x1b[1;32m", "\x1b[0m"
LONG = UserError(
    "2 mistakes in the configuration:\n  optimizer.lr: got -0.1, must be > 0 (/a/path/" + "x" * 60 + ".yaml)"
)
STATUS = "run:         failed\nstatus:      failed\nattempts:\n  1  2030-01-02 03:04:05  started at step 0\n"
STATUS += "  1  2030-01-02 03:04:06  completed at step 9\n"


def shown(action: Callable[[], object], **environment: str) -> str:
    """What an action writes to standard output and error where both are a terminal of 40 columns."""
    ours, theirs = os.openpty()
    with pytest.MonkeyPatch.context() as patch, os.fdopen(theirs, "w") as stream:
        for name in ("NO_COLOR", "LINES"):
            patch.delenv(name, raising=False)
        for name, value in {"TERM": "xterm", "COLUMNS": "40", **environment}.items():
            patch.setenv(name, value)
        patch.setattr("sys.stderr", stream)
        patch.setattr("sys.stdout", stream)
        action()
    text = b""
    with suppress(OSError):  # its end, on Linux
        while chunk := os.read(ours, 1 << 16):
            text += chunk
    os.close(ours)
    return text.decode().replace("\r\n", "\n")


def test_an_error_is_red_and_broken_between_words() -> None:
    text = shown(lambda: print_error(LONG))
    assert text.startswith(f"{RED}error:{PLAIN} 2 mistakes in the")
    lines = re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()
    assert all(len(line) <= 40 or line.strip().startswith("(/a/path/") for line in lines)
    assert [line.startswith("  ") for line in lines] == [False, True, True]
    assert " ".join(" ".join(lines).split()) == "error: " + " ".join(str(LONG).split())


def test_what_the_launcher_says_is_in_colour_too() -> None:
    text = shown(lambda: say("the end of the log\nerror: rank 1 was killed"))
    assert text == f"the end of the log\n{RED}error:{PLAIN} rank 1 was killed\n"


def test_a_word_that_is_no_command_is_told_in_colour_too() -> None:
    assert f"{RED}Error:{PLAIN} No such command 'train'. Type launch run quickstart\n" in shown(
        lambda: main(["train", "quickstart"])
    )


def test_states_of_a_run_and_of_its_attempts_are_in_colour() -> None:
    expected = STATUS.replace("status:      failed", f"status:      {RED}failed{PLAIN}")
    found = shown(lambda: print(_with_colours(STATUS), end=""))
    assert found == expected.replace("completed", f"{GREEN}completed{PLAIN}")


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_no_colour_where_none_is_wanted(name: str, value: str) -> None:
    def tell() -> None:
        print_error("all is lost")
        say("error: and more")
        print(_with_colours(STATUS), end="")

    assert shown(tell, **{name: value}) == f"error: all is lost\nerror: and more\n{STATUS}"


def test_a_pipe_gets_one_message_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "out").open("w") as file:
        stream: TextIO = file
        monkeypatch.setattr("sys.stderr", stream)
        print_error(LONG)
    assert (tmp_path / "out").read_text() == f"error: {LONG}\n"
