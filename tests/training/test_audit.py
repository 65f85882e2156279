"""`train.audit`: a bit that is flipped on one rank is found before the update, and the right device is named."""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ranks
import tiny
import torch
from parts import build_trainer, make_dataset, resolved
from soak import rounds
from torch import Tensor

from trainlib.distributed import process_group
from trainlib.errors import UserError, WrongDeviceError
from trainlib.training.step.audit import roles_of
from trainlib.training.step.train_step import train_step
from trainlib.training.trainer import Trainer

FLIPS = rounds(40, 500)
MODES = {"exact": {}, "elastic": {"reproducibility": "elastic", "virtual_shards": 6}}
KINDS = ["gradient", "activation", "weight"]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("every", [1, 7])
def test_every_rank_is_audited_by_every_other(world_size: int, every: int) -> None:
    steps = range(every * world_size * max(1, world_size - 1))
    audits = [roles for step in steps if (roles := roles_of(step, every, world_size))]
    assert len(audits) == len(steps) // every
    pairs = Counter((roles.audited, roles.second) for roles in audits)
    assert set(pairs.values()) == {1}
    for roles in audits:
        assert (roles.audited != roles.second) == (world_size > 1)
        assert roles.third not in (roles.audited, roles.second) or world_size < 3


def flipped(values: Tensor, choice: random.Random) -> Tensor:
    """A copy of float32 values with one bit of one of them turned over: of the mantissa, so that it stays finite."""
    flat = values.detach().clone(memory_format=torch.contiguous_format).flatten()
    flat.view(torch.int32)[choice.randrange(len(flat))] ^= 1 << choice.randrange(23)
    changed = flat.view(values.shape)
    return values + (changed - values).detach() if values.requires_grad else changed


def break_device(trainer: Trainer, kind: str, choice: random.Random) -> Callable[[], None]:
    """From now on this rank computes wrongly, always in the same way; returns what mends it."""
    module = trainer.state.classifier.module
    seed = choice.random()
    parameter = choice.choice([*module.parameters()])
    if kind == "weight":
        before = parameter.detach().clone()
        parameter.data.copy_(flipped(before, choice))
        return lambda: parameter.data.copy_(before)  # type: ignore[return-value]
    if kind == "gradient":
        hook = parameter.register_hook(lambda gradient: flipped(gradient, random.Random(seed)))
        return lambda: hook.remove()
    layers = [layer for layer in module.modules() if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear)]
    layer = choice.choice(layers)
    return layer.register_forward_hook(lambda layer, inputs, output: flipped(output, random.Random(seed))).remove


def flip_bits(mode: str, count: int) -> None:
    """In each rank: train steps, in each of which one rank's device is broken."""
    values: dict[str, Any] = {"audit": 1, "batch_size": 12, **MODES[mode]}
    config = resolved({"train": values, "model": {"name": "cifar10_cnn"}, "optimizer": {"name": "SGD", "lr": 0.1}})
    with process_group.joined(config.train) as accelerator:
        rank, world_size = accelerator.process_index, accelerator.num_processes
        trainer = build_trainer(config, make_dataset(48), accelerator)
        state, found = trainer.state, Counter[str]()
        batch = trainer.plan.batches(0)[0]
        micro_batches = next(iter(trainer.samples.train.train_batches([batch], 0, trainer.samples.augmentation)))
        denominator = state.objective.denominator(trainer.samples.train.labels_N[batch])
        train_step(state, 0, micro_batches, denominator)  # nothing is wrong
        before = {name: tensor.clone() for name, tensor in state.classifier.module.state_dict().items()}
        for case in range(1, count + 1):
            choice = random.Random(case)
            kind, bad, roles = choice.choice(KINDS), choice.randrange(world_size), roles_of(case, 1, world_size)
            assert roles is not None
            mend = break_device(trainer, kind, choice) if rank == bad else lambda: None
            error = None
            try:
                train_step(state, case, micro_batches, denominator)
            except WrongDeviceError as raised:
                error = raised
            mend()
            state.classifier.module.load_state_dict(before)
            if bad in (roles.audited, roles.second):
                found["none" if error is None else "right" if error.rank == bad else "wrong"] += 1
            else:
                assert error is None
        print(json.dumps(found))


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_flipped_bits_are_found_and_the_right_device_is_named(mode: str, tmp_path: Path) -> None:
    """A bit of an activation may change nothing, as in a maximum that it is no part of; the others are all found."""
    assert ranks.run(flip_bits, mode, FLIPS, world_size=3, cwd=tmp_path) == [0, 0, 0], ranks.console(tmp_path)
    found = json.loads(ranks.console(tmp_path).splitlines()[-1])
    assert found.get("wrong", 0) == 0
    assert found["right"] > 0.5 * sum(found.values()), found
    print(mode, found)


def count_audits(arguments: list[str]) -> int:
    """In each rank: train, and print how many audits there were."""
    from trainlib.training.step.audit import Audit

    compare, counted = Audit.compare, []

    def counting(self: Audit, step: int, *rest: Any) -> None:
        compare(self, step, *rest)
        counted.append(roles_of(step, self._every, self._world_size) is not None)

    ranks.replace(Audit, "compare", counting)
    code = ranks.main(arguments)
    print("audits", sum(counted))
    return code


@pytest.mark.parametrize(
    ("world_size", "more"),
    [(1, []), pytest.param(2, ["train.micro_batch_size=4"], marks=pytest.mark.slow)],
)
def test_an_audit_changes_no_bit_and_raises_no_false_alarm(tmp_path: Path, world_size: int, more: list[str]) -> None:
    """Dropout, augmentation, BatchNorm's like and a loss in parts: everything is computed again as it was."""
    tiny.make_images(tmp_path / "images")
    training = tiny.arguments(tmp_path / "images", 2, 4, *more)
    for name, audit in (("without", "null"), ("with", "2")):
        cwd = tiny.in_folder(tmp_path, name)
        codes = ranks.run(count_audits, [*training, f"train.audit={audit}"], world_size=world_size, cwd=cwd)
        assert codes == [0] * world_size, ranks.console(cwd)
    tiny.assert_same_result(tmp_path / "with", tmp_path / "without")
    assert "audits 4" in ranks.console(tmp_path / "with")


def break_step(arguments: list[str], rank: int, step: int) -> int:
    """In each rank: train; one of them computes a wrong gradient in the first pass of one step."""
    from trainlib.training.step.audit import Audit

    choose = Audit.choose

    def choosing(self: Audit, number: int, micro_batches: Any) -> None:
        choose(self, number, micro_batches)
        if number == step and int(os.environ.get("RANK", "0")) == rank:
            parameter = next(iter(self._parameters.values()))

            def once(gradient: Tensor) -> Tensor:
                hook.remove()
                return flipped(gradient, random.Random(1))

            hook = parameter.register_hook(once)

    ranks.replace(Audit, "choose", choosing)
    return ranks.main(arguments)


@pytest.mark.parametrize("world_size", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_run_ends_before_the_wrong_update_and_names_the_device(tmp_path: Path, world_size: int) -> None:
    tiny.make_images(tmp_path / "images")
    training = tiny.arguments(tmp_path / "images", 2, 1, "train.audit=1")
    codes = ranks.run(break_step, training, 0, 3, world_size=world_size, cwd=tmp_path)
    assert codes == [WrongDeviceError.exit_code] * world_size, ranks.console(tmp_path)
    console = ranks.console(tmp_path)
    assert "step 4 was not applied: the gradient of" in console
    assert "the wrong one is rank 0 on" in console
    assert tiny.attempts(tmp_path, "end")[-1]["code"] == "wrong_device"
    assert tiny.attempts(tmp_path, "end")[-1]["step"] == 3
    assert ranks.train([*training], world_size=world_size, cwd=tmp_path) == [0] * world_size  # and goes on


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(UserError, match=r"train\.audit: got 5, must be null: kernels of train.reproducibility fast"):
        resolved({"train": {"audit": 5, "reproducibility": "fast"}})
