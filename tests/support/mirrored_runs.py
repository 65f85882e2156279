"""Run directories with checkpoints that need no training, and mirrors that fail when they are told to."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

from trainlib.runs.files.json_records import append_line
from trainlib.runs.mirror.copying import Copier
from trainlib.runs.mirror.restoring import restore
from trainlib.runs.mirror.store import MirrorError, Store
from trainlib.runs.records.checkpoints import name_of


def write_checkpoint(run: Path, step: int, *, best: int | None = None, content: str = "") -> Path:
    """A checkpoint whose manifest is right, with a row for each step before it; the manifest is written last."""
    folder = run / "checkpoints" / name_of(step)
    folder.mkdir(parents=True)
    rows = "".join(f'{{"step": {number}}}\n' for number in range(1, step + 1))
    (run / "metrics.jsonl").write_text(rows)
    files = {}
    for name in ("model.safetensors", "trainer.pt"):
        data = f"{name} {step} {content}".encode() * 100
        (folder / name).write_bytes(data)
        files[name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps({"step": step, "best_step": best, "files": files}))
    return folder


def make_run(path: Path, *steps: int, attempts: int = 1) -> Path:
    path.mkdir(parents=True)
    (path / "config.yaml").write_text("name: run\n")
    for number in range(1, attempts + 1):
        add_attempt(path, number)
    for step in steps:
        write_checkpoint(path, step)
    return path


def add_attempt(run: Path, number: int, host: str = "here") -> None:
    append_line(run / "attempts.jsonl", {"event": "start", "attempt": number, "host": host, "time": f"t{number}"})


def tree(folder: Path) -> dict[str, bytes]:
    """The bytes of every file below a folder, but locks, by its name there."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != "lock"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def copy(run: Path, store: Store, from_step: int = 0) -> Copier:
    """Bring a mirror up to date, as one that follows an attempt does."""
    copier = Copier(run, store)
    copier.begin(from_step)
    copier.copy()
    return copier


def brought_back(store: Store, tmp_path: Path) -> tuple[Path, list[str]]:
    """The run as it comes back into an empty directory, and what is warned of."""
    said: list[str] = []
    there = tmp_path / "elsewhere/run"
    shutil.rmtree(there, ignore_errors=True)
    restore(there, store, lambda level, text: said.append(text) if level == "warning" else None)
    return there, said


class FailingStore(Store):
    """A mirror that answers so many changes, and then no more; -1: all. `before` is called before each change."""

    def __init__(self, address: str, changes: int = -1, before: Callable[[str], None] = lambda name: None):
        super().__init__(address, "run")
        self.left, self.done, self._before = changes, list[str](), before

    def write(self, name: str, content: bytes) -> None:
        self._change(f"write {name}")
        super().write(name, content)

    def put(self, name: str, source: Path) -> None:
        self._change(f"write {name}")
        super().put(name, source)

    def remove(self, name: str) -> None:
        self._change(f"remove {name}")
        super().remove(name)

    def _change(self, what: str) -> None:
        if self.left == 0:
            raise MirrorError("it is gone")
        self._before(what)
        self.left -= 1
        self.done.append(what)
