"""Run directories as a stranger may have made them: mutations of a real one, each drawn by a seed."""

from __future__ import annotations

import hashlib
import json
import os
import random
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

SECRET = "canary-of-a-file-outside"

# As text of JSON: what no reader expects in the place of a value.
ODD_JSON = [
    *("null", "true", "-1", "0.5", "1e999", "NaN", "-Infinity", "[]", "{}", '""', "9" * 30, "9" * 5000),
    *('"<script>alert(1)</script>"', '"{{ 7 * 7 }}"', '"../../../outside/secret"', '"/dev/zero"', '"--help"'),
    '"\\u001b]0;owned\\u0007\\u001b[2J"',
    '"\\u202egnp.exe\\u2066"',
    '"\\ud800 half a character"',
    '"zero\\u0000byte"',
    '"line\\nend\\r"',
    json.dumps("x" * 200_000),
    json.dumps([0] * 20_000),
    "[" * 90 + "]" * 90,
    "[" * 20_000 + "]" * 20_000,
    '{"a": 1, "a": 2}',
    '{"step": "x", "value": [], "split": {}}',
    '"9999-12-31T23:59:59+00:00"',
    '"0001-01-01T00:00:00+14:00"',
]
ODD_BYTES = [b"", b"\0" * 5000, b"\xff\xfe\x80", b"{", b"[]\n[]\n", b"x" * 3_000_000, b"\x1b]0;owned\x07\x1b[2J\n" * 5]
ODD_NAMES = [
    *(b"\x1b]0;owned\x07", b"caf\xe9", "\u202egnp".encode(), b"step-99999999999999999999", "step-\u0663".encode()),
    *(b"step-00000001", b"evaluation-\x1b[2J.json", b"evaluation-test.json.json", b"--help", b"new\nline", b"x" * 200),
]
CODE_NAMES = ["wandb.py", "wandb/__init__.py", "sitecustomize.py", "torch.py", "trainlib/__init__.py", "click.py"]
LAUGHS = "a0: &a0 {x: 1, y: 2}\n" + "".join(
    f"a{i}: &a{i} {{{', '.join(f'k{j}: *a{i - 1}' for j in range(10))}}}\n" for i in range(1, 10)
)
ODD_YAML = [
    f"{LAUGHS}train: *a9\nname: evil\n",
    "a: &a [*a]\n",
    "x: !!python/object/apply:os.system ['touch ../../outside/executed']\n",
    "train: {steps: [1], epochs: {a: 1}}\n",
    "train: {epochs: 99999999999999999999999999}\nmodel: []\ndata: text\nloss: 5\n",
    "".join(f"key{i}: {i}\n" for i in range(15_000)),
    "[" * 5000,
    "name: '\u202e\u0007'\n? [1, 2]\n: 3\n",
    "- 1\n- 2\n",
    "optimizer: {name: SGD, lr: .nan, momentum: .inf}\n",
]


class Mutator:
    """Changes a run directory in one to four places.

    outside   a folder beside the runs, with a file `secret`, which nothing may read or change
    """

    def __init__(self, run: Path, outside: Path, seed: int):
        self.run, self.outside = run, outside
        self.choice = random.Random(seed)
        self.done: list[str] = []

    def mutate(self) -> list[str]:
        """Apply the mutations; return what was done, for the message of a test."""
        kinds: list[tuple[Callable[[], None], int]] = [
            (self._odd_value, 8),
            (self._odd_bytes, 3),
            (self._odd_kind, 4),
            (self._odd_name, 2),
            (self._odd_yaml, 2),
            (self._odd_size, 1),
            (self._code, 1),
        ]
        for _ in range(self.choice.randint(1, 4)):
            (kind,) = self.choice.choices([kind for kind, _ in kinds], [weight for _, weight in kinds])
            kind()
        return self.done

    def _files(self, suffixes: tuple[str, ...] = ("",)) -> list[Path]:
        """The regular files of the run with these ends of their names, sorted."""
        found = [path for path in self.run.rglob("*") if not path.is_symlink() and path.is_file()]
        return sorted(path for path in found if path.name.endswith(suffixes))

    def _odd_value(self) -> None:
        """Replace or remove a value somewhere in a file of JSON; a manifest is sealed again, as by somebody who can."""
        path = self.choice.choice(self._files((".json", ".jsonl")) or [self.run / "summary.json"])
        try:
            lines = path.read_text().split("\n") if path.suffix == ".jsonl" else [path.read_text()]
            index = self.choice.randrange(max(1, len(lines) - (path.suffix == ".jsonl")))
            record = json.loads(lines[index])
        except (OSError, ValueError, RecursionError):  # what an earlier mutation left
            return
        odd = self.choice.choice(ODD_JSON)
        where = self._place(record, "@@odd@@")
        self.done.append(f"{path.name} line {index + 1}: {where} = {odd[:40]}")
        text = json.dumps(record).replace('"@@odd@@"', odd)
        if path.name == "manifest.json" and self.choice.random() < 0.8:
            text = sealed(text)
        path.write_text("\n".join([*lines[:index], text, *lines[index + 1 :]]))

    def _place(self, record: Any, mark: str) -> str:
        """Put a mark in the place of some value of a record; return where it is."""
        where = ""
        while True:
            keys = list(record) if isinstance(record, dict) else list(range(len(record)))
            if not keys:
                return where
            key = self.choice.choice(keys)
            inner = record[key]
            where += f".{key}"
            if isinstance(inner, dict | list) and inner and self.choice.random() < 0.7:
                record = inner
                continue
            if isinstance(record, dict) and self.choice.random() < 0.2:
                del record[key]
                return f"{where} removed, not"
            record[key] = mark
            return where

    def _odd_bytes(self) -> None:
        path = self.choice.choice(self._files())
        content = path.read_bytes()
        at = self.choice.randrange(len(content) + 1)
        kind = self.choice.randrange(3)
        odd = self.choice.choice(ODD_BYTES)
        new = [odd, content[:at], content[:at] + odd[: 1 << 16] + content[at:]][kind]
        path.write_bytes(new)
        self.done.append(f"{path.name}: bytes {kind} {odd[:10]!r} at {at}")

    def _odd_kind(self) -> None:
        """Put a link, pipe, device, socket or folder in the place of a file or folder."""
        entries = sorted(path for path in self.run.rglob("*") if not path.is_symlink())
        important = [self.run / name for name in ("lock", "STOP", "config.yaml", "report.html", "jobs.jsonl")]
        path = self.choice.choice([*entries, *important])
        kind = self.choice.choice(["link", "link to folder", "dangling", "loop", "pipe", "socket", "device", "folder"])
        if path.exists():
            path.rename(self.outside / f"moved-{len(self.done)}-{path.name}")
        secret = self.outside / "secret"
        if kind == "socket":
            here = os.getcwd()
            os.chdir(path.parent)  # the name of a socket must be short
            socket.socket(socket.AF_UNIX).bind(path.name[:90])
            os.chdir(here)
        elif kind == "device":
            os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))  # /dev/zero, which has no end
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        else:
            targets = {"link": secret, "link to folder": self.outside, "dangling": self.outside / "new", "loop": path}
            path.symlink_to(targets[kind])
        self.done.append(f"{path.relative_to(self.run)}: a {kind}")

    def _odd_name(self) -> None:
        folders = [self.run, self.run / "logs", self.run / "checkpoints", self.run / "wandb"]
        folder = self.choice.choice([folder for folder in folders if folder.is_dir() and not folder.is_symlink()])
        path = os.path.join(os.fsencode(folder), self.choice.choice(ODD_NAMES))
        if not os.path.lexists(path):
            if self.choice.random() < 0.5:
                os.mkdir(path)
            else:
                Path(os.fsdecode(path)).write_bytes(self.choice.choice(ODD_BYTES))
        self.done.append(f"the name {path[-30:]!r}")

    def _odd_yaml(self) -> None:
        text = self.choice.choice(ODD_YAML)
        path = self.run / "config.yaml"
        if path.is_symlink() or not path.is_file():
            return
        before = path.read_text(errors="replace") if self.choice.random() < 0.3 else ""
        path.write_text(before + text)
        self.done.append(f"config.yaml: {text[:40]!r}")

    def _odd_size(self) -> None:
        path = self.choice.choice(self._files())
        os.truncate(path, self.choice.choice([1 << 31, 1 << 36]))  # of zeros, which take no room
        self.done.append(f"{path.name}: of {path.stat().st_size:,} bytes")

    def _code(self) -> None:
        path = self.run / self.choice.choice(CODE_NAMES)
        if path.parent.is_symlink() or (path.parent.exists() and not path.parent.is_dir()) or os.path.lexists(path):
            return
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"open({str(self.outside / 'executed')!r}, 'w')\n")
        self.done.append(f"code in {path.relative_to(self.run)}")


def sealed(text: str) -> str:
    """A manifest under its own right digest; the text itself where it is no JSON."""
    try:
        manifest = json.loads(text)
        manifest.pop("sha256", None)
        digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
        return json.dumps(manifest | {"sha256": digest})
    except (ValueError, TypeError, AttributeError, RecursionError):
        return text


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Kind and bytes of everything below a folder, through no link."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        is_small = stat.S_ISREG(status.st_mode) and status.st_size < 1 << 24
        found[str(path.relative_to(folder))] = (stat.S_IFMT(status.st_mode), path.read_bytes() if is_small else b"")
    return found
