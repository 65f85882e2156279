"""Run a program other than the training as several ranks: one without a run directory, and with nothing to save."""

from __future__ import annotations

import sys

from launch.local.outcome.failure import find_failed_rank, killed_by
from launch.local.ranks.agent import Agent
from launch.local.start.command import Command
from trainlib.errors import EXIT_USER_ERROR
from trainlib.runs.terminal.printable import print_error


def run_program(command: Command) -> int:
    """Run the command's ranks to their end, and return the exit code of the rank that failed, or 0.

    Ctrl-C reaches the ranks' agent as well as this process, and the agent ends them.
    """
    agent = Agent(command)
    while (code := agent.wait(1.0)) is None:
        pass
    if code == 0:
        return 0
    if agent.report.error:
        print_error(agent.report.error)
        return code
    failure = find_failed_rank(agent.report.failures, agent.report.closing)
    if failure is None:
        print("".join(agent.report.log), end="", file=sys.stderr)
        print_error(f"the ranks ended with exit code {code}")
        return code if code > 0 else 128 - code
    if failure.exit_code < 0:
        print_error(f"rank {failure.rank} was {killed_by(-failure.exit_code)}")
    elif failure.exit_code != EXIT_USER_ERROR:  # which the rank has explained
        print_error(f"rank {failure.rank} ended with exit code {failure.exit_code}")
    return failure.shell_code
