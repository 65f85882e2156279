"""The public surface of trainlib: the names that it shows, that they resolve, and that showing them is quick."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from paths import REPOSITORY

import trainlib

PUBLIC = [
    "ConfigError",
    "Hook",
    "TrainlaunchError",
    "UserError",
    "dataset",
    "fit",
    "image_dataset",
    "load_model",
    "loss",
    "metric",
    "model",
    "open_run",
    "optimizer",
    "transform",
]


def test_dir_shows_exactly_the_public_names() -> None:
    assert dir(trainlib) == sorted(trainlib.__all__) == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_resolves_and_is_described(name: str) -> None:
    assert callable(getattr(trainlib, name))
    assert getattr(trainlib, name).__doc__


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'trainlib' has no attribute 'fitt'"):
        trainlib.fitt  # noqa: B018


def test_import_and_dir_import_no_torch() -> None:
    program = "import sys, trainlib; dir(trainlib); trainlib.UserError; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_type_checkers_see_the_same_names() -> None:
    """A name that is imported when it is first used is imported from the same module under TYPE_CHECKING."""
    tree = ast.parse(Path(trainlib.__file__).read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    seen = {alias.name: node.module for node in imports for alias in node.names}
    assert {name: getattr(trainlib, name).__module__.split(".")[:2] for name in PUBLIC} == {
        name: str(seen[name]).split(".")[:2] for name in PUBLIC
    }


@pytest.mark.parametrize("package", ["trainlib", "launch"])
def test_the_packages_are_marked_as_typed(package: str) -> None:
    assert (REPOSITORY / package / "py.typed").is_file()
