"""The paths and names of the code that the guides for developers mention: each is there.

A path is `trainlib/...` or `launch/...` in backquotes. A name is dotted (`trainlib.train.main`, `Plan.batches`), or a
plain one that stands before "in `path`": then that file defines it.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from paths import REPOSITORY

GUIDES = [REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "docs/architecture.md")]
PATH = re.compile(r"`((?:trainlib|launch)/[\w/.-]*)`")
DOTTED = re.compile(r"`((?:trainlib|launch)(?:\.\w+)+|[A-Z]\w*[a-z]\w*\.\w+)`")
IN_FILE = re.compile(r"`(\w+(?:\.\w+)?)`(?: and `(\w+(?:\.\w+)?)`)? in\s+`((?:trainlib|launch)/[\w/.-]+\.py)`")


def definitions(path: Path) -> set[str]:
    """Return the names that a module defines: functions, classes, constants, and `Class.member`."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        for target in [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", []):
            found.add(ast.unparse(target))
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            for member in node.body:
                name = getattr(member, "name", None) or ast.unparse(getattr(member, "target", ast.Name("")))
                found.add(f"{node.name}.{name}")
    return found


FILES = {path: definitions(path) for package in ("trainlib", "launch") for path in (REPOSITORY / package).rglob("*.py")}
EVERYWHERE = set().union(*FILES.values())


def exists(dotted: str) -> bool:
    """Return True for a module or package, a name that one defines or exports, or a member of some class."""
    if not dotted.startswith(("trainlib.", "launch.")):
        return dotted in EVERYWHERE
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        module = REPOSITORY.joinpath(*parts[:length])
        file = module / "__init__.py" if module.is_dir() else module.with_suffix(".py")
        if file.is_file():
            rest = ".".join(parts[length:])
            return not rest or rest in FILES[file] or f'"{rest}"' in file.read_text()
    return False


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.name)
def test_paths_and_names_are_there(guide: Path) -> None:
    text = guide.read_text()
    assert [path for path in PATH.findall(text) if not (REPOSITORY / path).exists()] == []
    assert [name for name in DOTTED.findall(text) if not exists(name)] == []


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.name)
def test_a_name_in_a_file_is_defined_there(guide: Path) -> None:
    missing = [
        f"{name} in {file}"
        for first, second, file in IN_FILE.findall(guide.read_text())
        for name in filter(None, (first, second))
        if not (REPOSITORY / file).exists() or name not in FILES[REPOSITORY / file]
    ]
    assert missing == []


def test_a_wrong_name_is_found() -> None:
    assert exists("trainlib.train.main")
    assert exists("trainlib.fit")
    assert exists("Plan.batches")
    assert not exists("trainlib.train.mainly")
    assert not exists("trainlib.shed.train")
    assert not exists("Plan.bunches")
    text = "`run_ranks` in `launch/local/ranks/supervise.py`, and `train` in\n`trainlib/train.py`"
    assert IN_FILE.findall(text) == [
        ("run_ranks", "", "launch/local/ranks/supervise.py"),
        ("train", "", "trainlib/train.py"),
    ]
    guides = "".join(guide.read_text() for guide in GUIDES)
    assert len(IN_FILE.findall(guides)) > 20
