"""The recipes of configs/recipes, ingredient by ingredient, against the scripts that they come from."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from recipe_ingredients import INGREDIENTS
from torch import nn
from torch.optim import lr_scheduler
from torchvision.ops._utils import split_normalization_params

from trainlib.config import Config, load_config, shipped_configs
from trainlib.data.batches.plan import Plan
from trainlib.models import build_model
from trainlib.models.freezing import unfreeze_stages
from trainlib.models.optimizers.build import build_optimizer
from trainlib.models.optimizers.schedule import Schedule
from trainlib.models.weights.ema import update_decay

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
OF_TORCHVISION = {
    "resnet50_v2": "ResNet50_Weights.IMAGENET1K_V2",
    "efficientnet_v2_s": "EfficientNet_V2_S_Weights.IMAGENET1K_V1",
    "mobilenet_v3_large": "MobileNet_V3_Large_Weights.IMAGENET1K_V1",
    "vit_b_16": "ViT_B_16_Weights.IMAGENET1K_V1",
}
OF_TIMM = ("resnet50_a1", "resnet50_a2", "resnet50_a3")


def value_at(config: Config, key: str) -> Any:
    value: Any = config.model_dump()
    for part in key.split("."):
        value = value[part]
    return value


@pytest.mark.parametrize("name", INGREDIENTS)
def test_every_ingredient_is_that_of_the_source(name: str) -> None:
    config = load_config([name])
    found = {key: value_at(config, key) for key in INGREDIENTS[name]}
    assert found == INGREDIENTS[name]
    assert config.data.val_fraction == 0
    assert value_at(config, "data.normalize") == IMAGENET


def test_every_file_of_the_folder_is_a_recipe_with_a_test() -> None:
    recipes = {name for name, path in shipped_configs().items() if path.parent.name == "recipes"}
    assert recipes == {*INGREDIENTS, "finetune_small_data", "linear_probe"}


@pytest.mark.parametrize("name", OF_TORCHVISION)
def test_evaluation_and_published_accuracy_are_those_of_torchvisions_weights(name: str) -> None:
    weights = torchvision.models.get_weight(OF_TORCHVISION[name])
    config, transform = load_config([name]), weights.transforms()
    assert [config.data.image_size] == transform.crop_size
    assert [config.data.resize.size] == transform.resize_size
    assert config.data.resize.interpolation == transform.interpolation.value
    assert value_at(config, "data.normalize") == {"mean": transform.mean, "std": transform.std}
    header = shipped_configs()[name].read_text()
    for metric in ("acc@1", "acc@5"):
        assert f"{weights.meta['_metrics']['ImageNet-1K'][metric]:.3f} % top" in header


@pytest.mark.parametrize("name", OF_TIMM)
def test_evaluation_is_that_of_the_paper(name: str) -> None:
    """Its test crop of 0.95 at 224 pixels, through timm's own transform."""
    create_transform = pytest.importorskip("timm.data").create_transform
    resize, crop, *_ = create_transform(224, interpolation="bicubic", crop_pct=0.95).transforms
    config = load_config([name])
    assert (config.data.resize.size, config.data.image_size) == (resize.size, crop.size[0])
    assert config.data.resize.interpolation == resize.interpolation.value


def rates_of(config: Config, epoch_steps: int = 2) -> list[float]:
    """The learning rate of the first step of each epoch."""
    assert config.train.epochs is not None
    optimizer = build_optimizer(config.optimizer, nn.Linear(2, 2))
    total = config.train.epochs * epoch_steps
    schedule = Schedule(config.scheduler, optimizer, total_steps=total, steps_per_epoch=epoch_steps)
    rates = []
    for _ in range(config.train.epochs):
        rates.append(schedule.lr)
        for _ in range(epoch_steps):
            optimizer.step()
            schedule.after_step()
        schedule.after_epoch({})
    return rates


def torchvisions(epochs: int, lr: float, warmup: int, start: float) -> list[float]:
    """What torchvision's train.py steps once an epoch: a linear warm-up, then a cosine over the other epochs."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    cosine = lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs - warmup)
    linear = lr_scheduler.LinearLR(optimizer, start_factor=start, total_iters=warmup)
    schedule = lr_scheduler.SequentialLR(optimizer, [linear, cosine], milestones=[warmup])
    rates = []
    for _ in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


RATES: dict[str, Callable[[], list[float]]] = {
    "resnet50_v2": lambda: torchvisions(600, 0.5, 5, 0.01),
    "efficientnet_v2_s": lambda: torchvisions(600, 0.5, 5, 0.01),
    "vit_b_16": lambda: torchvisions(300, 0.003, 30, 0.033),
    "mobilenet_v3_large": lambda: [0.064 * 0.973 ** (epoch // 2) for epoch in range(600)],
}


@pytest.mark.parametrize("name", RATES)
def test_the_learning_rate_of_every_epoch_is_that_of_torchvisions_script(name: str) -> None:
    assert rates_of(load_config([name])) == pytest.approx(RATES[name](), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize(("name", "gap"), [("resnet50_a1", 0.008), ("resnet50_a2", 0.016), ("resnet50_a3", 0.047)])
def test_the_learning_rate_of_every_epoch_is_near_that_of_timms_script(name: str, gap: float) -> None:
    """timm's cosine begins with the first epoch, which the warm-up hides; ours behind it."""
    cosine = pytest.importorskip("timm.scheduler.cosine_lr").CosineLRScheduler
    config = load_config([name])
    assert config.train.epochs is not None
    peak, ours = value_at(config, "optimizer.lr"), rates_of(config)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=peak)
    timms = cosine(optimizer, config.train.epochs, lr_min=1e-6, warmup_t=5, warmup_lr_init=1e-4)
    gaps = []
    for epoch, rate in enumerate(ours):
        timms.step(epoch)
        expected = optimizer.param_groups[0]["lr"]
        if epoch < 5:
            assert rate == pytest.approx(expected, rel=1e-6)
        gaps.append(abs(rate - expected) / peak)
    assert 0.9 * gap < max(gaps) < gap


@pytest.mark.parametrize("name", ["resnet50_v2", "efficientnet_v2_s", "vit_b_16"])
def test_the_average_is_that_of_torchvisions_script(name: str) -> None:
    """Its defaults, a decay of 0.99998 and 32 steps, by the formula of its train.py."""
    from trainlib.training.build.training import decay_of

    config = load_config([name])
    average, train = config.train.average, config.train
    assert average is not None
    assert train.epochs is not None
    assert (average.decay, average.every, average.scale_decay) == (0.99998, 32, True)
    epoch_steps = 10
    plan = Plan(
        torch.arange(epoch_steps * train.batch_size), 0, train.batch_size, True, True, train.epochs * epoch_steps
    )
    expected = 1 - min(1.0, (1 - 0.99998) * train.batch_size * 32 / train.epochs)
    warmup = (30 if name == "vit_b_16" else 5) * epoch_steps
    of = decay_of(average, train.batch_size, plan)
    for update in range(1, 100):
        in_warmup = (update - 1) * 32 <= warmup
        assert of(update) == pytest.approx(0.0 if in_warmup else expected, abs=1e-12)
        assert of(update) == pytest.approx(update_decay(update, expected, 32, warmup), abs=1e-12)


@pytest.mark.parametrize(("name", "head_epochs", "scale"), [("finetune", 1, 0.3), ("finetune_small_data", 5, 0.3)])
def test_the_last_layer_learns_first_and_then_all_at_a_lower_rate(name: str, head_epochs: int, scale: float) -> None:
    """The rates of this project's own recipes, and what learns, beside the formulas that their comments tell."""
    config, epoch_steps = load_config([name]), 40
    assert config.train.epochs is not None
    assert config.train.keep_batchnorm
    assert config.data.augment.crop is not None
    assert config.data.augment.crop.scale == [0.5, 1.0]
    with torch.device("meta"):
        model = config.model.model_copy(update={"weights": None})
        classifier = build_model(model, 7, config.data.image_size)
    stages = unfreeze_stages(model, classifier, epoch_steps)
    boundary = head_epochs * epoch_steps
    counts = [
        sum(parameter.requires_grad for parameter in stages.enter(classifier, stages.of(step)).module.parameters())
        for step in (0, boundary - 1, boundary, config.train.epochs * epoch_steps - 1)
    ]
    assert counts[0] == counts[1] == 2
    assert counts[1] < counts[2] <= counts[3] == len(list(classifier.module.parameters()))
    stages.train_all(classifier.module)
    total = config.train.epochs * epoch_steps
    optimizer = build_optimizer(config.optimizer, classifier.module, classifier.heads)
    head, last_block = optimizer.param_groups[0], optimizer.param_groups[-1]
    schedule = Schedule(config.scheduler, optimizer, total_steps=total, steps_per_epoch=epoch_steps)
    for step in range(total):
        expected = rate_of_own(name, step, boundary, total)
        assert head["lr"] == pytest.approx(1e-3 * expected, abs=1e-12)
        unscaled = last_block.get("unscaled_lr", last_block["lr"])
        assert unscaled == pytest.approx(1e-3 * scale * expected, abs=1e-12)
        optimizer._opt_called = True  # type: ignore[attr-defined]
        schedule.after_step()
        if (step + 1) % epoch_steps == 0:
            schedule.after_epoch({})


def rate_of_own(name: str, step: int, boundary: int, total: int) -> float:
    """What the peak is multiplied by: 1 for the head, then a warm-up of 20 steps, and half a cosine to the end."""
    if name == "finetune_small_data":
        return 0.5 * (1 + math.cos(math.pi * step / total))
    if step < boundary:
        return 1.0
    if step < boundary + 20:
        return 0.1 + 0.9 * (step - boundary) / 20
    return 0.5 * (1 + math.cos(math.pi * (step - boundary - 20) / (total - boundary - 20)))


def names_in(groups: list[dict[str, Any]], module: nn.Module) -> dict[float, set[str]]:
    """Names of parameters by their weight decay."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    found: dict[float, set[str]] = {}
    for group in groups:
        found.setdefault(group["weight_decay"], set()).update(names[id(p)] for p in group["params"])
    return found


@pytest.mark.parametrize("name", INGREDIENTS)
def test_the_groups_are_those_of_the_script(name: str) -> None:
    config = load_config([name])
    if name in OF_TIMM:
        pytest.importorskip("timm")
    with torch.device("meta"):
        module = build_model(config.model, 1000, config.data.image_size).module
    decay = value_at(config, "optimizer.weight_decay")
    if name in OF_TIMM:
        from timm.optim import param_groups_weight_decay

        theirs = param_groups_weight_decay(module, decay)
    elif config.optimizer.no_decay == "norm":
        theirs = [
            {"params": params, "weight_decay": of_group}
            for params, of_group in zip(split_normalization_params(module), (0.0, decay), strict=True)
        ]
    else:
        theirs = [{"params": list(module.parameters()), "weight_decay": decay}]
    ours = build_optimizer(config.optimizer, module).param_groups
    assert names_in(ours, module) == names_in(theirs, module)
    assert sum(len(names) for names in names_in(ours, module).values()) == len(list(module.parameters()))
