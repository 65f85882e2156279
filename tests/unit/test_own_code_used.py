"""The code that parts of one's own use is a part of what a run depends on, wherever it lies."""

from __future__ import annotations

import functools
import importlib
import linecache
import sys
from pathlib import Path
from types import ModuleType

import pytest
from own_parts import in_place

from trainlib.config import load_config
from trainlib.models.own_parts.code_parts import parts_of
from trainlib.models.own_parts.custom_parts import CustomParts
from trainlib.runs.own_code import importing
from trainlib.runs.own_code.sources import read_named

HELPER = "def scaled(x):\n    return inner(x)\n\ndef inner(x):\n    return 2.0 * x\n\nclass Base:\n    factor = 2\n"
PART = """\
import math
import helper_of_mine
from helper_of_mine import Base

def focal(logits, targets):
    return [helper_of_mine.scaled(math.sqrt(x)) for x in logits]

class Net(Base):
    def forward(self, x):
        return later(x)

def later(x):
    return Other(x)

class Other:
    depth = 3
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return in_place(tmp_path, monkeypatch)


def module(name: str, text: str, folder: Path) -> ModuleType:
    """A module that is imported anew, as by another start of Python."""
    (folder / f"{name}.py").write_text(text)
    sys.modules.pop(name, None)
    importlib.invalidate_caches()
    linecache.clearcache()
    return importlib.import_module(name)


def codes(folder: Path, helper: str = HELPER, part: str = PART) -> list[str]:
    module("helper_of_mine", helper, folder)
    found = module("part_of_mine", part, folder)
    return [CustomParts(loss=functools.partial(found.focal)).code(), CustomParts(model=found.Net).code()]


def test_a_helper_that_changes_is_noticed_through_modules_and_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(str(tmp_path))
    loss, net = codes(tmp_path)
    assert codes(tmp_path, "EPOCHS = 3\n" + HELPER) == [loss, net]
    assert codes(tmp_path, HELPER.replace("2.0", "3.0"))[1] == net
    assert codes(tmp_path, HELPER.replace("2.0", "3.0"))[0] != loss
    assert codes(tmp_path, HELPER.replace("factor = 2", "factor = 4"))[1] != net
    changed = codes(tmp_path, part=PART.replace("depth = 3", "depth = 4"))
    assert (changed[0], changed[1] != net) == (loss, True)


def test_what_code_of_the_command_line_imports_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own files have their digest in config.yaml; an installed package that changes has not."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (installed := tmp_path / "site-packages").mkdir()
    monkeypatch.syspath_prepend(str(installed))
    mine = "@trainlib.loss\ndef mine(logits, targets):\n    return scaled(1)\n"
    (tmp_path / "own.py").write_text(f"import trainlib\nfrom helper_of_mine import scaled\n{mine}")
    found = []
    for helper in (HELPER, HELPER, HELPER.replace("2.0", "3.0")):
        module("helper_of_mine", helper, installed)
        importing._imported.clear()
        code = read_named(["own.py"])
        parts = importing.import_code(code)
        config = load_config(["quickstart", "loss={name: code:mine}"], code=code.digests, parts=parts)
        found.append(parts_of(config, parts).code())
    assert found[0] == found[1] != found[2]
