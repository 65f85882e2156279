"""Synchronised BatchNorm beside torch's own on the whole batch: outputs, gradients and running statistics."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainlib.distributed.shards.lockstep import Meet, run_in_lockstep
from trainlib.errors import UserError
from trainlib.models.architectures.empty import empty_init
from trainlib.models.forward.synchronized_batchnorm import (
    Moments,
    PieceMoments,
    join_moments,
    make_plain,
    standing_in,
    synchronize,
    synchronized_layers,
)

CPU = torch.device("cpu")
SHAPES = {1: (5,), 2: (5, 4, 3), 3: (5, 2, 3, 2)}


def alone(piece: PieceMoments) -> Moments:
    """Of one process that computes a whole batch."""
    return join_moments(lambda rows: rows, [piece])[0]


def norm(dimensions: int = 2, **options: Any) -> nn.Module:
    torch.manual_seed(3)
    layer: Any = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dimensions - 1](5, **options)
    if layer.affine:
        nn.init.uniform_(layer.weight, 0.5, 2)
        nn.init.uniform_(layer.bias)
    return layer  # type: ignore[no-any-return]


def images(n: int, shape: Sequence[int] = SHAPES[2]) -> Tensor:
    torch.manual_seed(4)
    return torch.randn(n, *shape) * 3 + torch.arange(5.0).view(1, 5, *[1] * (len(shape) - 1))


def results(module: nn.Module, inputs: Tensor, steps: int = 2) -> dict[str, Tensor]:
    """Everything that some passes leave, by name."""
    found: dict[str, Tensor] = {}
    for step in range(steps):
        inputs = inputs.detach().requires_grad_()
        outputs = module(inputs)
        torch.manual_seed(9)
        (outputs * torch.randn_like(outputs)).sum().backward()
        assert inputs.grad is not None
        found |= {f"output {step}": outputs.detach(), f"gradient {step}": inputs.grad}
        inputs = inputs + step
    found |= {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
    return found | {f"gradient of {n}": p.grad for n, p in module.named_parameters() if p.grad is not None}


def assert_close(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float = 1e-6) -> None:
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        scale = max(1.0, float(expected.abs().max()))
        assert torch.allclose(ours[name], expected, rtol=0, atol=tolerance * scale), name
        assert ours[name].dtype == expected.dtype


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}, {"eps": 1e-3, "momentum": 0.4}],
    ids=str,
)
def test_alone_it_is_torchs_own(dimensions: int, options: dict[str, Any]) -> None:
    ours, theirs = norm(dimensions, **options), norm(dimensions, **options)
    synchronize(ours, alone)
    assert_close(results(ours, images(7, SHAPES[dimensions])), results(theirs, images(7, SHAPES[dimensions])))
    ours.eval()
    theirs.eval()
    batch = images(3, SHAPES[dimensions])
    make_plain(ours)
    theirs.load_state_dict(ours.state_dict())
    assert torch.equal(ours(batch), theirs(batch))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_other_types_and_layouts(dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    ours, theirs = norm(), norm()
    if dtype == torch.float64:
        ours, theirs = ours.double(), theirs.double()
    synchronize(ours, alone)
    batch = images(6).to(dtype, memory_format=memory_format)
    assert_close(results(ours, batch), results(theirs, batch), 1e-9 if dtype == torch.float64 else 0.01)


class Net(nn.Sequential):
    """Convolutions and norms, with three ways from one tensor to the end."""

    def __init__(self) -> None:
        torch.manual_seed(1)
        super().__init__(nn.Conv2d(5, 5, 3, padding=1), norm(), nn.Conv2d(5, 5, 1), norm(), nn.Linear(3, 2))

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that torch gives it
        first, norm1, second, norm2, last = self
        values = first(input)
        values = norm1(values).relu() + norm2(second(values)) + values
        output: Tensor = last(values)
        return output


def in_pieces(module: nn.Module, pieces: Sequence[Tensor], weights: Sequence[Tensor]) -> list[nn.Module]:
    """Run copies of a module forward together, each on its piece, and backward; return the copies."""
    copies = [copy.deepcopy(module) for _ in pieces]

    def loss(replica: nn.Module, piece: Tensor, weight: Tensor, meet: Meet[PieceMoments, Moments]) -> Tensor:
        synchronize_with(replica, meet)
        value: Tensor = (replica(piece) * weight).sum()
        return value

    losses = run_in_lockstep(
        [partial(loss, *arguments) for arguments in zip(copies, pieces, weights, strict=True)],
        lambda values: join_moments(lambda rows: rows, values),
        CPU,
    )
    torch.stack(losses).sum().backward()
    return copies


def synchronize_with(module: nn.Module, join: Any) -> None:
    for layer in synchronized_layers(module):
        layer.join = join


@pytest.mark.parametrize("sizes", [[7], [3, 4], [1, 5, 1], [2, 2, 2, 1]])
def test_pieces_together_are_the_whole_batch(sizes: list[int]) -> None:
    """Of any sizes, single images included: gradients add up to those of the whole, each has its statistics."""
    batch = images(7)
    torch.manual_seed(5)
    weight = torch.randn(7, 5, 4, 2)
    whole, ours = Net().double(), Net().double()
    (whole(batch.double()) * weight).sum().backward()
    synchronize(ours, None)
    copies = in_pieces(ours, batch.double().split(sizes), weight.double().split(sizes))
    for name, parameter in whole.named_parameters():
        total = sum(replica.get_parameter(name).grad for replica in copies)  # type: ignore[misc]
        assert torch.allclose(total, parameter.grad, rtol=0, atol=1e-9), name  # type: ignore[arg-type]
    for replica in copies:
        for name, buffer in whole.named_buffers():
            assert torch.allclose(replica.get_buffer(name), buffer, rtol=0, atol=1e-9), name


def test_the_bits_do_not_depend_on_what_runs_beside() -> None:
    """A piece alone, with the others' rows from elsewhere, gives the bits that it gives among them."""
    pieces, torch_weights = images(7).split([2, 3, 2]), torch.ones(7, 5, 4, 2).split([2, 3, 2])
    net = Net()
    synchronize(net, None)
    exchanged: list[Tensor] = []

    def record(rows: Tensor) -> Tensor:
        exchanged.append(rows)
        return rows

    copies = [copy.deepcopy(net) for _ in pieces]

    def loss(replica: nn.Module, piece: Tensor, weight: Tensor, meet: Any) -> Tensor:
        synchronize_with(replica, meet)
        value: Tensor = (replica(piece) * weight).sum()
        return value

    arguments = list(zip(copies, pieces, torch_weights, strict=True))
    functions: list[Any] = [partial(loss, *each) for each in arguments]
    torch.stack(run_in_lockstep(functions, lambda v: join_moments(record, v), CPU)).sum().backward()
    for index, (_, piece, weight) in enumerate(arguments):
        single, rest = copy.deepcopy(net), iter(exchanged)

        def replay(rows: Tensor, index: int = index, rest: Any = rest) -> Tensor:
            recorded: Tensor = next(rest)
            assert torch.equal(rows[0], recorded[index])
            return recorded

        function = partial(loss, single, piece, weight)
        (value,) = run_in_lockstep([function], lambda v, replay=replay: join_moments(replay, v), CPU)  # type: ignore[misc]
        value.backward()
        for ours, theirs in zip(single.parameters(), copies[index].parameters(), strict=True):
            assert ours.grad is not None
            assert theirs.grad is not None
            assert torch.equal(ours.grad, theirs.grad)
        for ours_buffer, buffer in zip(single.buffers(), copies[index].buffers(), strict=True):
            assert torch.equal(ours_buffer, buffer)


def test_images_that_stand_for_no_samples_count_for_nothing() -> None:
    batch = images(4)
    weight = torch.ones(4, 5, 4, 2)
    net = Net()
    synchronize(net, None)
    (expected,) = in_pieces(net, [batch], [weight])
    copies = [copy.deepcopy(net), copy.deepcopy(net)]

    def loss(replica: nn.Module, piece: Tensor, weight: float, meet: Any) -> Tensor:
        synchronize_with(replica, meet)
        if weight:
            return replica(piece).sum()  # type: ignore[no-any-return]
        with standing_in(replica):
            return replica(piece).sum() * weight  # type: ignore[no-any-return]

    functions: list[Any] = [
        lambda meet: loss(copies[0], batch, 1.0, meet),
        lambda meet: loss(copies[1], torch.full((1, *SHAPES[2]), 1e6), 0.0, meet),
    ]
    torch.stack(run_in_lockstep(functions, lambda v: join_moments(lambda rows: rows, v), CPU)).sum().backward()
    for name, parameter in expected.named_parameters():
        assert torch.allclose(copies[0].get_parameter(name).grad, parameter.grad, rtol=1e-5, atol=1e-5)  # type: ignore[arg-type]
        of_nothing = copies[1].get_parameter(name).grad
        assert of_nothing is not None
        assert not of_nothing.any(), name
    for name, buffer in expected.named_buffers():
        assert torch.allclose(copies[1].get_buffer(name), buffer, rtol=1e-6), name


def test_timms_layer_keeps_its_activation_and_its_names() -> None:
    import timm

    torch.manual_seed(2)
    with empty_init():
        names = list(timm.create_model("efficientnet_b0").state_dict())
    ours = timm.layers.BatchNormAct2d(5, act_layer=nn.SiLU)
    theirs = copy.deepcopy(ours)
    synchronize(ours, alone)
    assert_close(results(ours, images(7)), results(theirs, images(7)))
    with empty_init():
        whole = timm.create_model("efficientnet_b0")
    synchronize(whole, None)
    assert list(whole.state_dict()) == names
    assert len(synchronized_layers(whole)) == 49
    make_plain(whole)
    assert {type(m).__name__ for m in whole.modules() if isinstance(m, nn.BatchNorm2d)} == {"BatchNormAct2d"}


class OwnNorm(nn.BatchNorm2d):
    """A layer that may compute anything."""


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Sequential(nn.Linear(2, 2)), "Sequential has no BatchNorm layer: leave it out"),
        (nn.Sequential(OwnNorm(3)), "0 is a OwnNorm, which cannot be synchronised"),
        (nn.Sequential(nn.BatchNorm1d(2), nn.SyncBatchNorm(3)), "1 is a SyncBatchNorm, which cannot be synchronised"),
    ],
)
def test_what_cannot_be_synchronised_is_refused(module: nn.Module, message: str) -> None:
    with pytest.raises(UserError, match=message):
        synchronize(module, None)
    assert not synchronized_layers(module)
