"""Checkpoints: written whole or not at all, verified when loaded, old ones removed only once the new one is safe.

A checkpoint is a directory `step-00000123` with `model.safetensors` (the module's state_dict), `trainer.pt` (the
optimizer's, and everything else that the next step depends on) and `manifest.json` (size and SHA-256 of the other two,
and what made them). It is written under a temporary name, every file flushed to disk, the manifest last, and then
renamed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from trainlib.errors import CheckpointError
from trainlib.models.weights.files import for_safetensors
from trainlib.platform.accelerators import host_copy
from trainlib.platform.regular_files import open_regular, read_regular
from trainlib.runs.files.durable import DurableFile, sync_directory, write_atomically
from trainlib.runs.files.json_records import RECORD_BYTES, parse_record
from trainlib.runs.records.checkpoints import PREFIX, name_of, steps_in
from trainlib.runs.records.shapes import WHOLE_MANIFEST

logger = logging.getLogger("trainlib.training.checkpoints")

FORMAT = 1
MODEL = "model.safetensors"
TRAINER = "trainer.pt"
MANIFEST = "manifest.json"
DAMAGED = ".damaged"
SUPERSEDED = ".superseded"


@dataclass(frozen=True)
class Contents:
    """What a checkpoint holds, before it is written.

    step            optimizer steps done
    model_state     the module's state_dict
    trainer_state   all else that the next step depends on: optimizer, schedule, progress
    facts           what else the manifest tells: world size, versions, config hash, best step, classes, preprocessing
    """

    step: int
    model_state: Mapping[str, Tensor]
    trainer_state: Mapping[str, Any]
    facts: Mapping[str, Any]

    def copied_to_host(self) -> Contents:
        """Return the same with tensors of its own, in host memory, which training does not change."""
        return replace(
            self, model_state=host_copy(dict(self.model_state)), trainer_state=host_copy(dict(self.trainer_state))
        )

    def with_facts(self, facts: Mapping[str, Any]) -> Contents:
        """Return the same with more facts; its own win."""
        return replace(self, facts={**facts, **self.facts})


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: its files have the sizes and hashes that its manifest gives."""

    path: Path
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps done when the checkpoint was taken."""
        return int(self.manifest["step"])

    @property
    def has_trainer_state(self) -> bool:
        """Return False for a checkpoint of which only the weights were kept: no training goes on from it."""
        return TRAINER in self.manifest["files"]

    @property
    def is_snapshot(self) -> bool:
        """Return True for one in memory, of which there is no checkpoint in the run directory: see `snapshots`."""
        return "attempt" in self.manifest

    def model_state(self) -> dict[str, Tensor]:
        """Return the module's state_dict, on the CPU. Raises CheckpointError when the file holds none."""
        try:
            return safetensors.torch.load_file(self.path / MODEL)
        except Exception as error:  # a forged file, whose hash is right, can raise anything
            raise self._unreadable(MODEL, error) from error

    def trainer_state(self) -> dict[str, Any]:
        """Optimizer, schedule and progress; tensors on the CPU. Holds no code: read with weights_only=True.

        Raises CheckpointError when the file holds anything else, and none of its code runs; or where it was removed.
        """
        if not self.has_trainer_state:
            raise CheckpointError(
                f"{self.path}: only the weights were kept (checkpoint.after, launch prune --weights-only), so that no "
                f"training goes on from it; model.weights=run:{self.path.parent.parent.name} begins a new run with them"
            )
        try:
            state: dict[str, Any] = torch.load(self.path / TRAINER, map_location="cpu", weights_only=True)
        except Exception as error:
            raise self._unreadable(TRAINER, error) from error
        if not isinstance(state, dict):
            raise self._unreadable(TRAINER, TypeError(f"it holds a {type(state).__name__}"))
        return state

    def _unreadable(self, name: str, error: Exception) -> CheckpointError:
        reason = (str(error) or type(error).__name__).split("\n")[0][:120]
        return CheckpointError(
            f"{self.path}: {name} has the SHA-256 of the manifest, and still is no such file as this software writes "
            f"({reason}); none of its code was run. Remove the directory to go on from the checkpoint before it"
        )


def save(directory: Path, contents: Contents, before_rename: Callable[[], None] = lambda: None) -> Checkpoint:
    """Write `directory/step-<step>` and return it; an equal step that is already there is kept if it is whole.

    before_rename   raises where the directory is another process's by now, so that nothing may appear in it
    Raises OSError when it could not be written; what was there before is then untouched.
    """
    target = directory / name_of(contents.step)
    if target.exists():
        try:
            return verify(target)
        except CheckpointError as damage:
            set_aside(target, DAMAGED, str(damage))
    temporary = directory / f".tmp-{target.name}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        _write_files(temporary, contents)
        before_rename()
        os.rename(temporary, target)
        sync_directory(directory)
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:  # torch and safetensors wrap write errors
        shutil.rmtree(temporary, ignore_errors=True)
        raise error if isinstance(error, OSError) else OSError(str(error)) from error
    return Checkpoint(target, json.loads((target / MANIFEST).read_text()))


def verify(path: Path) -> Checkpoint:
    """Check every file of a checkpoint against its manifest. Raises CheckpointError saying what is wrong."""
    try:
        if path.is_symlink() or (path / MANIFEST).is_symlink():
            raise ValueError("a link to somewhere else is not followed")
        manifest = parse_record(read_regular(path / MANIFEST, RECORD_BYTES, within=path.parent), WHOLE_MANIFEST)
        found, seal = manifest["format"], manifest.pop("sha256")
        files = {name: (int(file["size"]), str(file["sha256"])) for name, file in manifest["files"].items()}
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: {MANIFEST} is missing; it is not a whole checkpoint") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: {MANIFEST} cannot be read ({error})") from error
    if seal != _seal(manifest):
        raise CheckpointError(f"{path}: {MANIFEST} is damaged (its contents do not match its own SHA-256)")
    if path.name.startswith(PREFIX) and path.name != name_of(manifest["step"]):
        raise CheckpointError(f"{path}: {MANIFEST} is of step {manifest['step']}")
    if found != FORMAT:
        raise CheckpointError(f"{path}: has format {found}; this version reads format {FORMAT}")
    if set(files) not in ({MODEL, TRAINER}, {MODEL}):
        raise CheckpointError(f"{path}: {MANIFEST} lists {sorted(files)}, must list {[MODEL, TRAINER]}")
    try:
        _verify_files(path, files)
    except OSError as error:
        raise CheckpointError(f"{path}: a file cannot be read ({error})") from error
    return Checkpoint(path, manifest)


def _verify_files(path: Path, files: Mapping[str, tuple[int, str]]) -> None:
    for name, (size, sha256) in files.items():
        file = path / name
        if not file.is_file() or file.is_symlink():
            raise CheckpointError(f"{path}: {name} is missing, or a link")
        if file.stat().st_size != size:
            raise CheckpointError(f"{path}: {name} has {file.stat().st_size} bytes, must have {size}")
        if _sha256(file) != sha256:
            raise CheckpointError(f"{path}: {name} is damaged (its SHA-256 is not the manifest's)")


def remove_partial(directory: Path) -> None:
    """Remove what a kill left half written or half removed; the caller holds the run's lock."""
    for path in [*directory.glob(f".tmp-{PREFIX}*"), *directory.glob(f".old-{PREFIX}*")]:
        shutil.rmtree(path, ignore_errors=True)


def newest(directory: Path) -> Checkpoint | None:
    """Return the newest checkpoint that verifies. Nothing is changed: see `set_aside_newer`."""
    for path in reversed(steps_in(directory).values()):
        with suppress(CheckpointError):
            return verify(path)
    return None


def set_aside_newer(directory: Path, to: Checkpoint | None) -> None:
    """Set aside every checkpoint newer than this one, whole or damaged: training goes on from here.

    to   None: training begins
    """
    for step, path in steps_in(directory).items():
        if to is not None and step <= to.step:
            continue
        try:
            verify(path)
        except CheckpointError as damage:
            set_aside(path, DAMAGED, str(damage))
        else:
            set_aside(path, SUPERSEDED, f"training goes on from step {to.step if to else 0}")


def prune(directory: Path, keep: int, protect: Collection[int], verified: set[int]) -> None:
    """Remove the oldest checkpoints until `keep` verified ones are left beside the protected steps.

    `verified` names the steps known to be whole, and learns those that are found so here.
    """
    left = keep
    for step, path in reversed(steps_in(directory).items()):
        if step not in verified:
            try:
                verify(path)
            except CheckpointError as damage:
                set_aside(path, DAMAGED, str(damage))
                continue
            verified.add(step)
        if left > 0:
            left -= 1
        elif step not in protect:
            _remove(path)


def keep_weights_only(kept: Checkpoint) -> None:
    """Remove the optimizer's state from a verified checkpoint: first from its manifest, then the file."""
    manifest = kept.manifest | {"files": {MODEL: kept.manifest["files"][MODEL]}}
    content = json.dumps(manifest | {"sha256": _seal(manifest)}, indent=2) + "\n"
    write_atomically(kept.path / MANIFEST, content)
    (kept.path / TRAINER).unlink(missing_ok=True)


def keep_only(directory: Path, kept: Collection[int]) -> None:
    """Remove all checkpoints but those of these steps."""
    for step, path in steps_in(directory).items():
        if step not in kept:
            _remove(path)


def set_aside(path: Path, suffix: str, reason: str) -> None:
    """Rename a checkpoint so that it is never loaded by itself again; nothing is deleted."""
    number = 0
    while (aside := path.with_name(f"{path.name}{suffix}{f'-{number}' if number else ''}")).exists():
        number += 1
    path.rename(aside)
    logger.warning("set aside %s as %s: %s", path.name, aside.name, reason)


def _remove(path: Path) -> None:
    """Delete a checkpoint; a kill half way leaves a temporary name, never half a checkpoint."""
    doomed = path.with_name(f".old-{path.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _write_files(directory: Path, contents: Contents) -> None:
    with DurableFile(directory / MODEL) as model:
        model.write(safetensors.torch.save(for_safetensors(contents.model_state)))
    with DurableFile(directory / TRAINER) as trainer:
        torch.save(dict(contents.trainer_state), trainer)
    files = {MODEL: model.facts, TRAINER: trainer.facts}
    manifest = {"format": FORMAT, "step": contents.step, "files": files, **contents.facts}
    with DurableFile(directory / MANIFEST) as file:
        file.write((json.dumps(manifest | {"sha256": _seal(manifest)}, indent=2) + "\n").encode())
    sync_directory(directory)


def _seal(manifest: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a manifest's entries, except for the one that holds it."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with os.fdopen(open_regular(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
