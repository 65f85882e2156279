"""Asks and controls SLURM's queue through its own commands, without SLURM's accounting.

A job's id is as the queue names it: `123`, and `123_4` for element 4 of array 123.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TypeVar

from trainlib.errors import TrainlaunchError

_Answer = TypeVar("_Answer")

_SECONDS = 60  # for a busy controller to answer
_FIELDS = ("JobArrayID", "State", "Reason", "RestartCnt", "StartTime", "EndTime", "NodeList", "exit_code")
_LONGEST_PAUSE = 10.0  # seconds between two tries: well within a job's KillWait
_UNKNOWN_JOB = "Invalid job id specified"
_MESSAGE_PREFIX = re.compile(r"^\w+: (error|fatal): (?=.)")
_NO_ANSWER = re.compile(
    r"Unable to contact slurm controller|timed out|Zero Bytes|[Cc]onnection (failure|refused)|standby mode"
)
_WAITING = {"PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
_RUNNING = {"RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"}
_USABLE_NODES = ("idle", "mixed", "allocated", "completing", "reserved", "planned")


class QueueError(TrainlaunchError):
    """SLURM's commands are missing, or its controller does not answer or refuses; the message is SLURM's own."""


class NoAnswerError(QueueError):
    """The controller is down or too busy; the same request may succeed later."""


@dataclass(frozen=True)
class JobState:
    """The state of one job in the queue. Finished jobs stay there for some minutes.

    state       PENDING, RUNNING, COMPLETED, FAILED, CANCELLED, TIMEOUT, NODE_FAIL ...
    reason      why the job does not run, or how it ended: Resources, BeginTime, NonZeroExitCode ...; may be empty
    restarts    how often the job was requeued
    start, end  unix seconds; for a pending job the start that SLURM expects; None where they are not known
    nodes       as SLURM writes them, `n[0-1]`; empty while the job waits
    exit_code   as a shell gives it; 0 until the job has ended
    """

    job_id: str
    state: str
    reason: str
    restarts: int
    start: float | None
    end: float | None
    nodes: str
    exit_code: int

    @property
    def waiting(self) -> bool:
        """Return True if the job is still to run."""
        return self.state in _WAITING

    @property
    def held(self) -> bool:
        """Return True if the job waits until somebody releases it."""
        return self.waiting and ("held" in self.reason.lower() or self.state == "REQUEUE_HOLD")

    @property
    def active(self) -> bool:
        """Return True if the job waits or runs: it has not ended for good."""
        return self.waiting or self.state in _RUNNING


def insist(ask: Callable[[], _Answer], seconds: float) -> _Answer:
    """Return what `ask` returns, and try it for this many seconds while the controller does not answer.

    Raises QueueError.
    """
    deadline, pause = time.monotonic() + seconds, 1.0
    while True:
        try:
            return ask()
        except NoAnswerError as error:
            if time.monotonic() + pause > deadline:
                raise
            print(f"{error}; trying again", file=sys.stderr, flush=True)
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def job_states(job_ids: Sequence[str]) -> dict[str, JobState]:
    """Return those of the jobs that the queue still knows, by id. Raises QueueError.

    job_ids   the id of an array gives all its elements
    """
    if not job_ids:
        return {}
    columns = ",".join(f"{field}:|" for field in _FIELDS)
    # One unknown job alone is an error to squeue; among others it is left out.
    text = _run("squeue", "-h", "-r", "-t", "all", "-j", ",".join(job_ids), "-O", columns, ignore=_UNKNOWN_JOB)
    return parse_states(text)


def parse_states(text: str) -> dict[str, JobState]:
    """Return the jobs in squeue's output, by id; its fields are `_FIELDS`, its times unix seconds."""
    states = {}
    for line in text.splitlines():
        fields = [field.strip() for field in line.split("|")]
        if len(fields) <= len(_FIELDS):
            continue
        job_id, state, reason, restarts, start, end, nodes, code = fields[: len(_FIELDS)]
        states[job_id] = JobState(
            job_id=job_id,
            state=state,
            reason="" if reason == "None" else reason,
            restarts=int(restarts or 0),
            start=_seconds(start),
            end=_seconds(end),
            nodes=nodes,
            exit_code=_shell_code(code),
        )
    return states


def requeue(job_id: str) -> None:
    """Put a running job back into the queue. SLURM then ends its processes, the one that calls this included."""
    _run("scontrol", "requeue", job_id)


def hold(job_id: str) -> None:
    """Put a running job back into the queue, where it waits until it is released; its processes are ended."""
    _run("scontrol", "requeuehold", job_id)


def release(job_id: str) -> None:
    """Let a job run that is held in the queue."""
    _run("scontrol", "release", job_id)


def cancel(job_id: str) -> None:
    """End a job, or take it out of the queue; a job that has ended stays as it is."""
    _run("scancel", job_id)


def exclude(job_id: str, nodes: Sequence[str], num_nodes: int) -> bool:
    """Make a waiting job start without these nodes; return False where too few others would be left.

    num_nodes   the number that the job needs; right after a requeue, the queue itself does not tell it
    """
    partition, excluded = _run("squeue", "-h", "-t", "all", "-j", job_id, "-o", "%P|%x").strip().split("|")
    usable = _run("sinfo", "-h", "-N", "-p", partition, "-o", "%N %T")
    before = hostnames(excluded) if excluded not in ("", "(null)", "N/A") else []
    unwanted = sorted({*before, *nodes})
    if not enough_others(usable, unwanted, num_nodes):
        return False
    _run("scontrol", "update", f"JobId={job_id}", f"ExcNodeList={','.join(unwanted)}")
    return True


def down_nodes(nodes: Sequence[str]) -> list[str]:
    """Return those of these nodes that are down; a node that is slow to answer is not. Raises QueueError."""
    if not nodes:
        return []
    lines = [line.split() for line in _run("sinfo", "-h", "-N", "-n", ",".join(nodes), "-o", "%N %T").splitlines()]
    return sorted({name for name, state in lines if state.startswith(("down", "fail"))})


def enough_others(sinfo: str, unwanted: Sequence[str], num_nodes: int) -> bool:
    """Return True if enough nodes are up beside the unwanted ones.

    sinfo   lines `NODE STATE`
    """
    lines = (line.split() for line in sinfo.splitlines())
    up = {words[0] for words in lines if len(words) == 2 and words[1].startswith(_USABLE_NODES) and "*" not in words[1]}
    return len(up - set(unwanted)) >= num_nodes


@dataclass(frozen=True)
class Partition:
    """A partition of the cluster.

    nodes     number of nodes
    usable    number of nodes that run jobs, or could
    gpus      number of GPUs of the node that has the most
    minutes   the longest time that a job may ask for; None where there is no limit
    """

    name: str
    default: bool
    up: bool
    nodes: int
    usable: int
    gpus: int
    minutes: float | None


def partitions() -> list[Partition]:
    """Return the partitions that the controller knows, in its order. Raises QueueError."""
    return parse_partitions(_run("sinfo", "-h", "-a", "-o", "%P|%a|%D|%T|%G|%l"))


def parse_partitions(sinfo: str) -> list[Partition]:
    """Return the partitions in sinfo's output.

    sinfo   lines `NAME|AVAIL|NODES|STATE|GRES|TIMELIMIT`, one for each state that nodes of a partition are in
    """
    from launch.slurm.options import minutes_of  # takes time, and `launch list` does without it

    found: dict[str, Partition] = {}
    for line in sinfo.splitlines():
        name, available, nodes, state, gres, limit = line.split("|")
        usable = state.startswith(_USABLE_NODES) and "*" not in state
        gpus = sum(int(count) for count in re.findall(r"\bgpu:(?:[^:,(]+:)?(\d+)", gres))
        bare = name.removesuffix("*")
        before = found.get(bare, Partition(bare, name != bare, available == "up", 0, 0, 0, minutes_of(limit)))
        found[bare] = replace(
            before,
            nodes=before.nodes + int(nodes),
            usable=before.usable + usable * int(nodes),
            gpus=max(before.gpus, gpus),
        )
    return list(found.values())


def on_each_node(words: Sequence[str], nodes: int) -> str:
    """Run a command once on each node of this allocation; return all that it prints. Raises QueueError."""
    return _run(*one_task_a_node(nodes), *words)


def one_task_a_node(nodes: int) -> list[str]:
    """Return the words that run a command once on each node of this allocation, beside other steps."""
    tasks = [f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1"]
    return ["srun", *tasks, "--overlap", "--cpu-bind=none", "--kill-on-bad-exit=1"]


def hostnames(node_list: str) -> list[str]:
    """Return the names of nodes in SLURM's short form: `n[0-1]` is n0 and n1. Raises QueueError."""
    names = _run("scontrol", "show", "hostnames", node_list).split()
    if not names:
        raise QueueError(f"scontrol show hostnames {node_list!r} named no node")
    return names


def _run(*words: str, ignore: str | None = None) -> str:
    """Return what a command of SLURM prints. Raises QueueError with its error, unless `ignore` is in that."""
    environment = _without_filters(os.environ) | {"SLURM_TIME_FORMAT": "%s"}
    try:
        done = subprocess.run(
            words, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_SECONDS
        )
    except FileNotFoundError:
        raise QueueError(f"{words[0]} was not found: SLURM's commands are not installed here, or not on PATH") from None
    except subprocess.TimeoutExpired:
        raise NoAnswerError(f"{words[0]} got no answer from SLURM's controller in {_SECONDS} s") from None
    if done.returncode != 0 and not (ignore and ignore in done.stderr):
        lines = (_MESSAGE_PREFIX.sub("", line) for line in done.stderr.splitlines())
        said = "; ".join(line for line in lines if line) or f"exit code {done.returncode}"
        kind = NoAnswerError if _NO_ANSWER.search(said) else QueueError
        raise kind(f"{' '.join(words[:2])} failed: {said}")
    return done.stdout


def _without_filters(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without the user's defaults for squeue, sinfo and scancel, which could hide jobs."""
    prefixes = ("SQUEUE_", "SINFO_", "SCANCEL_")
    return {name: value for name, value in environment.items() if not name.startswith(prefixes)}


def _seconds(text: str) -> float | None:
    with suppress(ValueError):
        return float(text)
    return None


def _shell_code(text: str) -> int:
    """Return an exit code as a shell gives it, 128 + the number of a signal, from `7:0` or a number of wait()."""
    code, colon, number = text.partition(":")
    if colon:
        return 128 + int(number) if int(number) else int(code)
    with suppress(ValueError):
        code_of_wait = os.waitstatus_to_exitcode(int(text))
        return code_of_wait if code_of_wait >= 0 else 128 - code_of_wait
    return 0
