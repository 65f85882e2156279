"""Which rank is named, of those that torch's agent reports; the reports are those of real runs (Accelerate 1.15)."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from paths import REPOSITORY

from launch.local.outcome.failure import AgentReport, RankFailure, describe, find_failed_rank, judge_aborted
from launch.local.ranks.agent import AGENT_MODULE, with_report
from launch.local.start.command import accelerate_launch

FIRST, SECOND = 5069, 5070  # process ids


def failures(*rank_and_code: tuple[int, int]) -> list[RankFailure]:
    """As the agent reports them, first observed first; rank 0 is process FIRST, rank 1 is SECOND."""
    return [RankFailure(rank, code, (FIRST, SECOND)[rank]) for rank, code in rank_and_code]


@pytest.mark.parametrize(
    ("observed", "closing", "rank", "shell_code"),
    [
        ([(1, 7), (0, -15)], [FIRST], 1, 7),  # rank 1 ended with 7, rank 0 was then asked to end
        ([(0, 2), (1, 2)], [], 0, 2),
        ([(1, 2), (0, 2)], [], 0, 2),  # of a mistake that all found, rank 0 is named
        ([(1, 2), (0, 75)], [FIRST], 1, 2),
        ([(0, 75), (1, 75)], [], 0, 75),
        ([(1, -9), (0, -15)], [FIRST], 1, 137),
        ([(1, 1), (0, -15)], [FIRST], 1, 1),
        ([(0, 1), (1, -11)], [], 1, 139),  # rank 0 lost the connection to the crashed rank 1, and was seen first
        ([(0, 3), (1, -9)], [SECOND], 0, 3),  # rank 1 did not end when asked, so it was killed
        ([(0, 76), (1, 7)], [], 1, 7),  # rank 0 says itself that it only lost the connection to another rank
        ([(0, 76), (1, 75)], [SECOND], 1, 75),
        ([(0, 76), (1, 76)], [], 0, 76),
        ([(0, 76), (1, -15)], [SECOND], 0, 76),
        ([(1, 7)], [], 1, 7),
        ([(0, -6), (1, 7)], [], 1, 7),  # NCCL's watchdog aborted rank 0, as it lost rank 1
        ([(0, -6), (1, -15)], [SECOND], 0, 134),
        ([(0, 76), (1, -6)], [], 1, 134),
    ],
)
def test_finds_the_rank_that_failed(
    observed: Sequence[tuple[int, int]], closing: Sequence[int], rank: int, shell_code: int
) -> None:
    failure = find_failed_rank(failures(*observed), closing)
    assert failure is not None
    assert (failure.rank, failure.shell_code) == (rank, shell_code)


@pytest.mark.parametrize(
    ("line", "exit_code"),
    [
        ("[Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7, OpType=ALLREDUCE)", 76),
        ("NCCL error: remote process exited or there was a network error, NCCL version 2.28.9", 76),
        ("watchdog thread terminated with exception: NCCL error in: x.cpp, ncclRemoteError: A call failed", 76),
        ("watchdog thread terminated with exception: CUDA error: device-side assert triggered", -6),
        ("corrupted size vs. prev_size", -6),
    ],
)
def test_a_rank_that_nccl_aborted_only_lost_another_one(line: str, exit_code: int) -> None:
    log = ["step 7", line, "terminate called after throwing an instance of 'c10::DistBackendError'"]
    assert judge_aborted(RankFailure(1, -6, SECOND), log) == RankFailure(1, exit_code, SECOND)
    assert judge_aborted(RankFailure(1, -9, SECOND), log).exit_code == -9


def test_a_frozen_rank_is_the_cause_of_what_the_others_see() -> None:
    observed = failures((0, 73), (1, -9))
    assert find_failed_rank(observed, [SECOND], [SECOND]) == observed[1]
    assert find_failed_rank(observed, [SECOND]) == observed[0]


def test_no_report_is_no_failure() -> None:
    assert find_failed_rank([], []) is None


def test_a_report_that_is_cut_off_keeps_what_is_whole() -> None:
    report = AgentReport()
    lines: list[Mapping[str, Any]] = [
        {"log": "Sending process 5069 closing signal SIGTERM\n"},
        {"closing": FIRST},
        {"failures": [{"rank": 1, "exit_code": 7, "pid": SECOND}]},
    ]
    for line in [*map(json.dumps, lines), '{"failures": [{"rank"']:
        report.add_line(line)
    assert report == AgentReport([lines[0]["log"]], [FIRST], failures((1, 7)))


def test_only_accelerate_is_given_a_report() -> None:
    words = (*accelerate_launch(sys.executable), "--multi_gpu", "-m", "trainlib.train", "x.yaml")
    expected = (sys.executable, "-P", "-m", AGENT_MODULE, "5", "--multi_gpu", "-m", "trainlib.train", "x.yaml")
    assert with_report(words, 5) == expected
    assert with_report(("srun", *words), 5) == ("srun", *words)


@pytest.mark.slow
def test_what_torch_logs_goes_to_the_report_and_not_to_the_console() -> None:
    """The agent's own process, with a launch that logs as torch's agent does and then breaks."""
    program = f"""
import logging, sys
import {AGENT_MODULE} as agent
def launch(arguments):
    logger = logging.getLogger("torch.distributed.elastic.multiprocessing.api")
    logger.warning(agent._CLOSING_MESSAGE + " %s", {FIRST}, "SIGTERM")
    logger.info("not worth a line")
    raise RuntimeError("address already in use")
agent.launch_command = launch
machine = ["--num_processes=2", "--num_machines=1", "--machine_rank=0", "--main_process_port=0"]
sys.argv[1:] = ["1", "--multi_gpu", *machine, "x.py"]
agent.main()
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    report = AgentReport()
    for line in done.stdout.splitlines():
        report.add_line(line)
    assert (report.closing, report.failures) == ([FIRST], [])
    assert report.log[0].endswith(f"WARNING Sending process {FIRST} closing signal SIGTERM\n")
    assert report.log[-1].endswith("RuntimeError: address already in use\n")
    assert len(report.log) == 2


@pytest.mark.parametrize(
    ("exit_code", "last_lines", "expected"),
    [
        (7, [], "rank 1 on node3 ended with exit code 7; its log is runs/x/logs/rank-1.log"),
        (-9, [], "rank 1 on node3 was killed by SIGKILL; its log is runs/x/logs/rank-1.log"),
        (
            1,
            ["a", "RuntimeError: b"],
            "rank 1 on node3 ended with exit code 1; its log is runs/x/logs/rank-1.log, which ends with:\n"
            "  a\n  RuntimeError: b",
        ),
    ],
)
def test_message_names_rank_host_end_and_log(exit_code: int, last_lines: list[str], expected: str) -> None:
    failure = RankFailure(rank=1, exit_code=exit_code, pid=1)
    assert describe(failure, "node3", Path("runs/x/logs/rank-1.log"), last_lines) == expected
