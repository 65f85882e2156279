"""Copying of a run to its mirror: new checkpoints first, whole or not at all, then rows and records."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from trainlib.errors import RunDirectoryError
from trainlib.platform.regular_files import open_regular, read_regular
from trainlib.runs.attempt.record import ATTEMPTS_FILE
from trainlib.runs.files.json_records import RECORD_BYTES, Record, parse_record
from trainlib.runs.mirror.layout import (
    MANIFEST,
    checkpoint_files,
    files_of,
    may_be_removed,
    place_of,
    records_in,
    starts,
)
from trainlib.runs.mirror.store import Store
from trainlib.runs.records.checkpoints import name_of, steps_in


class Copier:
    """Brings a mirror up to date with a run directory.

    may_go_on   asked before each change there: False once the training that this is for has ended, or its directory or
                the mirror is not its own any more; nothing is copied or removed then

    A checkpoint's manifest is copied last, and removed first, so that what has one is whole. In the run directory
    nothing is made: it may be vanishing.
    """

    def __init__(self, run: Path, store: Store, may_go_on: Callable[[], bool] = lambda: True):
        self._run, self._store, self._may_go_on = run, store, may_go_on
        self._there: dict[str, int] = {}
        self._manifests: dict[int, bytes] = {}  # of the checkpoints that are whole there
        self._sent: dict[str, tuple[int, int, int]] = {}

    def begin(self, from_step: int) -> None:
        """Learn what is at the mirror, and remove the checkpoints that the run does not go on from.

        from_step   of the attempt that has begun
        Raises RunDirectoryError where the mirror has what this run directory does not go on from, and MirrorError.
        """
        self.learn()
        self._store.remove_partial()
        if from_step == 0 and self._manifests:
            raise RunDirectoryError(
                f"mirror: {self._store.name} holds checkpoints, and this start has begun without one. "
                f"{ways_on(self._run, self._store)}"
            )
        for step in checkpoint_files(self._there):
            if step > from_step:
                self._remove(step)

    def learn(self) -> None:
        """Learn what is at the mirror by now: after it was away, that may be less than was copied.

        Raises RunDirectoryError where another machine has gone on with the run meanwhile, and MirrorError.
        """
        require_same_history(self._run, self._store)
        self._there, self._manifests = self._store.sizes(), {}
        self._sent = {name: state for name, state in self._sent.items() if name in self._there}
        for step, files in checkpoint_files(self._there).items():
            content = self._store.read(place_of(step, MANIFEST)) if MANIFEST in files else None
            if content is not None and self._is_whole(step, content):
                self._manifests[step] = content

    def copy(self) -> None:
        """Bring everything up to date, the newest checkpoint and the best one first. MirrorError if nothing answers."""
        tried: set[int] = set()  # one that is pruned meanwhile is not tried for ever
        while (step := self._newest_missing(tried)) is not None and self._may_go_on():
            self._copy_records()
            for each in (self._best_of(step), step):  # where only the second came back, the best weights would be lost
                if each is not None and each not in tried and self._is_missing(each):
                    tried.add(each)
                    self._copy_checkpoint(each)
        self._copy_records()
        self._prune()

    def has_new_checkpoint(self) -> bool:
        """Return True if there is a checkpoint here that is not yet there."""
        return self._newest_missing() is not None

    def missing(self) -> list[str]:
        """Return the names of what is here and not yet there: checkpoints and records."""
        steps = [path.name for step, path in steps_in(self._checkpoints).items() if self._is_missing(step)]
        return steps + [name for name in records_in(self._run) if self._sent.get(name) != _state(self._run / name)]

    @property
    def _checkpoints(self) -> Path:
        return self._run / "checkpoints"

    def _newest_missing(self, tried: Collection[int] = ()) -> int | None:
        steps = reversed(steps_in(self._checkpoints))
        return next((step for step in steps if step not in tried and self._is_missing(step)), None)

    def _best_of(self, step: int) -> int | None:
        """Return the step of the best checkpoint so far, as a checkpoint's manifest names it."""
        best = parse_record(self._manifest(steps_in(self._checkpoints).get(step)) or b"{}").get("best_step")
        return best if isinstance(best, int) else None

    def _is_missing(self, step: int) -> bool:
        content = self._manifest(steps_in(self._checkpoints).get(step))
        return content is not None and self._manifests.get(step) != content

    def _is_whole(self, step: int, manifest: bytes) -> bool:
        """Return True if the mirror has every file of a checkpoint, in the size that its manifest says."""
        with suppress(ValueError):
            files = files_of(parse_record(manifest))
            return all(self._there.get(place_of(step, name)) == facts["size"] for name, facts in files.items())
        return False

    def _manifest(self, checkpoint: Path | None) -> bytes | None:
        with suppress(OSError, ValueError):
            content = read_regular(checkpoint / MANIFEST, RECORD_BYTES) if checkpoint is not None else None
            return content if content is not None and files_of(parse_record(content)) else None
        return None

    def _copy_records(self) -> None:
        """Copy the records that have changed, whole lines only, and remove results that are here no more."""
        here = records_in(self._run)
        for name in here:
            before = _state(self._run / name)
            if before is None or self._sent.get(name) == before or not self._may_go_on():
                continue
            with suppress(OSError), os.fdopen(open_regular(self._run / name, within=self._run), "rb") as file:
                content = file.read()
                whole = content[: content.rfind(b"\n") + 1] if name.endswith(".jsonl") else content
                self._store.write(name, whole)
                self._there[name] = len(whole)
                self._sent[name] = before
        for name in [name for name in self._there if may_be_removed(name) and name not in here]:
            if self._may_go_on() and not (self._run / name).exists():
                self._store.remove(name)
                del self._there[name]

    def _copy_checkpoint(self, step: int) -> None:
        """Copy one checkpoint; give up, without harm, where the run prunes it before its files are open."""
        with suppress(OSError, ValueError), _opened(self._checkpoints / name_of(step)) as (content, sources):
            files = files_of(parse_record(content))
            known = files_of(parse_record(self._manifests[step])) if step in self._manifests else {}
            changed = [name for name, facts in files.items() if known.get(name) != facts]
            if changed and self._there.get(place_of(step, MANIFEST)) is not None:
                self._forget(step, MANIFEST)
            for name in changed:
                if not self._may_go_on():
                    return
                self._store.put(place_of(step, name), sources[name])
                self._there[place_of(step, name)] = int(files[name]["size"])
            if self._may_go_on():
                self._store.write(place_of(step, MANIFEST), content)
                self._there[place_of(step, MANIFEST)] = len(content)
                self._manifests[step] = content
                for name in checkpoint_files(self._there)[step] - files.keys() - {MANIFEST}:
                    self._forget(step, name)

    def _prune(self) -> None:
        """Remove there the checkpoints that are here no more, once all that are here are whole there."""
        steps = steps_in(self._checkpoints)
        if not steps or any(map(self._is_missing, steps)) or max(steps) not in self._manifests:
            return
        best = parse_record(self._manifests[max(steps)]).get("best_step")
        for step in checkpoint_files(self._there):
            if step < max(steps) and step not in steps and step != best and self._may_go_on():
                self._remove(step)

    def _remove(self, step: int) -> None:
        for name in sorted(checkpoint_files(self._there)[step], key=lambda name: name != MANIFEST):
            self._forget(step, name)

    def _forget(self, step: int, name: str) -> None:
        self._store.remove(place_of(step, name))
        self._there.pop(place_of(step, name), None)
        if name == MANIFEST:
            self._manifests.pop(step, None)


@contextmanager
def _opened(checkpoint: Path) -> Iterator[tuple[bytes, dict[str, Path]]]:
    """Context manager: hold the files of a checkpoint open, so that they can be read though the run prunes it.

    Yields its manifest, and a path for each file that it lists. Raises OSError where one is gone already.
    """
    content = read_regular(checkpoint / MANIFEST, RECORD_BYTES)  # first: the files that it lists are older
    with ExitStack() as stack:
        sources = {}
        for name in files_of(parse_record(content)):
            descriptor = open_regular(checkpoint / name)
            stack.callback(os.close, descriptor)
            by_number = Path(f"/proc/self/fd/{descriptor}")
            sources[name] = by_number if by_number.exists() else checkpoint / name
        yield content, sources


def require_same_history(run: Path, store: Store) -> None:
    """Raise RunDirectoryError where the mirror knows of an attempt that this run directory does not."""
    there = starts(store.read(ATTEMPTS_FILE) or b"")
    if there != own_starts(run)[: len(there)]:
        last = there[-1]
        raise RunDirectoryError(
            f"mirror: {store.name} holds attempts at this run that {run} knows nothing of, the last of them on "
            f"{last.get('host')} at {last.get('time')}. {ways_on(run, store)}"
        )


def own_starts(run: Path) -> list[Record]:
    """Return the starts of a run directory's own attempts."""
    with suppress(OSError):
        return starts((run / ATTEMPTS_FILE).read_bytes())
    return []


def ways_on(run: Path, store: Store) -> str:
    """Return what a person can do where a run directory and its mirror went different ways."""
    return (
        f"To go on from the mirror, move {run} away; to begin again, use `--fresh` (what is there is kept aside); or "
        "choose another name with `--name`, another `mirror`, or `mirror=null`"
    )


def _state(path: Path) -> tuple[int, int, int] | None:
    """Return what changes when a file does; None where there is none."""
    with suppress(OSError):
        found = path.stat()
        return found.st_ino, found.st_size, found.st_mtime_ns
    return None
