"""The files of one run at its mirror, by any of fsspec's file systems: S3, Google Cloud Storage, a folder, others."""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from trainlib.errors import UserError
from trainlib.runs.files.durable import DurableFile, remove_temporary, sync_directory, write_atomically

IN_EXTRA = {"s3fs"}  # packages that `trainlaunch[mirror]` brings
_TRIES = 10
_CHUNK = 1 << 23  # bytes that are copied at a time
_BLOCK = 1 << 25  # bytes that are fetched at a time


class MirrorError(Exception):
    """The mirror did not answer, or refused what was asked; the message says why, in one line."""


def require_usable(address: str, run: Path) -> None:
    """Raise UserError where nothing could ever be copied to an address.

    run   the run directory, which must not be its own mirror

    Whether it can be reached is not asked.
    """
    from fsspec.registry import known_implementations

    protocol = protocol_of(address)
    if protocol == "file":
        if folder_of(address).is_file():
            raise UserError(f"mirror: got {address}, which is a file, must be a folder or an address")
        folder, own = (folder_of(address) / run.name).resolve(), run.resolve()
        if folder == own or own in folder.parents or folder in own.parents:
            raise UserError(
                f"mirror: got {address}, which holds the run directory itself: name another disk or machine"
            )
        return
    known = known_implementations.get(protocol)
    if known is None:
        raise UserError(
            f"mirror: got {address}, and fsspec knows no {protocol}://: write s3://BUCKET/PATH, gs://BUCKET/PATH, "
            "another of fsspec's addresses, or a folder"
        )
    package = known["class"].partition(".")[0]
    if importlib.util.find_spec(package) is None:
        what = "'trainlaunch[mirror]'" if package in IN_EXTRA else package
        raise UserError(f"mirror: {address} needs the package {package}: pip install {what}")


def protocol_of(address: str) -> str:
    """Return `s3` of `s3://bucket/path`, and `file` of a folder."""
    protocol, separator, _ = address.partition("://")
    return protocol if separator and protocol != "local" else "file"


def folder_of(address: str) -> Path:
    """Return the folder that an address without a protocol, or `file://`, names."""
    return Path(os.path.expanduser(address.partition("://")[2] if "://" in address else address))


class Store:
    """The files of one run at a mirror, by their names in the run directory, such as `checkpoints/step-00000004/...`.

    A file is there whole or not at all. Every method raises MirrorError where the mirror does not answer.
    """

    def __init__(self, address: str, run_name: str):
        self.name = f"{address.rstrip('/')}/{run_name}"
        self._is_folder = protocol_of(address) == "file"
        with self._told():
            import fsspec

            target = str((folder_of(address) / run_name).absolute()) if self._is_folder else self.name
            self._fs, self._root = fsspec.core.url_to_fs(target, use_listings_cache=False, skip_instance_cache=True)

    def sizes(self) -> dict[str, int]:
        """Return the size in bytes of each file."""
        with self._told():
            listed = self._listed()
            prefix = f"{self._fs._strip_protocol(self._root)}/"
        found = {path.removeprefix(prefix): int(facts["size"] or 0) for path, facts in listed.items()}
        return {name: size for name, size in found.items() if not name.rpartition("/")[2].startswith(".")}

    def _listed(self) -> dict[str, dict[str, Any]]:
        for _ in range(_TRIES):
            try:
                return self._fs.find(self._root, detail=True)  # type: ignore[no-any-return]
            except FileNotFoundError:  # also where a file vanishes while a folder is listed, which is not empty then
                if not self._fs.exists(self._root):
                    return {}
        raise OSError("its files change faster than they can be listed")

    def read(self, name: str) -> bytes | None:
        """Return a file's bytes; None where there is none."""
        with self._told():
            try:
                content: bytes = self._fs.cat_file(self._path(name))
            except FileNotFoundError:
                return None
            return content

    def write(self, name: str, content: bytes) -> None:
        """Replace a file."""
        with self._told():
            if self._is_folder:
                Path(self._path(name)).parent.mkdir(parents=True, exist_ok=True)
                write_atomically(Path(self._path(name)), content)
            else:
                self._fs.pipe_file(self._path(name), content)

    def put(self, name: str, source: Path) -> None:
        """Replace a file by a copy of a file that changes no more. FileNotFoundError where there is no such file."""
        source.stat()
        with self._told():
            if self._is_folder:
                target = Path(self._path(name))
                target.parent.mkdir(parents=True, exist_ok=True)
                temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
                try:
                    with source.open("rb") as file, DurableFile(temporary) as copy:
                        shutil.copyfileobj(file, copy, _CHUNK)
                    os.replace(temporary, target)
                finally:
                    temporary.unlink(missing_ok=True)
                sync_directory(target.parent)
            else:
                self._fs.put_file(str(source), self._path(name))

    def get(self, name: str, target: Path) -> dict[str, int | str]:
        """Copy a file to a new one here, flushed to disk; return its size and SHA-256."""
        with self._told():
            remote = self._fs.open(self._path(name), "rb", block_size=_BLOCK)
            with remote, DurableFile(target) as file:
                shutil.copyfileobj(remote, file, _CHUNK)
            return file.facts

    def remove(self, name: str) -> None:
        """Remove a file, if there is one; in a folder, also folders that are empty then."""
        with self._told(), suppress(FileNotFoundError):
            self._fs.rm_file(self._path(name))
            if self._is_folder and "/" in name:
                with suppress(OSError):
                    Path(self._path(name)).parent.rmdir()

    def remove_partial(self) -> None:
        """Remove what processes that were killed left half written in a folder; nobody else may write there."""
        with self._told():
            for folder, _, _ in os.walk(self._root) if self._is_folder else ():
                remove_temporary(Path(folder))

    def move_aside(self) -> None:
        """Rename the run, so that another one can have its place: `NAME.old-1`, or the first number that is free."""
        names = self.sizes()
        if not names:
            return
        number = 1
        with self._told():
            while self._fs.find(f"{self._root}.old-{number}"):
                number += 1
            # What makes the files a run goes first: a move that is cut off leaves none that looks whole.
            for name in sorted(names, key=lambda one: (not one.endswith("manifest.json"), one)):
                target = f"{self._root}.old-{number}/{name}"
                self._fs.makedirs(target.rpartition("/")[0], exist_ok=True) if self._is_folder else None
                self._fs.mv(self._path(name), target)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Raise MirrorError, with the reason, for whatever a file system raises."""
        try:
            yield
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise MirrorError(reason or type(error).__name__) from error
