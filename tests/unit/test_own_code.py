"""Code of the user's own: reading and digesting it, its copy, and whom it is trusted by."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from own_parts import PARTS, in_place, make_package

from trainlib.errors import UserError
from trainlib.runs.own_code import importing, trust
from trainlib.runs.own_code.loading import code_of_run, load_with_code
from trainlib.runs.own_code.sources import FOLDER, difference, read_copy, read_named, write_copy


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return in_place(tmp_path, monkeypatch)


# Reading and digests


def test_the_digest_of_a_file_is_that_of_its_bytes(place: Path) -> None:
    assert read_named(["own.py"]).digests == {"own.py": hashlib.sha256(PARTS.encode()).hexdigest()}
    assert read_named([str(place / "own.py")]).digests == read_named(["own.py"]).digests


def test_the_digest_of_a_module_is_over_its_whole_package_but_for_what_python_makes(place: Path) -> None:
    make_package(place)
    before = read_named(["package.parts"])
    assert set(before.files) == {"package/__init__.py", "package/parts.py", "package/more.py"}
    (place / "package/__pycache__").mkdir()
    (place / "package/__pycache__/more.cpython-311.pyc").write_bytes(b"x")
    (place / "package/.git").mkdir()
    assert read_named(["package.parts"]).digests == before.digests
    (place / "package/table.csv").write_text("1")
    assert read_named(["package.parts"]).digests != before.digests
    assert read_named(["package.more"]).digests.keys() == {"package.more"}


WRONG_WORDS: dict[str, tuple[str, str]] = {
    "missing": ("nothing.py", r"--code nothing.py: cannot be read \(No such file"),
    "a folder": ("home", "there is no home.py in"),
    "no module": ("package.absent", "there is no package/absent.py"),
    "another ending": ("own.txt", "there is no own.py and no package own|there is no own/txt.py"),
    "options": ("--fresh", "must be FILE.py, or a module"),
    "two of one name": ("sub/own.py", "another file of the name own.py is given, too"),
    "a hidden name": (".own.py", "cannot be the name of a file of code"),
    "a pipe": ("pipe.py", "is a pipe, must be a regular file"),
}


@pytest.mark.parametrize("case", WRONG_WORDS)
def test_words_that_are_no_code_are_refused(place: Path, case: str) -> None:
    word, message = WRONG_WORDS[case]
    make_package(place)
    (place / "home").mkdir()
    (place / "sub").mkdir()
    (place / "sub/own.py").write_text("")
    os.mkfifo(place / "pipe.py")
    with pytest.raises(UserError, match=message):
        read_named(["own.py", word])


def test_a_package_with_a_link_to_a_folder_is_refused(place: Path) -> None:
    make_package(place)
    (place / "package/data").symlink_to("/")
    with pytest.raises(UserError, match="is a link to a folder"):
        read_named(["package.parts"])


# The copy


@pytest.mark.parametrize("word", ["own.py", "package.parts"])
def test_a_copy_has_the_same_bytes_and_is_found_again(place: Path, word: str) -> None:
    make_package(place)
    code = read_named([word])
    write_copy(code, place)
    found = read_copy(place / FOLDER, code.digests)
    assert (found.digests, found.files) == (code.digests, code.files)
    assert difference(place, code) == ""
    inode = (place / FOLDER).stat().st_ino
    write_copy(code, place)
    assert (place / FOLDER).stat().st_ino == inode, "a copy that is whole stays"
    assert not [path for path in place.iterdir() if path.name.startswith(f".{FOLDER}")]


def _append(path: Path) -> None:
    path.write_text(path.read_text() + "\nimport os\n")


def _replace_by_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere.txt"))
    path.symlink_to("elsewhere.txt")


def _replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


TAMPERING: dict[str, Callable[[Path], None]] = {
    "other bytes": _append,
    "a link": _replace_by_link,
    "a folder": _replace_by_folder,
    "gone": Path.unlink,
}


@pytest.mark.parametrize("case", TAMPERING)
@pytest.mark.parametrize("word", ["own.py", "package.parts"])
def test_a_copy_that_was_changed_is_refused_and_mended_by_the_code_itself(place: Path, word: str, case: str) -> None:
    make_package(place)
    code = read_named([word])
    write_copy(code, place)
    TAMPERING[case](place / FOLDER / ("own.py" if word == "own.py" else "package/more.py"))
    with pytest.raises(UserError, match=r"has been changed|cannot be read|must be a folder|link"):
        read_copy(place / FOLDER, code.digests)
    write_copy(code, place)
    assert read_copy(place / FOLDER, code.digests).files == code.files


def test_a_file_that_is_added_to_a_copied_package_is_noticed(place: Path) -> None:
    make_package(place)
    code = read_named(["package.parts"])
    write_copy(code, place)
    (place / FOLDER / "package/random.py").write_text("")
    with pytest.raises(UserError, match="has been changed"):
        read_copy(place / FOLDER, code.digests)


def test_the_difference_is_a_short_diff(place: Path) -> None:
    write_copy(read_named(["own.py"]), place)
    (place / "own.py").write_text(PARTS.replace("width=4", "width=8"))
    assert "-def net(num_classes, width=4): ...\n+def net(num_classes, width=8): ..." in difference(
        place, read_named(["own.py"])
    )
    (place / "own.py").write_text("x = 1\n" * 1000)
    assert "more lines" in difference(place, read_named(["own.py"]))


# Trust


def test_trust_is_by_name_and_bytes_and_each_line_is_there_once(place: Path) -> None:
    code = {"own.py": "a" * 64}
    assert not trust.is_trusted("own.py", "a" * 64)
    trust.trust(code)
    trust.trust(code)
    assert trust.is_trusted("own.py", "a" * 64)
    assert not trust.is_trusted("own.py", "b" * 64)
    assert not trust.is_trusted("other.py", "a" * 64)
    file = trust.trust_file()
    assert file.read_text() == f"{'a' * 64}  own.py\n"
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_a_list_that_others_can_write_to_is_not_believed(place: Path, mode: int) -> None:
    trust.trust({"own.py": "a" * 64})
    trust.trust_file().chmod(mode)
    assert not trust.is_trusted("own.py", "a" * 64)


def test_without_a_place_for_the_list_a_run_goes_on(
    place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TRAINLAUNCH_TRUSTED_CODE", str(place / "own.py" / "trusted"))
    trust.trust({"own.py": "a" * 64})
    assert "not remembered as trusted" in caplog.text


def run_with_copy(place: Path, word: str = "own.py") -> tuple[Path, dict[str, str]]:
    """A run directory with a copy of code that nobody has trusted here."""
    run = place / "runs/x"
    run.mkdir(parents=True)
    code = read_named([word])
    write_copy(code, run)
    return run, code.digests


@pytest.mark.parametrize("word", ["own.py", "package.parts"])
def test_a_copy_is_imported_only_once_it_was_named(place: Path, word: str) -> None:
    make_package(place)
    run, recorded = run_with_copy(place, word)
    with pytest.raises(UserError) as caught:
        code_of_run(recorded, [], run, ["launch", "eval", "x", "--split", "val"])
    command = str(caught.value).splitlines()[-1].strip()
    assert command == f"launch eval --code {run / FOLDER / word} x --split val"
    assert importing._imported == {}, "nothing was imported"
    assert code_of_run(recorded, [command.split()[3]], run, []).find("model", "net")
    assert code_of_run(recorded, [], run, []).find("model", "net")


def test_other_code_than_the_runs_is_refused_with_the_difference(place: Path) -> None:
    run, recorded = run_with_copy(place)
    (place / "own.py").write_text(PARTS.replace("width=4", "width=8"))
    with pytest.raises(UserError, match=r"was trained with other code(.|\n)*\+def net\(num_classes, width=8\)"):
        code_of_run(recorded, ["own.py"], run, [])
    assert not trust.trust_file().exists(), "what is refused is not trusted"
    with pytest.raises(UserError, match="was trained without code of its own: leave it out"):
        code_of_run({}, ["own.py"], run, [])


def test_a_configuration_alone_imports_nothing(place: Path) -> None:
    (place / "own.py").write_text("raise SystemExit('imported')")
    _, recorded = run_with_copy(place)
    (place / "x.yaml").write_text(f"name: x\ncode: {recorded}\n")
    with pytest.raises(UserError, match="which you have not named on a command line"):
        load_with_code(["x.yaml"], [], ["launch", "run", "x.yaml"])
    (place / "y.yaml").write_text(f"name: y\ncode: {recorded}\n")
    with pytest.raises(UserError, match=r"of which no copy is here: name it .* `--code own.py`"):
        load_with_code(["y.yaml"], [], ["launch", "run", "y.yaml"])
