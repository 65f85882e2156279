"""Parameter groups beside timm's and those of torchvision's training script: the same sets and the same rates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from tiers import quick_or_soak
from torch import nn

from trainlib.config import Config, OptimizerConfig
from trainlib.errors import UserError
from trainlib.models.architectures.empty import empty_init
from trainlib.models.optimizers.build import build_optimizer
from trainlib.models.optimizers.groups import layer_numbers
from trainlib.models.optimizers.schedule import Schedule
from trainlib.models.sources.registry import last_layers

TIMM = (
    "resnet50", "convnext_tiny", "vit_tiny_patch16_224", "deit3_small_patch16_224", "swin_tiny_patch4_window7_224",
    "tf_efficientnetv2_s", "mobilenetv3_large_100", "regnety_008", "densenet121", "mixer_s32_224", "resmlp_12_224",
    "beit_base_patch16_224", "edgenext_small", "efficientnet_lite0", "mobilevit_s", "levit_128s", "maxvit_tiny_tf_224",
    "xcit_nano_12_p16_224", "eva02_tiny_patch14_224", "pvt_v2_b0",
)  # fmt: skip
TORCHVISION = (
    "resnet50", "mobilenet_v3_large", "efficientnet_v2_s", "vit_b_16", "swin_t", "convnext_tiny", "regnet_y_400mf",
    "densenet121", "vgg16_bn", "shufflenet_v2_x1_0", "googlenet", "inception_v3", "maxvit_t", "mnasnet0_5",
    "mobilenet_v2", "resnext50_32x4d", "swin_v2_t", "wide_resnet50_2", "efficientnet_b0", "vit_h_14",
)  # fmt: skip

# Of each kind of network one; the others are tried under `make soak`.
QUICK = {
    "resnet50", "convnext_tiny", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "mobilenetv3_large_100",
    "levit_128s", "eva02_tiny_patch14_224", "mobilenet_v3_large", "vit_b_16", "swin_t", "densenet121", "vgg16_bn",
    "mnasnet0_5",
}  # fmt: skip


def of_timm(name: str) -> nn.Module:
    import timm

    with empty_init():
        module: nn.Module = timm.create_model(name)
    return module


def of_torchvision(name: str) -> nn.Module:
    with empty_init():
        module: nn.Module = torchvision.models.get_model(name)
    return module


def config(**section: Any) -> OptimizerConfig:
    return OptimizerConfig.model_validate({"name": "AdamW", "lr": 0.01, "weight_decay": 0.05, **section})


def options(module: nn.Module, groups: list[dict[str, Any]], lr: str) -> dict[str, tuple[float, float]]:
    """Weight decay and learning rate, or its scale, of each parameter."""
    name_of = {id(parameter): name for name, parameter in module.named_parameters()}
    return {name_of[id(p)]: (g["weight_decay"], g.get(lr, 1.0)) for g in groups for p in g["params"]}


@pytest.mark.parametrize("name", quick_or_soak(QUICK, TIMM))
def test_what_timm_makes(name: str) -> None:
    from timm.optim import _param_groups as timm_groups

    module = of_timm(name)
    listed: set[str] = getattr(module, "no_weight_decay", set)()
    theirs = timm_groups.param_groups_weight_decay(module, 0.05, no_weight_decay_list=listed)
    ours = build_optimizer(config(no_decay="norm_and_bias"), module).param_groups
    assert options(module, ours, "lr_scale") == options(module, theirs, "lr_scale")
    theirs = timm_groups.param_groups_layer_decay(module, 0.05, no_weight_decay_list=listed, layer_decay=0.75)
    ours = build_optimizer(config(no_decay="norm_and_bias", layer_decay=0.75), module).param_groups
    assert options(module, ours, "lr_scale") == options(module, theirs, "lr_scale")
    for group in ours:
        assert group["lr"] == 0.01 * group["lr_scale"]


@pytest.mark.parametrize("name", quick_or_soak(QUICK, TORCHVISION))
def test_what_torchvisions_training_script_makes(name: str) -> None:
    """Its norms are these classes; it asks `isinstance` of every module and takes the module's own parameters."""
    norms = (
        nn.modules.batchnorm._BatchNorm,
        nn.LayerNorm,
        nn.GroupNorm,
        nn.modules.instancenorm._InstanceNorm,
        nn.LocalResponseNorm,
    )
    module = of_torchvision(name)
    theirs = {id(p) for part in module.modules() if isinstance(part, norms) for p in part.parameters(recurse=False)}
    assert theirs
    groups = build_optimizer(config(no_decay="norm"), module).param_groups
    assert {id(p) for g in groups if g["weight_decay"] == 0 for p in g["params"]} == theirs
    assert {g["weight_decay"] for g in groups} == {0.0, 0.05}


@pytest.mark.parametrize(
    ("name", "count", "of_names"),
    [
        ("resnet50", 18, {"conv1.weight": 0, "bn1.weight": 0, "layer1.0.conv1.weight": 1, "layer4.2.bn3.bias": 16}),
        ("vit_b_16", 14, {"class_token": 0, "encoder.pos_embedding": 0, "encoder.ln.weight": 12}),
        ("swin_t", 17, {"features.0.0.weight": 0, "features.1.0.norm1.weight": 1, "norm.weight": 15}),
        ("vgg16_bn", 16, {"features.0.weight": 0, "features.1.weight": 0, "features.3.weight": 1}),
        ("regnet_y_400mf", 18, {"stem.0.weight": 0, "trunk_output.block1.block1-0.proj.0.weight": 1}),
    ],
)
def test_layers_of_other_models_are_blocks_in_order(name: str, count: int, of_names: dict[str, int]) -> None:
    module = of_torchvision(name)
    numbers = layer_numbers(module)
    assert set(numbers.values()) == set(range(count))
    assert {n: numbers[n] for n in of_names} == of_names
    assert numbers[f"{last_layers(module)[0]}.weight"] == count - 1


def test_the_head_has_a_name_of_its_own_in_patterns() -> None:
    module = of_torchvision("resnet18")
    section = config(layer_decay=0.5, param_groups=[{"match": "head", "lr": 0.1}])
    head, *rest = build_optimizer(section, module, ["fc"]).param_groups
    assert [p.shape for p in head["params"]] == [(1000, 512), (1000,)]
    assert (head["lr"], rest[0]["lr"], rest[0]["lr_scale"]) == (0.1, 0.01 * 0.5**9, 0.5**9)
    with pytest.raises(UserError, match="head, but it is not known which layer"):
        build_optimizer(section, module)


def test_a_group_that_gives_a_weight_decay_keeps_it() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    section = config(no_decay="norm", param_groups=[{"match": "1.weight", "weight_decay": 0.3}])
    groups = build_optimizer(section, module).param_groups
    assert options(module, groups, "lr") == {
        "0.weight": (0.05, 0.01), "0.bias": (0.05, 0.01), "1.weight": (0.3, 0.01), "1.bias": (0.0, 0.01)
    }  # fmt: skip


@pytest.mark.parametrize(
    "scheduler",
    [
        {"name": "CosineAnnealingLR", "interval": "step", "eta_min": 0.001},
        {"name": "OneCycleLR", "interval": "step", "max_lr": 0.05},
        {"name": "StepLR", "interval": "step", "step_size": 3},
        [
            {"name": "LinearLR", "interval": "step", "duration": "4st"},
            {"name": "CosineAnnealingLR", "interval": "step"},
        ],
    ],
)
def test_every_scheduler_is_scaled_layer_by_layer(scheduler: Any) -> None:
    """In every step each layer's rate is the one of a run without layer decay times the layer's scale, resumed too."""

    def made(**more: Any) -> tuple[torch.optim.Optimizer, Schedule]:
        module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
        whole = Config.model_validate({"name": "run", "scheduler": scheduler})
        optimizer = build_optimizer(config(**more), module)
        return optimizer, Schedule(whole.scheduler, optimizer, total_steps=12, steps_per_epoch=4)

    (plain, of_plain), (scaled, of_scaled), (resumed, of_resumed) = made(), made(layer_decay=0.5), made(layer_decay=0.5)
    for step in range(11):
        (rate,) = [group["lr"] for group in plain.param_groups]
        assert [group["lr"] for group in scaled.param_groups] == [rate * scale for scale in (0.25, 0.5, 1.0)]
        assert of_scaled.lr == rate
        if step == 5:
            of_resumed.load_state_dict(of_scaled.state_dict())
        for optimizer, schedule in ((plain, of_plain), (scaled, of_scaled), (resumed, of_resumed)):
            if step >= 5 or optimizer is not resumed:
                optimizer.step()
                schedule.after_step()
    assert [group["lr"] for group in resumed.param_groups] == [group["lr"] for group in scaled.param_groups]
