"""Bringing a run back from its mirror, where its directory is lost: checked by the manifests, whole or not at all."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path

from trainlib.errors import RunDirectoryError
from trainlib.runs.attempt.owner import read_owner, was_renewed_lately
from trainlib.runs.attempt.record import ATTEMPTS_FILE
from trainlib.runs.files import locks
from trainlib.runs.files.durable import DurableFile, sync_directory, write_atomically
from trainlib.runs.files.json_records import parse_record
from trainlib.runs.mirror.copying import own_starts, require_same_history
from trainlib.runs.mirror.layout import MANIFEST, checkpoint_files, files_of, is_record, place_of, starts
from trainlib.runs.mirror.lease import living_holder
from trainlib.runs.mirror.store import MirrorError, Store
from trainlib.runs.records.checkpoints import name_of, steps_in

LOCK_PATIENCE = 60.0  # seconds: another start may be bringing the run back
Say = Callable[[str, str], None]  # a level of logging, and a sentence


def restore(run: Path, store: Store, say: Say, *, fresh: bool = False) -> None:
    """Bring a run back from its mirror if its directory holds no checkpoint; else only see that the two fit.

    say     told what is being done, and which copies are damaged
    fresh   nothing is brought back, and what is at the mirror is moved aside there
    Raises RunDirectoryError where another machine trains the run, or the two went different ways, and MirrorError.
    """
    names = store.sizes()
    if not names:
        return
    if (
        holder := living_holder(store, None, lambda: say("info", "waiting to see if another machine trains"))
    ) is not None:
        raise RunDirectoryError(
            f"mirror: process {holder.pid} on {holder.host} trains this run into {store.name}; wait for it, stop it "
            f"there with `launch stop {run.name}`, or choose another name with `--name`"
        )
    if fresh:
        store.move_aside()
        return
    try:
        lock = locks.acquire(run / "lock", seconds=LOCK_PATIENCE, on_wait=lambda: _require_idle(run))
    except BlockingIOError:
        if _is_in_training(run) or steps_in(run / "checkpoints"):
            return  # this start will be refused, with the name of the process that trains here
        raise RunDirectoryError(
            f"{run}: another process holds its lock, and may be bringing it back from {store.name}: try again once it "
            f"has ended, or choose another name with `--name`"
        ) from None
    with lock:  # of two starts that bring the run back, the later one waits
        if steps_in(run / "checkpoints"):
            require_same_history(run, store)
        else:
            _bring_back(run, store, names, say)


def _require_idle(run: Path) -> None:
    if _is_in_training(run):
        raise BlockingIOError


def _is_in_training(run: Path) -> bool:
    owner = read_owner(run)
    return owner is not None and (owner.lives_here if owner.is_on_this_machine else was_renewed_lately(run))


def _bring_back(run: Path, store: Store, names: dict[str, int], say: Say) -> None:
    there, here = starts(store.read(ATTEMPTS_FILE) or b""), own_starts(run)
    if there[: len(here)] != here:
        require_same_history(run, store)
    folder = run / "checkpoints"
    folder.mkdir(exist_ok=True)
    checkpoints = {step: files for step, files in checkpoint_files(names).items() if MANIFEST in files}
    if checkpoints:
        say("info", f"bringing the run back from {store.name}: {', '.join(map(name_of, reversed(checkpoints)))}")
    fetched = []
    for step in reversed(checkpoints):
        temporary = folder / f".tmp-{name_of(step)}"  # which the next start removes, where this one is cut off
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            _fetch(store, step, temporary)
        except (ValueError, MirrorError) as error:
            shutil.rmtree(temporary)
            if isinstance(error.__cause__, OSError) and error.__cause__.errno in (errno.ENOSPC, errno.EDQUOT):
                raise RunDirectoryError(f"{run}: no room for {name_of(step)} of {store.name}; make some") from error
            store.read(place_of(step, MANIFEST))  # MirrorError where the mirror is gone, and not a file
            say("warning", f"{name_of(step)} at {store.name} is damaged ({error}); the next older one is used")
            continue
        fetched.append((temporary, folder / name_of(step)))
    for name in filter(is_record, names):
        content = store.read(name)
        if content is not None and not (name == ATTEMPTS_FILE and len(here) > len(there)):
            (run / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(run / name, content)
    for temporary, target in reversed(fetched):  # the newest last: cut off here, an older one goes on, to the same bits
        temporary.rename(target)
    sync_directory(folder)
    sync_directory(run)


def _fetch(store: Store, step: int, folder: Path) -> None:
    """Copy a checkpoint into a folder. Raises ValueError where it is not what its manifest says."""
    content = store.read(place_of(step, MANIFEST)) or b""
    manifest = parse_record(content)
    for name, facts in files_of(manifest).items():
        found = store.get(place_of(step, name), folder / name)
        if found != facts:
            what = "size" if found["size"] != facts["size"] else "SHA-256"
            raise ValueError(f"the {what} of {name} is not the manifest's")
    with DurableFile(folder / MANIFEST) as file:
        file.write(content)
    sync_directory(folder)
