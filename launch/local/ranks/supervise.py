"""Run a training of several ranks as a child process: pass signals on, show what ranks print, tell how they ended."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from launch.local.console import StderrRelay, append, say
from launch.local.outcome.ending import Ending, ended_for_others, ending_of_ranks
from launch.local.ranks.agent import Agent
from launch.local.ranks.processes import (
    FrozenProcesses,
    adopt_orphans,
    end_orphans,
    kill_below,
    kill_tree,
    prepare_agent,
)
from launch.local.start.command import Command
from launch.local.stop_request import StopRequest
from trainlib.errors import EXIT_INTERRUPTED, EXIT_STOPPED
from trainlib.runs.attempt.step_file import STEP_FILES
from trainlib.runs.files.scratch import make_scratch
from trainlib.runs.machine import launch_variables
from trainlib.runs.records import failure_record

_POLL_SECONDS = 0.1
_STACKS_SECONDS = 3.0  # for ranks that wait for a frozen one: they notice it too, and write where they wait
_CLOSING_SECONDS = 6.0  # for ranks to end, once another one failed
_REFUSED_SECONDS = 3.0  # the same before the run has begun, when there is nothing that they could still save


def run_ranks(command: Command, directory: Path, node_rank: int = 0, hang_seconds: float | None = None) -> int:
    """Run the command once, which trains into `directory`; return the exit code of the rank that ended the run."""
    stop = StopRequest(directory)
    with stop.catching_signals():
        ending = supervise(command, directory, stop, node_rank=node_rank, hang_seconds=hang_seconds)
    say(ending.words)
    return ending.code


def supervise(
    command: Command,
    directory: Path,
    stop: StopRequest,
    *,
    node_rank: int = 0,
    hang_seconds: float | None = None,
    variables: Mapping[str, str] = MappingProxyType({}),
    on_poll: Callable[[], bool | None] = lambda: None,
) -> Ending:
    """Run the command, which trains into `directory`, to its end, while `stop` catches the signals.

    hang_seconds   for which a process may be frozen; None: for ever
    variables      of the environment, in addition to the command's
    on_poll        called every 0.1 s; where it returns True, the ranks are killed

    The ranks are in sessions of their own, so a Ctrl-C in the terminal reaches only this process. It asks the run to
    stop through the STOP file, which the ranks agree on; a second Ctrl-C kills them all. The agent, the parent of the
    ranks, ignores signals, as it would give the ranks a few seconds only: SLURM sends them to every process of a job.
    """
    scratch = make_scratch(in_memory=False)
    folder = scratch.path if scratch else None
    try:
        agent = _start(command, directory, stop, folder, variables)
        ending = _wait(agent, directory, stop, node_rank, hang_seconds, folder, on_poll)
        return ending.after(folder, begun=stop.run_has_begun())
    finally:
        if scratch is not None:
            scratch.remove()


def _start(
    command: Command, directory: Path, stop: StopRequest, folder: Path | None, variables: Mapping[str, str]
) -> Agent:
    """Start the agent; `folder` is for what ranks print before the attempt begins, and for how far they have come."""
    adopt_orphans()
    stop.new_start()
    return Agent(
        command,
        environment={
            "PET_SIGNALS_TO_HANDLE": "SIGHUP",  # torchrun's --signals-to-handle
            launch_variables.START_LOGS: str(folder or ""),
            STEP_FILES: str(folder or ""),
            launch_variables.EARLIER_STOP_FILE: stop.earlier,
            "TRAINLAUNCH_RUN_DIRECTORY": str(directory),  # whose secret several machines must know
            **variables,
        },
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=prepare_agent,
    )


def _wait(
    agent: Agent,
    directory: Path,
    stop: StopRequest,
    node_rank: int,
    hang_seconds: float | None,
    folder: Path | None,
    on_poll: Callable[[], bool | None],
) -> Ending:
    """Wait for the ranks to end, end those that do not, and return how they ended."""
    log = directory / "logs" / "launcher.log"
    child = agent.process
    assert child.stderr is not None
    # newline="": a progress bar ends its lines in \r, which must reach the terminal at once and as they are
    stderr = StderrRelay(io.TextIOWrapper(child.stderr, encoding="utf-8", errors="replace", newline=""))
    frozen = FrozenProcesses(child.pid, None if hang_seconds is None else hang_seconds + _STACKS_SECONDS)
    running, given_up, cleared, unwanted = True, False, False, False
    while running and not (stop.now or given_up or unwanted):
        running = agent.wait(_POLL_SECONDS) is None
        given_up = running and stop.asked and agent.report.waiting
        stop.deliver()
        unwanted = running and bool(on_poll())
        if stop.run_has_begun():
            if not cleared:
                failure_record.clear(directory, node_rank)
                cleared = True
            append(log, stderr.take_lines())
        frozen.look(at_once=bool(agent.report.closing))
        kill_below(child, agent.overdue_ranks(_CLOSING_SECONDS if stop.run_has_begun() else _REFUSED_SECONDS))
    if stop.now or given_up or unwanted:
        kill_tree(child)
    elif child.returncode < 0:
        end_orphans()
    stderr.finish()
    agent.wait(0)
    stop.withdraw()
    if stop.run_has_begun():
        append(log, [*stderr.take_lines(), *agent.report.log])
    if given_up:
        words = "stopped while waiting for other machines, before training began; run it again"
        return Ending(EXIT_STOPPED, words)
    if stop.now:
        words = "killed: the run continues from its last checkpoint when it is started again"
        return Ending(EXIT_INTERRUPTED, words)
    if unwanted:
        return ended_for_others()
    logs = directory / "logs" if stop.run_has_begun() else folder
    return ending_of_ranks(agent.report, child.returncode, directory, node_rank, logs, frozen.killed)
