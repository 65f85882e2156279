"""The import of code of the user's own: from the bytes that were read, with faults told by their line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from own_parts import PARTS, in_place, make_package

from trainlib.errors import UserError
from trainlib.parts import Parts
from trainlib.runs.own_code import importing
from trainlib.runs.own_code.sources import read_named


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return in_place(tmp_path, monkeypatch)


def imported(*words: str) -> Parts:
    return importing.import_code(read_named(words))


def test_a_file_may_have_the_name_of_any_module_and_no_ascii(place: Path) -> None:
    import random

    (place / "größe").mkdir()
    for name in ("random.py", "größe/torch.py", "größe/größe 2.1.py"):
        (place / name).write_text(PARTS)
        assert imported(name).names("model") == ["net"]
    assert sys.modules["random"] is random


def test_a_package_is_imported_from_the_bytes_that_were_read(place: Path) -> None:
    make_package(
        place, parts="from .more import net\nfrom package.sub.inner import value\n", sub__slash__inner="value = 1"
    )
    (place / "package/table.txt").write_text("data")
    more = (
        PARTS
        + "import importlib.resources\ntext = importlib.resources.files('package').joinpath('table.txt').read_text()\n"
    )
    (place / "package/more.py").write_text(more)
    code = read_named(["package.parts"])
    (place / "package/more.py").write_text("raise RuntimeError('changed since')")
    assert importing.import_code(code).names("loss") == ["focal"]
    assert sys.modules["package.more"].text == "data"
    (place / "package/late.py").write_text("")
    with pytest.raises(ModuleNotFoundError):
        __import__("package.late")


FAULTS: dict[str, tuple[str, str]] = {
    "an exception": ("x = 1\ny = 1 / 0\n", r"own.py line 2: ZeroDivisionError: division by zero$"),
    "one in a function": ("def f():\n    return {}['a']\n\nf()\n", r"own.py line 2: KeyError: 'a'$"),
    "its syntax": ("def f(:\n", r"own.py line 1: "),
    "the end of the program": ("import sys\nsys.exit(3)\n", r"own.py line 2: it ends the program"),
    "what is not installed": ("import nosuchpackage\n", r"own.py line 1: ModuleNotFoundError.*Install it"),
    "what lies beside it": ("import beside\n", r"line 1: ModuleNotFoundError.*It lies beside it: .*PACKAGE.MODULE"),
    "a relative import": ("from . import beside\n", r"line 1: ImportError: attempted relative.*PACKAGE.MODULE"),
    "a path": ("import sys\nsys.path.insert(0, '.')\n", r"own.py: it adds . to sys.path.*PACKAGE.MODULE"),
    "a name twice": (PARTS + PARTS, r"own.py line 1\d: a model named net is registered at .*own.py line \d already"),
    "brackets": ("import trainlib\n@trainlib.loss\n@property\ndef f(a): ...\n", "must stand above a function or class"),
    "other names": (
        "import trainlib\n@trainlib.loss\ndef f(x, y): ...\n",
        r"own.py line 2: .*must take logits, targets",
    ),
    "too few": ("import trainlib\n@trainlib.metric\ndef f(logits): ...\n", r"line 2: .*must take logits, labels"),
    "too many": (
        "import trainlib\n@trainlib.transform\ndef f(images_NCHW, indices_N, key, more): ...\n",
        r"line 2: .*must take images_NCHW, indices_N, key",
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_in_the_users_code_is_told_with_its_line(place: Path, case: str) -> None:
    text, message = FAULTS[case]
    (place / "own.py").write_text(text)
    (place / "beside.py").write_text("")
    path = list(sys.path)
    with pytest.raises(UserError, match=message) as caught:
        imported("own.py")
    assert "Traceback" not in str(caught.value)
    assert sys.path == path


def test_what_python_finds_beside_the_file_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "own.py").write_text("import lying_beside\n")
    (place / "lying_beside.py").write_text("")
    monkeypatch.syspath_prepend(str(place))
    with pytest.raises(UserError, match=r"it imports .*lying_beside.py, which lies beside it"):
        imported("own.py")


def test_a_module_of_no_file_is_not_taken_for_one_beside_it(place: Path) -> None:
    """As torch makes them, in a process that imports it for the first time."""
    text = (
        "import sys, types\nsys.modules['of_no_file'] = module = types.ModuleType('x')\nmodule.__file__ = '_ops.py'\n"
    )
    (place / "own.py").write_text(text)
    assert imported("own.py").registered == ()


def test_a_package_must_not_be_called_like_one_of_pythons(place: Path) -> None:
    for name in ("json", "trainlib"):
        (place / name).mkdir()
        (place / name / "__init__.py").write_text("")
        with pytest.raises(UserError, match=r"has a module .* of its own: rename yours"):
            imported(f"./{name}")


def test_what_it_prints_goes_to_standard_error(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "own.py").write_text("print('hello')")
    imported("own.py")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "hello\n")
