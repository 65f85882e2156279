"""model.unfreeze: what is frozen at each step, which elements are refused, and that optimizers bear the frozen ones."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from trainlib.config import ModelConfig, OptimizerConfig, load_config
from trainlib.config.libraries import catalog
from trainlib.errors import ConfigError, UserError
from trainlib.models import Classifier, build_model, set_train_mode
from trainlib.models.freezing import unfreeze_stages
from trainlib.models.optimizers.build import build_optimizer

EPOCH = 10  # steps


def built(**model: Any) -> tuple[ModelConfig, Classifier]:
    config = ModelConfig.model_validate({"name": "resnet18", **model})
    with torch.device("meta"):
        return config, build_model(config, 5, 64)


def elements(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"match": match, "at": at} for match, at in pairs]


def trained(classifier: Classifier) -> set[str]:
    return {name for name, p in classifier.module.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("freeze", ["backbone", ["conv1.*", "bn1.*", "layer*"]])
def test_each_parameter_is_frozen_until_its_step(freeze: Any) -> None:
    config, classifier = built(freeze=freeze, unfreeze=elements(("layer4.*", "2ep"), ("layer[34].*", "35st")))
    names = [name for name, _ in classifier.module.named_parameters()]
    starts = {name: 20 if name.startswith("layer4.") else 35 for name in names if name.startswith(("layer3", "layer4"))}
    starts |= {"fc.weight": 0, "fc.bias": 0}
    stages = unfreeze_stages(config, classifier, EPOCH)
    stages.train_all(classifier.module)
    assert trained(classifier) == set(starts)
    for step in (0, 19, 20, 34, 35, 99, 0):
        now = stages.enter(classifier, stages.of(step))
        set_train_mode(now)
        assert trained(now) == {name for name in starts if starts[name] <= step}, step
        for name, module in now.module.named_modules():
            own = [name for name, _ in module.named_parameters()]
            if isinstance(module, nn.BatchNorm2d):
                assert module.training == (f"{name}.weight" in trained(now)), (step, name)
            elif name and own and "." not in name:
                assert module.training == any(f"{name}.{one}" in trained(now) for one in own), (step, name)


def test_modules_without_parameters_follow_what_they_lie_in() -> None:
    """VGG's dropout lies beside its linear layers; EfficientNet's beside the last layer, which is never frozen."""
    config, classifier = built(name="vgg16", width=0.1, freeze="backbone", unfreeze=elements(("classifier.*", "1ep")))
    stages = unfreeze_stages(config, classifier, EPOCH)
    dropouts = {name for name, module in classifier.module.named_modules() if isinstance(module, nn.Dropout)}
    assert dropouts
    assert dropouts <= classifier.frozen
    assert not dropouts & stages.enter(classifier, 1).frozen
    assert {"features", "features.0", "features.1"} <= stages.enter(classifier, 1).frozen

    config, classifier = built(name="efficientnet_b0", freeze="backbone", unfreeze=elements(("*", "1ep")))
    stages = unfreeze_stages(config, classifier, EPOCH)
    assert "classifier.0" in classifier.frozen
    assert stages.enter(classifier, 1).frozen == frozenset()
    assert stages.enter(classifier, 0).frozen == classifier.frozen


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"unfreeze": elements(("layer9.*", "1ep"))}, "unfreeze.0.match: 'layer9.*' matches no parameter; there are"),
        ({"unfreeze": elements(("layr4.*", "1ep"))}, "did you mean 'layer4.*'?"),
        ({"unfreeze": elements(("layer4", "1ep"))}, "did you mean 'layer4.*'?"),
        ({"unfreeze": elements(("Layer4.*", "1ep"))}, "did you mean 'layer4.*'?"),
        ({"unfreeze": elements(("fc.*", "1ep"))}, "trained from the start (first: fc.weight)"),
        ({"unfreeze": elements(("head", "1ep"))}, "trained from the start (first: fc.weight)"),
        (
            {"freeze": ["layer4.*"], "unfreeze": elements(("layer3.*", "1ep"))},
            "unfreeze.0.match: 'layer3.*' matches only parameters that are trained from the start",
        ),
        (
            {"unfreeze": elements(("layer4.1.*", "2ep"), ("layer4.*", "1ep"))},
            "unfreeze.0.match: 'layer4.1.*' matches only parameters that are trained before step 20 by other elements",
        ),
        ({"unfreeze": elements(("layer4.*", "10st"), ("layer4.*", "1ep"))}, "unfreeze.1.match"),
    ],
)
def test_an_element_that_changes_nothing_is_refused(model: dict[str, Any], message: str) -> None:
    config, classifier = built(**{"freeze": "backbone", **model})
    with pytest.raises(UserError) as caught:
        unfreeze_stages(config, classifier, EPOCH)
    assert "model.unfreeze." in str(caught.value)
    assert message in str(caught.value)


def test_an_element_behind_the_end_is_told() -> None:
    config, classifier = built(freeze="backbone", unfreeze=elements(("layer4.*", "2ep"), ("layer3.*", "10ep")))
    stages = unfreeze_stages(config, classifier, EPOCH)
    assert stages.describe_unreached(101) is None
    assert "15 parameter tensors would be trained after step 100, and the run ends after step 100" in str(
        stages.describe_unreached(100)
    )
    assert "30 parameter tensors would be trained after step 20" in str(stages.describe_unreached(20))


def test_the_head_may_be_unfrozen_too() -> None:
    config, classifier = built(freeze=["fc.*"], unfreeze=elements(("head", "99st")))
    stages = unfreeze_stages(config, classifier, EPOCH)
    assert trained(stages.enter(classifier, stages.of(99))) > {"fc.weight", "fc.bias"}
    assert not trained(stages.enter(classifier, stages.of(98))) & {"fc.weight", "fc.bias"}


@pytest.mark.parametrize("at", ["0ep", "3", "3 epochs", "1.5ep", 3])
def test_durations_are_those_of_the_rest_of_the_configuration(at: Any) -> None:
    with pytest.raises(ConfigError, match=r"model.unfreeze.0.at: got .*, must be a duration"):
        load_config(["quickstart", f"model={{freeze: backbone, unfreeze: [{{match: a, at: {at}}}]}}"])


def test_a_missing_duration_or_pattern_is_told() -> None:
    with pytest.raises(ConfigError, match=r"model.unfreeze.0.at: is missing"):
        load_config(["quickstart", "model={freeze: backbone, unfreeze: [{match: a}]}"])
    with pytest.raises(ConfigError, match=r"model.unfreeze: is given, but model.freeze is null"):
        load_config(["quickstart", "model.unfreeze=[{match: a, at: 1ep}]"])


@pytest.mark.parametrize("name", catalog.names("optimizer"))
def test_every_optimizer_leaves_parameters_without_gradients_alone(name: str) -> None:
    """Weight decay does not touch them, and their state begins with their first gradient."""
    torch.manual_seed(0)
    biased = name != "Muon"  # which takes matrices alone
    both, alone = (
        nn.ModuleDict({"late": nn.Linear(3, 3, bias=biased), "early": nn.Linear(3, 2, bias=biased)}) for _ in range(2)
    )
    alone.load_state_dict(both.state_dict())
    args = {"weight_decay": 0.1} if "weight_decay" in catalog.arguments("optimizer", name) else {}
    groups = [{"match": "late.*", "lr": 0.01}]
    config = OptimizerConfig.model_validate({"name": name, "lr": 0.01, **args, "param_groups": groups})
    optimizer = build_optimizer(config, both)
    before = {key: value.clone() for key, value in both["late"].state_dict().items()}
    for _ in range(3):
        for parameter in both["early"].parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    assert all(torch.equal(value, before[key]) for key, value in both["late"].state_dict().items())

    fresh = build_optimizer(config, alone)
    for module, stepped in ((both, optimizer), (alone, fresh)):
        for parameter in module.parameters():
            parameter.grad = torch.full_like(parameter, 0.5)
        stepped.step()
    for key, value in both["late"].state_dict().items():
        assert torch.equal(value, alone["late"].state_dict()[key]), f"{name} counts steps without gradients"
    assert all(math.isfinite(float(value.sum())) for value in both.state_dict().values())
