"""The bytes of code that `--code` names, a file or a package, with their digests, and their copy in a run directory."""

from __future__ import annotations

import difflib
import hashlib
import importlib.machinery
import os
import secrets
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from trainlib.config.schema.values import is_code_name
from trainlib.errors import UserError
from trainlib.platform.regular_files import read_regular
from trainlib.runs.files.durable import DurableFile, sync_directory

FOLDER = "own_code"  # in the run directory
MAX_BYTES = 64 << 20  # of one piece of code, with the data files of its package
MAX_FILES = 5000
SHOWN_LINES = 40  # of a difference
_LEFT_OUT = (".pyc", ".pyo")


@dataclass(frozen=True)
class CodeSource:
    """One piece of code: a file, or the whole package of a module.

    name    `parts.py`, or `package.module`, which is imported
    files   all bytes, by path below `root`: `parts.py`, or `package/module.py` and whatever else is in the package
    root    the folder that holds the file or the package
    """

    name: str
    files: Mapping[str, bytes]
    root: Path

    @property
    def is_file(self) -> bool:
        """True for a single file, False for the module of a package."""
        return self.name.endswith(".py")

    @property
    def place(self) -> Path:
        """Where the file lies, or the package."""
        return self.root / (self.name if self.is_file else self.name.partition(".")[0])

    @cached_property
    def digest(self) -> str:
        """SHA-256, in hex: of a file's bytes; of a package over the module's name, and names and bytes of all files."""
        if self.is_file:
            return hashlib.sha256(self.files[self.name]).hexdigest()
        digest = hashlib.sha256(f"{self.name}\0".encode())
        for path, content in sorted(self.files.items()):
            digest.update(f"{path}\0{len(content)}\0".encode(errors="surrogateescape") + content)
        return digest.hexdigest()


@dataclass(frozen=True)
class OwnCode:
    """All code of one's own that a run uses; none for most runs."""

    sources: tuple[CodeSource, ...] = ()

    @property
    def digests(self) -> dict[str, str]:
        """The SHA-256 of each piece by its name: the section `code` of config.yaml."""
        return {source.name: source.digest for source in self.sources}

    @property
    def files(self) -> dict[str, bytes]:
        """All files by their path in the copy."""
        return {path: content for source in self.sources for path, content in source.files.items()}


NO_CODE = OwnCode()


def read_named(words: Sequence[str]) -> OwnCode:
    """Read the code that the values of `--code` name, each FILE.py or MODULE. Raises UserError for what is not there.

    A module is looked for in PYTHONPATH, in the current folder, and where Python looks; `FOLDER/MODULE` in that folder.
    """
    sources: dict[str, CodeSource] = {}
    for word in dict.fromkeys(words):
        source = _file(word) if word.endswith(".py") else _module(word)
        if source.name in sources:
            raise UserError(f"--code {word}: another file of the name {source.name} is given, too: rename one of them")
        for path in source.files:
            for other in sources.values():
                if other.files.get(path, source.files[path]) != source.files[path]:
                    raise UserError(f"--code {word}: {path} is another file than that of {other.name}: rename one")
        sources[source.name] = source
    return OwnCode(tuple(sources.values()))


def _file(word: str) -> CodeSource:
    path = Path(os.path.expanduser(word))
    name = path.name
    if not is_code_name(name):
        raise UserError(f"--code {word}: {name!r} cannot be the name of a file of code: rename it, like parts.py")
    try:
        content = read_regular(path.resolve(), MAX_BYTES)
    except OSError as error:
        raise UserError(
            f"--code {word}: cannot be read ({error.strerror or error}); give FILE.py, or a module, package.module"
        ) from error
    return CodeSource(name, {name: content}, path.absolute().parent)


def _module(word: str) -> CodeSource:
    folder, _, name = word.rpartition("/")
    if not is_code_name(name):
        raise UserError(f"--code {word}: must be FILE.py, or a module, package.module, without .py")
    if folder:
        places = [os.path.expanduser(folder)]
    else:
        given = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
        places = [*given, os.getcwd(), *sys.path]
    top = name.partition(".")[0]
    spec = importlib.machinery.PathFinder.find_spec(top, places)
    if spec is None:
        raise UserError(
            f"--code {word}: there is no {top}.py and no package {top} in {folder or os.getcwd()}; give FILE.py, or a "
            "module, package.module, that can be imported from here"
        )
    if spec.submodule_search_locations:
        package = Path(next(iter(spec.submodule_search_locations))).absolute()
        source = CodeSource(name, _package_files(package, word), package.parent)
    elif spec.origin is not None and spec.origin.endswith(".py"):
        root = Path(spec.origin).absolute().parent
        source = CodeSource(name, {f"{top}.py": _read(root / f"{top}.py", word)}, root)
    else:
        raise UserError(f"--code {word}: {top} is {spec.origin}, must be a module or package of Python files")
    inner = name.replace(".", "/")
    if not {f"{inner}.py", f"{inner}/__init__.py"} & source.files.keys():
        raise UserError(f"--code {word}: there is no {inner}.py in {source.root}; give FILE.py, or a module")
    return source


def _package_files(package: Path, word: str) -> dict[str, bytes]:
    """Return all files of a package but compiled ones and hidden ones, by their path below its parent."""
    files: dict[str, bytes] = {}
    size = 0
    for path in _walk(package, word):
        content = _read(path, word)
        files[path.relative_to(package.parent).as_posix()] = content
        size += len(content)
        if size > MAX_BYTES or len(files) > MAX_FILES:
            raise UserError(
                f"--code {word}: {package} has more than {MAX_BYTES >> 20} MB or {MAX_FILES} files, and all of it is "
                "copied into the run: move what is no code out of it"
            )
    return files


def _walk(folder: Path, word: str) -> Iterator[Path]:
    for entry in sorted(os.scandir(folder), key=lambda one: one.name):
        if entry.name.startswith(".") or entry.name == "__pycache__" or entry.name.endswith(_LEFT_OUT):
            continue
        if entry.is_symlink() and entry.is_dir():
            raise UserError(f"--code {word}: {entry.path} is a link to a folder, must be a folder: copy it there")
        if entry.is_dir():
            yield from _walk(Path(entry.path), word)
        else:
            yield Path(entry.path)


def _read(path: Path, word: str) -> bytes:
    try:
        return read_regular(path.resolve(), MAX_BYTES)
    except OSError as error:
        raise UserError(f"--code {word}: {path} cannot be read ({error.strerror or error})") from error


def read_copy(folder: Path, recorded: Mapping[str, str]) -> OwnCode:
    """Read a run's copy of its code. No part of it may be a link. UserError unless its bytes are those recorded.

    recorded   the section `code` of the configuration
    """
    sources = []
    for name, digest in recorded.items():
        top = name if name.endswith(".py") else name.partition(".")[0]
        try:
            files = _copied_files(folder, top)
        except OSError as error:
            raise UserError(
                f"{folder / top}: this run's copy of its code cannot be read ({error.strerror or error}): name the "
                f"code that it was started with on the command line, `--code {name}`"
            ) from error
        source = CodeSource(name, files, folder)
        if (source.is_file and name not in files) or source.digest != digest:
            raise UserError(
                f"{folder / top}: has been changed: it is not what config.yaml says, SHA-256 {digest[:12]}. Nothing "
                f"was imported. Bring the file back, or name the code that the run was started "
                f"with, `--code {name}`, which mends the copy"
            )
        sources.append(source)
    return OwnCode(tuple(sources))


def _copied_files(folder: Path, top: str) -> dict[str, bytes]:
    path = folder / top
    if path.is_dir() and not (path.is_symlink() or folder.is_symlink()):
        names = [inner.relative_to(folder).as_posix() for inner in _walk(path, str(path))]
    else:
        names = [top if top.endswith(".py") else f"{top}.py"]
    return {name: read_regular(folder / name, MAX_BYTES, within=folder) for name in names}


def write_copy(code: OwnCode, directory: Path) -> None:
    """Write the code into a run directory, whole or not at all; leave a copy that is the same as it is."""
    target = directory / FOLDER
    if not code.sources:
        return
    with suppress(UserError):
        read_copy(target, code.digests)
        return
    new = directory / f".{FOLDER}.{secrets.token_hex(8)}"
    try:
        for path, content in code.files.items():
            (new / path).parent.mkdir(parents=True, exist_ok=True)
            with DurableFile(new / path) as file:
                file.write(content)
        for folder, _, _ in os.walk(new):
            sync_directory(Path(folder))
        if target.is_symlink():
            target.unlink()
        elif target.exists():
            shutil.rmtree(target)  # of other bytes than config.yaml says
        new.rename(target)
        sync_directory(directory)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def difference(directory: Path, code: OwnCode) -> str:
    """Return how code differs from the copy in a run directory, as the lines of a unified diff."""
    folder, lines = directory / FOLDER, list[str]()
    now = code.files
    then: dict[str, bytes] = {}
    with suppress(OSError, UserError):
        for entry in sorted(os.listdir(folder)):
            then |= _copied_files(folder, entry)
    for path in sorted({*then, *now}):
        before, after = (files.get(path, b"").decode("utf-8", "replace").splitlines() for files in (then, now))
        lines += difflib.unified_diff(before, after, f"{path} of the run", f"{path} now", lineterm="", n=1)
    shown = lines[:SHOWN_LINES]
    more = len(lines) - len(shown)
    return "\n".join([*shown, *([f"... and {more} more lines"] if more else [])])
