"""Whether the checkpoints of a run will fit on the disk, asked before training begins."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from trainlib.errors import UserError
from trainlib.runs.records.checkpoints import steps_in
from trainlib.training.checkpoints.after import size_of
from trainlib.training.step.state import TrainState

ADVICE = (
    "make room (launch prune RUN, launch rm RUN, launch cache remove), train on another disk (--runs DIR), or keep "
    "fewer with checkpoint.keep"
)


def checkpoint_size(state: TrainState) -> int:
    """Return about how many bytes a checkpoint takes: model and optimizer, which mostly has two numbers a parameter."""
    return size_of_module(state.classifier.module) + sum(map(_bytes, state.ema.tensors().values()))


def size_of_module(module: torch.nn.Module) -> int:
    """Return the same of a module, which may be on the meta device, without an average of its weights."""
    whole = sum(_bytes(tensor) for tensor in module.state_dict().values())
    return whole + 2 * sum(_bytes(parameter) for parameter in module.parameters() if parameter.requires_grad)


def require_room(run: Path, module: torch.nn.Module, keep: int) -> str | None:
    """Return a warning where not all checkpoints of a run would fit on its disk; None where they do.

    Raises UserError where there is no room for two.
    """
    problem = space_problem(run / "checkpoints", size_of_module(module), keep)
    if problem is not None and not problem[0]:
        raise UserError(problem[1])
    return problem[1] if problem is not None else None


def space_problem(folder: Path, size: int, keep: int) -> tuple[bool, str] | None:
    """Return whether training can begin in spite of too little room, and a sentence; None where there is room for all.

    folder   the run's checkpoints, those of an earlier attempt among them
    size     bytes of one
    keep     as many stay, beside the best; one more is being written at times

    Without room for two, a new one cannot be written while the one before it stays.
    """
    place, free = _existing(folder), free_bytes(folder)
    there = size_of(folder) if steps_in(folder) else 0
    if free + there >= (keep + 2) * size:
        return None
    needed = 2 if free + there < 2 * size else keep + 2
    text = (
        f"{place} has {_amount(free)} free, and {needed} checkpoints of about {_amount(size)} each need "
        f"{_amount(needed * size - there)}: {ADVICE}"
    )
    return needed > 2, text


def free_bytes(folder: Path) -> int:
    """Return what is free where the folder is, or will be."""
    return shutil.disk_usage(_existing(folder)).free


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.absolute().parents) if path.is_dir())


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _amount(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"
