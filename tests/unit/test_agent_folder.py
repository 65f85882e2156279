"""The folder that the ranks of torchrun share on a machine: the same for all of a start, and nobody else's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trainlib.runs.machine.agent_folder import make_agent_folder, remove_agent_folder

ENVIRON = {"TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "0"}


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_ranks_of_one_start_share_a_folder_of_their_own() -> None:
    first = make_agent_folder(ENVIRON)
    assert first is not None
    assert first == make_agent_folder(ENVIRON | {"LOCAL_RANK": "1"})
    assert first != make_agent_folder(ENVIRON | {"TORCHELASTIC_RESTART_COUNT": "1"})
    assert first.stat().st_mode & 0o777 == 0o700
    remove_agent_folder(first, ENVIRON | {"LOCAL_RANK": "1"})
    assert first.exists()
    remove_agent_folder(first, ENVIRON)
    assert not first.exists()
    remove_agent_folder(None, ENVIRON)


@pytest.mark.parametrize("change", [{"TORCHELASTIC_RUN_ID": ""}, {"LOCAL_WORLD_SIZE": "1"}])
def test_without_an_agent_or_other_ranks_there_is_none(change: dict[str, str], temporary: Path) -> None:
    """A shell that starts ranks by hand may start others later, which must not find what was listed then."""
    assert make_agent_folder(ENVIRON | change) is None
    assert not list(temporary.iterdir())


@pytest.mark.parametrize("kind", ["open to others", "a link", "a file"])
def test_a_folder_that_others_can_write_to_is_not_trusted(temporary: Path, kind: str) -> None:
    folder = make_agent_folder(ENVIRON)
    assert folder is not None
    folder.rmdir()
    if kind == "open to others":
        folder.mkdir()
        folder.chmod(0o777)
    elif kind == "a file":
        folder.touch(mode=0o600)
    else:
        (temporary / "elsewhere").mkdir(mode=0o700)
        os.symlink(temporary / "elsewhere", folder)
    assert make_agent_folder(ENVIRON) is None
