"""Activations that are computed again: less memory, the same bits, and running statistics that move once."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
import torchvision
from tiers import quick_or_soak
from torch import Tensor, nn

from trainlib.errors import UserError
from trainlib.models.architectures.empty import empty_init
from trainlib.models.architectures.own import cifar10_cnn, vgg16
from trainlib.models.forward.recomputation import keep_activations, recompute_blocks

# The smallest of each family, with the size of its images.
TORCHVISION = {
    "alexnet": 64, "convnext_tiny": 32, "densenet121": 32, "efficientnet_b0": 32, "efficientnet_v2_s": 32,
    "googlenet": 64, "maxvit_t": 224, "mnasnet0_5": 32, "mobilenet_v2": 32, "mobilenet_v3_small": 32,
    "regnet_y_400mf": 32, "resnet18": 32, "resnext50_32x4d": 32, "shufflenet_v2_x0_5": 32, "squeezenet1_1": 64,
    "swin_t": 32, "swin_v2_t": 32, "vgg11_bn": 32, "vit_b_32": 32,
}  # fmt: skip
TIMM = {
    "test_resnet": 64, "test_vit": 160, "test_efficientnet": 64, "test_convnext": 64, "test_byobnet": 64,
    "regnety_002": 32, "densenet121": 32, "swin_tiny_patch4_window7_224": 224,
}  # fmt: skip
QUICK = [("torchvision", name) for name in ("shufflenet_v2_x0_5", "squeezenet1_1", "mobilenet_v3_small")]
QUICK += [("timm", "test_resnet"), ("timm", "test_vit"), ("timm", "test_convnext")]
ALL = [("torchvision", name) for name in TORCHVISION] + [("timm", name) for name in TIMM]


def built(source: str, name: str) -> tuple[nn.Module, int]:
    import timm

    torch.manual_seed(2)
    if source == "timm":
        arguments = {"drop_path_rate": 0.3} if name in ("test_vit", "test_convnext") else {}
        module: nn.Module = timm.create_model(name, num_classes=3, **arguments)
        return module, TIMM[name]
    size = TORCHVISION[name]
    options: dict[str, Any] = {"image_size": size} if name.startswith("vit") else {}
    options |= {"init_weights": True, "aux_logits": False} if name == "googlenet" else {}
    return torchvision.models.get_model(name, num_classes=3, **options), size


def one_pass(module: nn.Module, images_NCHW: Tensor) -> tuple[dict[str, Tensor], int]:
    """Return all that a training pass leaves, and the bytes of activations that it keeps for the backward pass."""
    kept: Counter[int] = Counter()
    own = {p.untyped_storage().data_ptr() for p in [*module.parameters(), *module.buffers()]}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    torch.manual_seed(6)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits_NC = module(images_NCHW)
    logits_NC.square().sum().backward()
    found = {"logits": logits_NC.detach(), "generator": torch.get_rng_state()}
    found |= {f"gradient of {n}": p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
    found |= {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
    return found, sum(kept.values())


@pytest.mark.parametrize(("source", "name"), quick_or_soak(QUICK, ALL), ids=lambda value: str(value))
def test_bits_are_the_same_and_memory_falls(source: str, name: str) -> None:
    """Of two passes, one after another, with dropout and BatchNorm; what is kept is counted by autograd's own hooks."""
    module, size = built(source, name)
    initial = copy.deepcopy(module.state_dict())
    images_NCHW = torch.randn(2, 3, size, size)
    expected = [one_pass(module, images_NCHW) for _ in range(2)]
    names = list(module.state_dict())
    module.zero_grad()
    module.load_state_dict(initial)
    assert recompute_blocks(module) > 1
    assert list(module.state_dict()) == names
    for results, before in expected:
        found, after = one_pass(module, images_NCHW)
        assert found.keys() == results.keys()
        for key, tensor in results.items():
            assert torch.equal(found[key], tensor), key
        assert after < 0.9 * before, (after, before)
    module.eval()
    with torch.no_grad():
        logits = module(images_NCHW)
    keep_activations(module)
    assert torch.equal(module(images_NCHW), logits)
    assert not any("forward" in part.__dict__ for part in module.modules())


@pytest.mark.parametrize("module", [cifar10_cnn(10, 32), vgg16(width=0.03)], ids=["cifar10_cnn", "vgg16"])
def test_a_plain_sequence_is_cut_into_segments(module: nn.Module) -> None:
    images_NCHW = torch.randn(2, 3, 32, 32)
    (expected, before) = one_pass(module, images_NCHW)
    module.zero_grad()
    recompute_blocks(module)
    found, after = one_pass(module, images_NCHW)
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
    assert after < before


def test_frozen_layers_keep_nothing_and_are_not_repeated() -> None:
    module, _ = built("torchvision", "resnet18")
    module.requires_grad_(False)
    module.get_submodule("fc").requires_grad_(True)
    module.get_submodule("layer4").requires_grad_(True)
    recompute_blocks(module)
    passes: Counter[str] = Counter()
    for name in ("layer1.0", "layer4.0"):
        module.get_submodule(f"{name}.conv1").register_forward_hook(lambda *_, name=name: passes.update([name]))
    module(torch.randn(2, 3, 32, 32)).sum().backward()
    assert passes == {"layer1.0": 1, "layer4.0": 2}


def test_other_layers_with_buffers_move_once() -> None:
    """Whatever a block keeps in buffers is, in the repetition, what it was in the first pass."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)
            self.act = nn.Sequential(nn.Tanh())
            self.count: Tensor
            self.register_buffer("count", torch.zeros(()))

        def forward(self, values: Tensor) -> Tensor:
            self.count += 1
            output: Tensor = self.act(self.linear(values)) * self.count.clone()
            return output

    torch.manual_seed(0)
    module = nn.Sequential(Block(), Block(), nn.Linear(4, 2))
    values = torch.randn(3, 4)
    expected, _ = one_pass(module, values)
    for buffer in module.buffers():
        buffer.zero_()
    module.zero_grad()
    recompute_blocks(module)
    found, _ = one_pass(module, values)
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
    assert float(module.get_buffer("0.count")) == 1


class Overwriting(nn.Module):
    """A block that changes its input in place."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.SiLU(inplace=True)
        self.inner = nn.Sequential(nn.Linear(4, 4))

    def forward(self, values: Tensor) -> Tensor:
        output: Tensor = self.inner(self.act(values))
        return output


def test_a_block_that_changes_its_input_is_refused() -> None:
    module = nn.Sequential(nn.Sequential(nn.Linear(4, 4)), Overwriting(), nn.Linear(4, 2))
    recompute_blocks(module)
    with pytest.raises(UserError, match="Overwriting changes its input in place"):
        module(torch.randn(3, 4))


def test_a_model_without_blocks_says_so() -> None:
    with pytest.raises(UserError, match="Sequential has no blocks, and no sequence of 3 layers or more"):
        recompute_blocks(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))


@pytest.mark.parametrize("name", ["resnet50", "vit_b_16", "swin_t", "regnet_y_400mf", "convnext_tiny"])
def test_a_block_is_what_a_model_repeats(name: str) -> None:
    expected = {"resnet50": 16, "vit_b_16": 12, "swin_t": 12, "regnet_y_400mf": 16, "convnext_tiny": 18}
    with empty_init():
        module: nn.Module = torchvision.models.get_model(name)
    assert expected[name] <= recompute_blocks(module) <= expected[name] + 8  # the stem and transitions
