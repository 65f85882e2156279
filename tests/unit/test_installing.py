"""What messages tell people to install is there to be installed; platforms without what locks need are told so."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator

import pytest
from paths import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
INSTALL = re.compile(r"(?:pip|uv pip) install (?:--upgrade )?('[^']*'|\"[^\"]*\"|[\w.\[\]{}-]+)")
OURS = {"trainlaunch"}
FROM_PYPI = {"gcsfs", "wandb", "tensorboard", "matplotlib"}  # that messages name as they are


def texts() -> Iterator[tuple[str, str]]:
    """Every piece of text in the code, with the file that has it; pieces beside each other are one."""
    for package in ("launch", "trainlib"):
        for path in sorted((REPOSITORY / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield path.relative_to(REPOSITORY).as_posix(), node.value
                elif isinstance(node, ast.JoinedStr):
                    parts = [p.value if isinstance(p, ast.Constant) else "{}" for p in node.values]
                    yield path.relative_to(REPOSITORY).as_posix(), "".join(map(str, parts))


def pages() -> Iterator[tuple[str, str]]:
    for path in (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))):
        yield path.relative_to(REPOSITORY).as_posix(), path.read_text()


def named(found: Iterator[tuple[str, str]]) -> dict[str, str]:
    """What is to be installed, by the word after `pip install`, with a file that says so."""
    return {word.strip("'\""): place for place, text in found for word in INSTALL.findall(text)}


@pytest.mark.parametrize("found", [texts, pages], ids=["messages", "docs"])
def test_every_extra_that_is_named_exists(found: object) -> None:
    words = named(found())  # type: ignore[operator]
    ours = {word: place for word, place in words.items() if re.split(r"\W", word)[0] in OURS}
    assert len(ours) > (5 if found is texts else 0)
    for word, place in ours.items():
        extras = re.fullmatch(r"trainlaunch(?:\[([\w,]+)\])?", word)
        assert extras, f"{place}: {word}"
        unknown = set(filter(None, (extras[1] or "").split(","))) - PROJECT["optional-dependencies"].keys()
        assert not unknown, f"{place}: {word}"


def test_every_other_package_that_a_message_names_is_known() -> None:
    known = FROM_PYPI | {re.split(r"\W", name)[0] for name in PROJECT["dependencies"]}
    for word, place in named(texts()).items():
        assert re.split(r"[\[{]", word)[0] in OURS | known | {""} or "%s" in word, f"{place}: {word}"


@pytest.mark.parametrize(("package", "code"), [("launch", 2), ("trainlib", 1)])
def test_windows_is_told_in_one_sentence(package: str, code: int) -> None:
    """There is no fcntl: what is imported first says so, to a program as its only words."""
    program = f"import sys; sys.modules['fcntl'] = None; import {package}"
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    *before, last = done.stderr.splitlines()
    sentence = "trainlaunch runs on Linux and macOS; on Windows, install and use it inside WSL 2"
    assert last == f"{'error' if package == 'launch' else 'ImportError'}: {sentence}"
    assert package == "trainlib" or not before
