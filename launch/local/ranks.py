"""Runs a program that is no training as several ranks: it has no run directory, and nothing to save if it is ended."""

from __future__ import annotations

import os
import subprocess
import sys

from launch.local.command import Command
from launch.local.failure import StderrFilter, find_failure, killed_by
from trainlib.errors import EXIT_USER_ERROR


def run_program(command: Command) -> int:
    """Run the command's ranks to their end, showing what they print; the exit code of the rank that failed, or 0.

    Ctrl-C reaches the ranks' agent as well as this process, and the agent ends them.
    """
    stderr = StderrFilter()
    text = ""
    with subprocess.Popen(
        command.words,
        env=command.variables(os.environ),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as child:
        assert child.stderr is not None
        for line in child.stderr:
            text += line
            sys.stderr.write("".join(stderr.feed(line)))
        sys.stderr.write("".join(stderr.close()))
    if child.returncode == 0:
        return 0
    failure = find_failure(text)
    if failure is None:
        print(f"error: the ranks ended with exit code {child.returncode}", file=sys.stderr)
        return child.returncode if child.returncode > 0 else 128 - child.returncode
    if failure.exit_code < 0:
        print(f"error: rank {failure.rank} was {killed_by(-failure.exit_code)}", file=sys.stderr)
    elif failure.exit_code != EXIT_USER_ERROR:  # which the rank has explained
        print(f"error: rank {failure.rank} ended with exit code {failure.exit_code}", file=sys.stderr)
    return failure.shell_code
