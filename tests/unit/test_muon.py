"""MuonSGD: the orthogonalisation against an SVD, whole steps against plain code, the rest of it against torch's SGD."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import ranks
import tiny
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from trainlib.config import OptimizerConfig
from trainlib.errors import UserError
from trainlib.models.optimizers.build import build_optimizer
from trainlib.models.optimizers.muon import MuonSGD, orthogonalize


def matrix(rows: int, columns: int, smallest: float = 0.02) -> Tensor:
    """A matrix with known singular values, from `smallest` of its norm upwards."""
    generator = torch.Generator().manual_seed(rows * columns)
    u, _, vt = torch.linalg.svd(torch.randn(rows, columns, generator=generator, dtype=torch.float64), False)
    values = torch.linspace(smallest, 0.5, min(rows, columns), dtype=torch.float64)
    matrix: Tensor = u * values @ vt / torch.linalg.vector_norm(values)
    return matrix.float()


@pytest.mark.parametrize("shape", [(16, 16), (12, 70), (70, 12), (1, 9), (9, 1), (64, 216)])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_an_orthogonalised_matrix_has_the_same_directions_and_singular_values_near_1(
    shape: tuple[int, int], scale: float
) -> None:
    given = matrix(*shape)
    (found,) = orthogonalize(scale * given[None], 5)
    u, _, vt = torch.linalg.svd(given.double(), full_matrices=False)
    values = u.T @ found.double() @ vt.T  # diagonal where the directions are those of the matrix itself
    assert values.diagonal().min() > 0.68
    assert values.diagonal().max() < 1.21
    assert (values - values.diagonal().diag()).abs().max() < 2e-3
    assert (found.double() - u @ values @ vt).abs().max() < 2e-3, "and nothing besides"


@pytest.mark.parametrize("shape", [(16, 16), (12, 70), (70, 12), (64, 216)])
def test_so_it_does_in_bfloat16_as_on_gpus(shape: tuple[int, int]) -> None:
    given = matrix(*shape)
    (found,) = orthogonalize(given[None].bfloat16(), 5)
    u, _, vt = torch.linalg.svd(given.double(), full_matrices=False)
    values = u.T @ found.double() @ vt.T
    assert found.dtype == torch.bfloat16
    assert values.diagonal().min() > 0.65
    assert values.diagonal().max() < 1.25
    assert (values - values.diagonal().diag()).abs().max() < 0.03


def test_more_steps_lift_smaller_singular_values() -> None:
    given = matrix(20, 30, smallest=0.004)[None]
    smallest = [float(torch.linalg.svdvals(orthogonalize(given, steps)).min()) for steps in (1, 3, 5)]
    assert smallest == sorted(smallest)
    assert smallest[1] < 0.3
    assert smallest[2] > 0.68


def test_matrices_of_a_batch_do_not_mix_and_zero_stays_zero() -> None:
    batch = torch.stack([matrix(12, 20), torch.zeros(12, 20), 7 * matrix(12, 20).flip(0)])
    found = orthogonalize(batch, 5)
    assert torch.equal(found[1], torch.zeros(12, 20))
    for index in (0, 2):
        assert torch.allclose(found[index], orthogonalize(batch[index : index + 1], 5)[0], atol=1e-5)


def network() -> nn.Sequential:
    """Two filters of one shape among others, biases, a norm and a head."""
    torch.manual_seed(3)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3)), nn.Flatten(), nn.Linear(32, 5)
    )


def gradients(module: nn.Module, step: int) -> None:
    """Some gradient for every parameter, in the parameter's own layout."""
    generator = torch.Generator().manual_seed(100 + step)
    for parameter in module.parameters():
        parameter.grad = torch.empty_like(parameter).copy_(torch.randn(parameter.shape, generator=generator))


def plain_step(weight: Tensor, gradient: Tensor, buffer: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Muon as its paper has it, for one weight; returns the new weight and buffer. In float64."""
    buffer = options["momentum"] * buffer + gradient
    update = gradient + options["momentum"] * buffer if options["nesterov"] else buffer
    x = update.flatten(1) / update.norm()
    for _ in range(options["ns_steps"]):
        cube = x @ x.T @ x
        x = 3.4445 * x - 4.7750 * cube + 2.0315 * (x @ x.T @ cube)
    if options["normalize_weights"]:
        weight = weight / weight.norm() * len(weight) ** 0.5
    else:
        weight = weight - options["lr"] * options["weight_decay"] * weight
    return weight - options["lr"] * x.view(weight.shape), buffer


OPTIONS: list[dict[str, Any]] = [
    {"nesterov": True, "normalize_weights": True, "weight_decay": 0.0, "ns_steps": 3},
    {"nesterov": True, "normalize_weights": False, "weight_decay": 0.1, "ns_steps": 5},
    {"nesterov": False, "normalize_weights": False, "weight_decay": 0.0, "ns_steps": 5},
    {"nesterov": False, "normalize_weights": True, "weight_decay": 0.1, "ns_steps": 1},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_steps_are_those_of_plain_code(options: dict[str, Any], layout: torch.memory_format) -> None:
    options = {"lr": 0.1, "momentum": 0.6, **options}
    module = network().to(memory_format=layout)
    optimizer = MuonSGD(module.parameters(), **options)
    weights = {name: p.detach().double() for name, p in module.named_parameters() if p.ndim > 1}
    buffers = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    assert len(weights) == 4
    for step in range(3):
        gradients(module, step)
        optimizer.step()
        for name, weight in weights.items():
            gradient = module.get_parameter(name).grad
            assert gradient is not None
            weights[name], buffers[name] = plain_step(weight, gradient.double(), buffers[name], options)
            assert torch.allclose(module.get_parameter(name).double(), weights[name], atol=2e-5)
            assert module.get_parameter(name).is_contiguous(memory_format=layout) or weight.ndim != 4


SGD: list[dict[str, Any]] = [
    {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    {"momentum": 0.9, "nesterov": False, "weight_decay": 0.0},
    {"momentum": 0.0, "nesterov": False, "weight_decay": 0.01},
]


@pytest.mark.parametrize("options", SGD)
@pytest.mark.parametrize("muon", [True, False])
def test_all_else_is_torchs_sgd_in_every_bit(options: dict[str, Any], muon: bool) -> None:
    ours, theirs = network(), network()
    mine = MuonSGD(ours.parameters(), lr=0.1, muon=muon, **options)
    plain = torch.optim.SGD(theirs.parameters(), lr=0.1, **options)
    for step in range(3):
        for module, optimizer in ((ours, mine), (theirs, plain)):
            gradients(module, step)
            optimizer.step()
    same = [torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True)]
    assert same == [not muon or parameter.ndim < 2 for parameter in ours.parameters()]


def test_without_momentum_the_gradient_itself_is_orthogonalised() -> None:
    module = network()
    weight = module.get_parameter("5.weight")
    before = weight.detach().clone()
    optimizer = MuonSGD(module.parameters(), lr=1.0, momentum=0.0, nesterov=False)
    gradients(module, 0)
    assert weight.grad is not None
    gradient = weight.grad.clone()
    optimizer.step()
    assert torch.allclose(before - weight, orthogonalize(gradient[None], 5)[0], atol=1e-5)
    assert torch.equal(weight.grad, gradient)


def test_a_run_that_is_loaded_goes_on_in_the_same_bits(tmp_path: Path) -> None:
    groups = [{"match": "5.*", "muon": False, "lr": 0.2}, {"match": "[01].*", "ns_steps": 3, "normalize_weights": True}]
    section = OptimizerConfig.model_validate({"name": "MuonSGD", "lr": 0.1, "param_groups": groups})
    whole = network().to(memory_format=torch.channels_last)
    optimizer = build_optimizer(section, whole)
    for step in range(6):
        if step == 3:
            torch.save({"module": whole.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
        gradients(whole, step)
        optimizer.step()
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed = network().to(memory_format=torch.channels_last)
    resumed.load_state_dict(state["module"])
    optimizer = build_optimizer(section, resumed)
    optimizer.load_state_dict(state["optimizer"])
    assert [group["ns_steps"] for group in optimizer.param_groups] == [5, 3, 5]
    for step in range(3, 6):
        gradients(resumed, step)
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_parameters_without_a_gradient_are_left_alone() -> None:
    module = network()
    before = copy.deepcopy(module)
    optimizer = MuonSGD(module.parameters(), lr=0.1, normalize_weights=True)
    gradients(module, 0)
    module[0].weight.grad = module[0].bias.grad = None
    optimizer.step()
    same = [torch.equal(a, b) for a, b in zip(module.parameters(), before.parameters(), strict=True)]
    assert same == [True, True, *[False] * 8]


class NothingLeavesTheDevice(TorchDispatchMode):
    """Fails where a value is read from a tensor, for which a GPU would have to be waited for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_a_step_waits_for_no_device() -> None:
    module = network()
    optimizer = MuonSGD(module.parameters(), lr=0.1, normalize_weights=True, weight_decay=0.1)
    with NothingLeavesTheDevice():  # type: ignore[no-untyped-call]
        for step in range(2):
            gradients(module, step)
            optimizer.step()
    with NothingLeavesTheDevice(), pytest.raises(AssertionError):  # type: ignore[no-untyped-call]
        torch.ones(1).sum().item()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr: got -1.0, must be >= 0"),
        ({"momentum": 0.0}, "nesterov: got true, but momentum is 0"),
        ({"param_groups": [{"match": "0.*", "ns_steps": 0}]}, "param_groups.0 MuonSGD: ns_steps: got 0, must be >= 1"),
        ({"weight_decay": float("nan")}, "weight_decay: got nan"),
    ],
)
def test_what_has_no_meaning_is_refused(options: dict[str, Any], message: str) -> None:
    section = OptimizerConfig.model_validate({"name": "MuonSGD", **options})
    with pytest.raises(UserError, match=message):
        build_optimizer(section, network())


MUON = (
    "optimizer={name: MuonSGD, lr: 0.1, momentum: 0.6, ns_steps: 3, normalize_weights: true, weight_decay: 1e-3,"
    " param_groups: [{match: 'classifier.6.*', lr: 0.02, muon: false}]}"
)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("muon") / "images"
    tiny.make_images(root)
    return root


def trained(images: Path, cwd: Path, world_size: int, *changes: str) -> Path:
    cwd.mkdir()
    arguments = tiny.arguments(images, 2, 4, MUON, "model.dropout=0.0", *changes)
    assert ranks.train(arguments, world_size=world_size, cwd=cwd) == [0] * world_size, ranks.console(cwd)
    return cwd


def test_two_ranks_train_what_one_does(tmp_path: Path, images: Path) -> None:
    one, two = (trained(images, tmp_path / str(size), size) for size in (1, 2))
    losses = [[row["loss"] for row in tiny.rows(cwd)] for cwd in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert losses[0][0] != losses[0][-1]


@pytest.mark.slow
def test_elastic_runs_are_the_same_in_every_bit(tmp_path: Path, images: Path) -> None:
    one, two = (trained(images, tmp_path / str(size), size, "train.reproducibility=elastic") for size in (1, 2))
    tiny.assert_same_result(two, one)
