"""The samples in golden/ are what `accelerate launch` really wrote (Accelerate 1.15, torch 2.15), paths renamed."""

from pathlib import Path

import pytest
from paths import GOLDEN

from launch.local.failure import RankFailure, StderrFilter, describe, find_failure


def read(name: str) -> str:
    return (GOLDEN / f"accelerate_{name}.txt").read_text()


@pytest.mark.parametrize(
    ("name", "rank", "exit_code", "shell_code"),
    [
        ("code", 1, 7, 7),  # rank 1 ended with 7, rank 0 was then asked to end
        ("mistake", 0, 2, 2),
        ("stopped", 0, 75, 75),
        ("killed", 1, -9, 137),
        ("exception", 1, 1, 1),
        ("both", 1, -11, 139),  # rank 0 lost the connection to the crashed rank 1, and was seen first
        ("stubborn", 0, 3, 3),  # rank 1 did not end when asked, so the agent killed it
    ],
)
def test_finds_the_rank_that_failed(name: str, rank: int, exit_code: int, shell_code: int) -> None:
    failure = find_failure(read(name))
    assert failure is not None
    assert (failure.rank, failure.exit_code, failure.host) == (rank, exit_code, "localhost")
    assert failure.shell_code == shell_code


@pytest.mark.parametrize("text", ["", "Traceback (most recent call last):\nOSError: no space left on device\n"])
def test_no_report_is_no_failure(text: str) -> None:
    assert find_failure(text) is None


@pytest.mark.parametrize(("other_code", "rank"), [(2, 0), (75, 1)])
def test_of_a_mistake_that_all_found_rank_0_is_named(other_code: int, rank: int) -> None:
    text = (
        read("code").replace("exitcode  : 7", "exitcode  : 2").replace("exitcode  : -15", f"exitcode  : {other_code}")
    )
    failure = find_failure(text)
    assert failure is not None
    assert (failure.rank, failure.exit_code) == (rank, 2)


def test_one_failure_alone() -> None:
    text = read("code")
    start, end = text.index("[1]:"), text.index("------", text.index("[1]:"))
    failure = find_failure(text[:start] + "  <NO_OTHER_FAILURES>\n" + text[end:])
    assert failure is not None
    assert (failure.rank, failure.exit_code) == (1, 7)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("code", ""),
        ("killed", ""),
        ("stubborn", ""),
        ("mistake", "error: data.root: got nowhere, must be a folder\n"),
        ("exception", read("exception").split("W1121")[0]),
    ],
)
def test_shows_only_what_the_ranks_wrote(name: str, expected: str) -> None:
    stderr_filter = StderrFilter()
    shown = [line for given in read(name).splitlines(keepends=True) for line in stderr_filter.feed(given)]
    assert "".join([*shown, *stderr_filter.close()]) == expected


def test_the_agent_is_known_where_its_environment_lies_below_the_current_directory() -> None:
    """torch shortens a path to what is below the current directory: with a .venv in the clone, it begins with that."""
    stderr_filter = StderrFilter()
    line = (
        "W1121 19:14:05.338000 9623 .venv/lib/python3.11/site-packages/torch/distributed/elastic/api.py:1028] Sending\n"
    )
    assert stderr_filter.feed(line) == []
    assert stderr_filter.feed("a line of a rank\n") == ["a line of a rank\n"]


@pytest.mark.parametrize(
    "text",
    [
        "a warning\nTraceback (most recent call last):\n",  # cut off: nothing is lost
        "Traceback (most recent call last):\n" * 2 + "  File x\n",
        'Traceback (most recent call last):\n  File "/x/trainlib/train.py", line 1\nKeyError: 1\nmore\n',
    ],
)
def test_other_text_passes_whole(text: str) -> None:
    stderr_filter = StderrFilter()
    shown = [line for given in text.splitlines(keepends=True) for line in stderr_filter.feed(given)]
    assert "".join([*shown, *stderr_filter.close()]) == text


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
    failure = RankFailure(rank=1, host="node3", exit_code=exit_code, pid=1)
    assert describe(failure, Path("runs/x/logs/rank-1.log"), last_lines) == expected
