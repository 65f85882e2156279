"""Why an attempt ended, read from lines of attempts.jsonl that versions without codes wrote."""

import pytest

from trainlib.runs.records.reasons import EndCode, code_of_end


@pytest.mark.parametrize(
    ("status", "sentence", "code"),
    [
        ("completed", None, EndCode.COMPLETED),
        ("completed", "OSError: no space", EndCode.COMPLETED),
        ("stopped", "SIGTERM", EndCode.SIGNAL),
        ("stopped", "SIGUSR2", EndCode.SIGNAL),
        ("stopped", "launch stop", EndCode.STOP_FILE),
        ("stopped", "STOP file", EndCode.STOP_FILE),
        ("stopped", "please", EndCode.STOP_FILE),
        ("stopped", None, EndCode.STOP_FILE),
        ("stopped", "another rank was asked to stop", EndCode.OTHER_RANK),
        ("stopped", "StoppedError: Stopped while computing frozen features.", EndCode.OTHER_RANK),
        ("stopped", "end time", EndCode.END_TIME),
        ("stopped", "the launcher died", EndCode.LAUNCHER_DIED),
        ("failed", "ConnectionLostError: lost the connection to another rank", EndCode.ERROR),
        ("failed", "end time", EndCode.ERROR),
        ("failed", None, EndCode.ERROR),
        (None, "SIGTERM", None),
        (None, None, None),
    ],
)
def test_lines_of_versions_without_codes(status: str | None, sentence: str | None, code: EndCode | None) -> None:
    line = {"event": "end", "status": status, "reason": sentence}
    assert code_of_end(line) is code
    assert code_of_end(line | {"code": "of a later version"}) is code
    for written in EndCode:
        assert code_of_end(line | {"code": written.value}) is written
