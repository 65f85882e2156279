"""A second computation of one micro-batch, by another rank, before the update: it finds a device that computes wrongly.

Every `train.audit` steps one rank's losses and gradients of one micro-batch are compared in every bit with what another
rank gets from the same input, weights and random numbers. Where they differ, a third computation tells which of the two
was wrong, by a third rank where there is one, else by the first again. Nothing of the step is applied then.

Which step, rank and micro-batch are audited depends on the step's number alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainlib.data.batches.loader import MicroBatch
from trainlib.data.targets import Targets
from trainlib.distributed.devices.named_device import NamedDevice
from trainlib.distributed.process_group import gather_objects
from trainlib.errors import UserError, WrongDeviceError
from trainlib.models import preserve_buffers
from trainlib.models.weights.files import weights_sha256

Digests = dict[str, str]  # SHA-256 of the loss and of each parameter's gradient, by name
_LOSS = "the loss"
# The loss of a micro-batch, weighted and scaled as in training, by a model.
WeightedLoss = Callable[[nn.Module, MicroBatch], Tensor]


class AuditRoles(NamedTuple):
    """One audit: whose computation is repeated, by whom, who decides where they differ, and a number to choose by."""

    audited: int
    second: int
    third: int
    number: int


def roles_of(step: int, every: int, world_size: int) -> AuditRoles | None:
    """Return the audit of a step, from 0; None where it has none. All ranks are audited, and by all others, in turn."""
    if (step + 1) % every:
        return None
    number = step // every
    audited, round_ = number % world_size, number // world_size
    others = [(audited + shift) % world_size for shift in range(1, world_size)]
    if not others:
        return AuditRoles(0, 0, 0, number)
    second = others[round_ % len(others)]
    return AuditRoles(audited, second, next((rank for rank in others if rank != second), audited), number)


class Recorded(NamedTuple):
    """What another rank needs to compute a micro-batch again, on the CPU, and what came of it the first time."""

    micro_batch: MicroBatch
    random_states: list[Tensor]
    buffers: list[Tensor]
    digests: Digests


class Audit:
    """Records the micro-batch that is audited while it is trained on, and compares it with a second computation.

    parameters   of the model, by name; those are compared that require gradients at the time (see `model.unfreeze`)
    """

    def __init__(
        self, every: int, rank: int, world_size: int, device: torch.device, parameters: dict[str, nn.Parameter]
    ):
        self._every, self._rank, self._world_size, self._device = every, rank, world_size, device
        self._of_model = parameters
        self._chosen: MicroBatch | None = None
        self._before: tuple[list[Tensor], list[Tensor]] = [], []
        self._digests: Digests = {}
        self._is_tried = False

    @property
    def _parameters(self) -> dict[str, nn.Parameter]:
        return {name: parameter for name, parameter in self._of_model.items() if parameter.requires_grad}

    def is_due(self, step: int) -> bool:
        """Return True for a step, from 0, that has an audit."""
        return roles_of(step, self._every, self._world_size) is not None

    def choose(self, step: int, micro_batches: Sequence[MicroBatch]) -> None:
        """Choose the micro-batch of this rank that is audited in this step, if any."""
        roles, self._digests = roles_of(step, self._every, self._world_size), {}
        full = [micro_batch for micro_batch in micro_batches if not micro_batch.is_empty]
        is_mine = roles is not None and roles.audited == self._rank and full
        self._chosen = full[roles.number // self._world_size % len(full)] if is_mine and roles else None

    def before_forward(self, micro_batch: MicroBatch, buffers: Sequence[Tensor]) -> None:
        """Record random numbers and buffers, where this micro-batch is the chosen one."""
        if micro_batch is self._chosen:
            self._before = _random_states(self._device), [buffer.detach().cpu().clone() for buffer in buffers]

    @contextmanager
    def during_backward(self, micro_batch: MicroBatch, loss: Tensor) -> Iterator[None]:
        """Context manager: record the loss and the gradients of a backward pass, where the micro-batch is chosen.

        They are seen before they are added to those of other micro-batches, or to those of other ranks.
        """
        if micro_batch is not self._chosen:
            yield
            return

        def recorder(name: str) -> Callable[[Tensor], None]:
            def record(gradient: Tensor) -> None:
                self._digests[name] = _digest(gradient)

            return record

        self._digests[_LOSS] = _digest(loss)
        hooks = [parameter.register_hook(recorder(name)) for name, parameter in self._parameters.items()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def compare(self, step: int, model: nn.Module, loss_of: WeightedLoss) -> None:
        """Compute the audited micro-batch of this step again, and raise WrongDeviceError where the results differ.

        A collective in steps that have an audit. Raises UserError where one device does not compute the same twice.
        """
        roles = roles_of(step, self._every, self._world_size)
        if roles is None:
            return
        recorded = self._broadcast(roles.audited)
        if recorded is None:  # the rank has no samples in this step
            return

        def again(rank: int) -> Digests:
            mine = self._repeat(recorded, model, loss_of) if self._rank == rank else {}
            return gather_objects(mine)[rank]

        if not self._is_tried:
            self._require_reproducible(recorded, again)
        second = again(roles.second)
        if differing := _first_difference(recorded.digests, second):
            third = again(roles.third)
            devices = gather_objects(NamedDevice.of_this_rank(self._rank, self._device))
            raise _wrong_device(step, roles, differing, [recorded.digests, second, third], devices)

    def _broadcast(self, source: int) -> Recorded | None:
        """Return what the audited rank has recorded, on every rank. A collective."""
        recorded = None
        if self._chosen is not None:
            recorded = Recorded(_on(self._chosen, torch.device("cpu")), *self._before, self._digests)
        self._chosen = None
        if self._world_size == 1:
            return recorded
        values: list[Any] = [recorded]
        dist.broadcast_object_list(values, src=source)
        return values[0]  # type: ignore[no-any-return]

    def _repeat(self, recorded: Recorded, model: nn.Module, loss_of: WeightedLoss) -> Digests:
        """Compute the recorded micro-batch on this device; nothing of it stays."""
        with preserve_buffers(model):
            for buffer, before in zip(model.buffers(), recorded.buffers, strict=True):
                buffer.copy_(before)
            _set_random_states(recorded.random_states, self._device)
            loss = loss_of(model, _on(recorded.micro_batch, self._device))
            gradients = torch.autograd.grad(loss, list(self._parameters.values()), allow_unused=True)
        pairs = zip(self._parameters, gradients, strict=True)
        digests = {name: _digest(gradient) for name, gradient in pairs if gradient is not None}
        return {**digests, _LOSS: _digest(loss)}

    def _require_reproducible(self, recorded: Recorded, again: Callable[[int], Digests]) -> None:
        """Raise UserError, on every rank, where one device does not get the same bits twice; once an attempt."""
        self._is_tried = True
        once, twice = again(0), again(0)
        if (differing := _first_difference(once, twice)) and _first_difference(once, again(0)):
            raise UserError(
                f"train.audit: {differing} is another each time that one device computes it: this model's kernels are "
                "not reproducible, so an audit cannot tell a fault; use train.audit=null"
            )


def _wrong_device(
    step: int, roles: AuditRoles, differing: str, results: Sequence[Digests], devices: Sequence[NamedDevice]
) -> WrongDeviceError:
    """Return the error that names the device that computed wrongly, as far as three results tell."""
    first, second, third = results
    wrong = None
    if roles.audited == roles.second or not _first_difference(third, second):
        wrong = devices[roles.audited]
    elif not _first_difference(third, first) and roles.third != roles.audited:
        wrong = devices[roles.second]
    found = f"step {step + 1} was not applied: {differing} of one micro-batch is not the same on two devices"
    if wrong is not None:
        words = f"{found}; a third computation says that the wrong one is {wrong}"
        return WrongDeviceError(words, wrong.rank, wrong.uuid)
    either = dict.fromkeys(str(devices[rank]) for rank in (roles.audited, roles.second))
    return WrongDeviceError(f"{found}, and a third computation does not tell which is wrong: {' or '.join(either)}")


def _first_difference(a: Digests, b: Digests) -> str | None:
    """Return what differs first, the loss before gradients; None where nothing does."""
    if a.get(_LOSS) != b.get(_LOSS):
        return _LOSS
    names = [name for name in dict.fromkeys([*a, *b]) if a.get(name) != b.get(name)]
    return f"the gradient of {names[0]}" if names else None


def _digest(tensor: Tensor) -> str:
    return weights_sha256({"": tensor.detach()})


def _on(micro_batch: MicroBatch, device: torch.device) -> MicroBatch:
    """Return a copy of a micro-batch whose tensors on the training's device are on `device`."""
    return micro_batch._replace(
        ids_N=micro_batch.ids_N.clone(),
        images_NCHW=micro_batch.images_NCHW.detach().to(device, copy=True),
        targets=_targets_on(micro_batch.targets, device),
    )


def _targets_on(targets: Targets, device: torch.device) -> Targets:
    other = targets.other and _targets_on(targets.other, device)
    return Targets(targets.labels_N.to(device, copy=True), targets.cpu_labels_N.clone(), targets.weight, other)


def _random_states(device: torch.device) -> list[Tensor]:
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _set_random_states(states: Sequence[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
