"""docs/coming-from.md: what stands on our side of its tables is taken as it is written."""

from __future__ import annotations

import re
import shlex

import pytest
from paths import REPOSITORY

from trainlib.config import load_config
from trainlib.config.schema.keys import all_keys

PAGE = (REPOSITORY / "docs/coming-from.md").read_text()
LINES = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("| ")]
ROWS = [row for row in LINES if len(row) == 2]  # a wider table compares figures
OURS = [span for _, ours in ROWS for span in re.findall(r"`([^`]+)`", ours)]
COMMANDS = [span for span in OURS if span.startswith("launch ")]
OVERRIDES = [span for span in OURS if "=" in span and not span.startswith("launch ")]
KEYS = [span for span in OURS if span not in COMMANDS + OVERRIDES and re.fullmatch(r"[a-z_]+(\.(?!png)[a-z_]+)*", span)]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_taken(command: str) -> None:
    from launch.cli import cli

    _, name, *words = shlex.split(command)
    found = cli.commands[name].make_context(name, words).params
    if "arguments" in found:
        load_config([word for word in found["arguments"] if word != "photos"])


@pytest.mark.parametrize("words", OVERRIDES)
def test_overrides_are_valid(words: str) -> None:
    load_config(["finetune", *shlex.split(words)])


def test_keys_that_stand_alone_are_keys() -> None:
    assert [key for key in KEYS if key not in all_keys()] == []
    assert KEYS
    assert len(COMMANDS) > 10
    assert len(OVERRIDES) > 20
