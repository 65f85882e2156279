"""A small file of a user's own code, a package of it, and a place to import them from."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainlib.runs.own_code import importing

PARTS = """
import trainlib

@trainlib.model
def net(num_classes, width=4): ...

@trainlib.loss
def focal(logits, targets, *, gamma): ...

@trainlib.metric
def recall(logits, labels): ...
"""


def in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory, a list of trusted code of its own, and nothing imported yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRAINLAUNCH_TRUSTED_CODE", str(tmp_path / "home" / "trusted-code"))
    monkeypatch.setattr(importing, "_imported", {})
    (tmp_path / "own.py").write_text(PARTS)
    return tmp_path


def make_package(folder: Path, **files: str) -> None:
    for name, text in {"__init__": "", "parts": "from package.more import net\n", "more": PARTS, **files}.items():
        path = folder / "package" / f"{name.replace('__slash__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
