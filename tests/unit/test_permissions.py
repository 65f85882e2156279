"""A file or folder without permission is the user's mistake: exit code 2, which SLURM does not try again."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from trainlib.errors import TrainlaunchError, UserError, not_permitted, not_written
from trainlib.runs.attempt.record import Attempt, read_attempts, recorded_attempt


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM])
def test_an_attempt_without_permission(tmp_path: Path, number: int) -> None:
    attempt = Attempt(tmp_path, world_size=1, step=0)
    attempt.begin(1)
    with (
        pytest.raises(UserError, match=r"data/cat: .*: change its owner or permissions"),
        recorded_attempt(attempt),
    ):
        raise OSError(number, "not allowed", "data/cat")
    assert read_attempts(tmp_path)[-1]["status"] == "failed"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_failing_disk_is_no_mistake(tmp_path: Path, number: int) -> None:
    attempt = Attempt(tmp_path, world_size=1, step=0)
    attempt.begin(1)
    with pytest.raises(TrainlaunchError) as caught, recorded_attempt(attempt):
        raise OSError(number, "broken", "data/cat")
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "make room there, or change to a folder on another disk"),
        (errno.EDQUOT, "make room there, or change to a folder on another disk"),
        (errno.EROFS, "change to a folder that you may write to, or mend its permissions"),
    ],
)
def test_a_run_that_cannot_be_written_comes_with_the_remedy_for_the_reason(number: int, remedy: str) -> None:
    assert not_written("runs/x", OSError(number, "why")) == f"runs/x: cannot be written (why); {remedy}"


def test_a_message_without_a_name() -> None:
    assert not_permitted(PermissionError(errno.EPERM, "not allowed")).startswith("not allowed: change its owner")
