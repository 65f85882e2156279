"""Damaged checkpoints: none crashes, none is loaded, the newest good one is found."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import ranks
import tiny
import torch
from soak import rounds

from trainlib.errors import CheckpointError
from trainlib.runs.records.checkpoints import name_of, steps_in
from trainlib.training.checkpoints import checkpoint
from trainlib.training.checkpoints.checkpoint import Contents

STEPS = [3, 6, 9, 12]
FILES = [checkpoint.MODEL, checkpoint.TRAINER, checkpoint.MANIFEST]
Damage = Callable[[random.Random, Path], None]


def state_of(step: int) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((40, 3), float(step)), "count": torch.tensor(step)}


def trainer_of(step: int) -> dict[str, object]:
    return {"progress": {"step": step}, "optimizer": {"state": torch.full((40, 3), -float(step))}}


def any_file(choice: random.Random, path: Path) -> Path:
    return path / choice.choice(FILES)


def flip_a_bit(choice: random.Random, path: Path) -> None:
    file = any_file(choice, path)
    content = bytearray(file.read_bytes())
    content[choice.randrange(len(content))] ^= 1 << choice.randrange(8)
    file.write_bytes(content)


def truncate(choice: random.Random, path: Path) -> None:
    file = any_file(choice, path)
    file.write_bytes(file.read_bytes()[: choice.randrange(file.stat().st_size)])


def append(choice: random.Random, path: Path) -> None:
    with any_file(choice, path).open("ab") as file:
        file.write(choice.randbytes(choice.randint(1, 50)).replace(b" ", b"x") + b"x")


def remove(choice: random.Random, path: Path) -> None:
    any_file(choice, path).unlink()


def empty(choice: random.Random, path: Path) -> None:
    any_file(choice, path).write_bytes(b"")


def zero_a_block(choice: random.Random, path: Path) -> None:
    """What a power cut leaves of a file whose size was written before its contents."""
    file = any_file(choice, path)
    content = bytearray(file.read_bytes())
    start = choice.randrange(len(content))
    content[start:] = bytes(len(content) - start)
    file.write_bytes(content)


def another(choice: random.Random, path: Path) -> Path:
    """A checkpoint of another step that is still whole."""
    return choice.choice([p for p in steps_in(path.parent).values() if p != path and is_whole(p)])


def is_whole(path: Path) -> bool:
    try:
        checkpoint.verify(path)
    except CheckpointError:
        return False
    return True


def swap_with_another(choice: random.Random, path: Path) -> None:
    """One or two files of another step, which are whole by themselves."""
    other = another(choice, path)
    for name in choice.sample(FILES, choice.randint(1, 2)):
        shutil.copy(other / name, path / name)


def pass_off_another(choice: random.Random, path: Path) -> None:
    """The whole of another step under this one's name."""
    other = another(choice, path)
    shutil.rmtree(path)
    shutil.copytree(other, path)


def replace_by_a_file(choice: random.Random, path: Path) -> None:
    shutil.rmtree(path)
    path.write_bytes(choice.randbytes(100))


def put_a_directory_in_place(choice: random.Random, path: Path) -> None:
    file = any_file(choice, path)
    file.unlink()
    file.mkdir()


DAMAGES: list[Damage] = [
    flip_a_bit,
    truncate,
    append,
    remove,
    empty,
    zero_a_block,
    swap_with_another,
    pass_off_another,
    replace_by_a_file,
    put_a_directory_in_place,
]


def litter(choice: random.Random, directory: Path) -> None:
    """Things that are no checkpoints of a run, under names that look a little like it."""
    names = ["step-", "step-x", "step--0000009", "step-00000099.damaged", ".tmp-step-00000099", "step-9e9", "latest"]
    for name in choice.sample(names, 3):
        (directory / name).mkdir()
    (directory / "step-00000098").write_text("a file")
    (directory / "step-00000097").mkdir()


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_the_newest_good_one_is_found_among_damaged_ones(tmp_path: Path, damage: Damage) -> None:
    choice = random.Random(damage.__name__)
    pristine = tiny.in_folder(tmp_path, "pristine")
    for step in STEPS:
        checkpoint.save(pristine, Contents(step, state_of(step), trainer_of(step), {"world_size": 1}))
    damaged = 0
    while damaged < rounds(4, 20):
        directory = tmp_path / f"{damaged}"
        shutil.copytree(pristine, directory)
        victims = sorted(choice.sample(STEPS, choice.randint(1, 3)) if choice.random() < 0.5 else STEPS[-1:])
        for step in victims:
            damage(choice, directory / name_of(step))
        damaged += len(victims)
        litter(choice, directory)
        good = [step for step in STEPS if step not in victims]

        found = checkpoint.newest(directory)
        assert found is not None
        assert found.step == good[-1]
        assert all(torch.equal(found.model_state()[name], value) for name, value in state_of(found.step).items())
        assert torch.equal(found.trainer_state()["optimizer"]["state"], torch.full((40, 3), -float(found.step)))
        checkpoint.set_aside_newer(directory, found)
        for step in victims:
            named = directory / name_of(step)
            assert not named.is_dir() or step < found.step  # set aside, never to be met again
            with pytest.raises(CheckpointError):
                checkpoint.verify(named)


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES[: rounds(1, len(DAMAGES))], ids=lambda damage: damage.__name__)
def test_a_training_goes_on_bitwise_from_the_newest_good_one(tmp_path: Path, damage: Damage) -> None:
    images = tmp_path / "images"
    tiny.make_images(images)
    training = tiny.arguments(images, 4, 3, "scheduler=null")
    longer = tiny.arguments(images, 6, 3, "scheduler=null")
    whole, hurt = tiny.in_folder(tmp_path, "whole"), tiny.in_folder(tmp_path, "hurt")
    for cwd in (whole, hurt):
        assert ranks.train([*training, "scheduler=null"], world_size=2, cwd=cwd) == [0, 0], ranks.console(cwd)
    steps = steps_in(hurt / "runs/run/checkpoints")
    newest = max(steps)
    damage(random.Random(1), steps.pop(newest))
    for cwd in (whole, hurt):
        assert ranks.train([*longer, "scheduler=null", "--resume"], world_size=2, cwd=cwd) == [0, 0]
    assert f"resuming from step {max(steps)}: exact" in ranks.console(hurt)
    tiny.assert_same_result(hurt, whole)
