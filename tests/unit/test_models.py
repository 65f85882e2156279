"""Models: architectures, heads and freezing against torchvision's own, and steps that must not move what is frozen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from tiers import quick_or_soak
from torch import Tensor, nn

from trainlib.config import ModelConfig
from trainlib.errors import UserError
from trainlib.models import Classifier, build_model, check_forward, set_train_mode

META = torch.device("meta")
TINY_VGG: dict[str, Any] = {"name": "vgg16", "width": 0.02}

# One of each torchvision family, the smallest; with the head that each kind of head change leaves.
FAMILIES = [
    ("alexnet", "classifier.6", "classifier.7"),
    ("convnext_tiny", "classifier.2", "classifier.3"),
    ("densenet121", "classifier", "classifier.1"),
    ("efficientnet_b0", "classifier.1", "classifier.2"),
    ("efficientnet_v2_s", "classifier.1", "classifier.2"),
    ("googlenet", "fc", "fc.1"),
    ("inception_v3", "fc", "fc.1"),
    ("maxvit_t", "classifier.5", "classifier.6"),
    ("mnasnet0_5", "classifier.1", "classifier.2"),
    ("mobilenet_v2", "classifier.1", "classifier.2"),
    ("mobilenet_v3_small", "classifier.3", "classifier.4"),
    ("regnet_y_400mf", "fc", "fc.1"),
    ("resnet18", "fc", "fc.1"),
    ("resnext50_32x4d", "fc", "fc.1"),
    ("shufflenet_v2_x0_5", "fc", "fc.1"),
    ("squeezenet1_1", "classifier.1", "classifier.1.1"),
    ("swin_t", "head", "head.1"),
    ("swin_v2_t", "head", "head.1"),
    ("vgg11_bn", "classifier.6", "classifier.7"),
    ("vit_b_32", "heads.head", "heads.1"),
]
LARGE = ("densenet121", "efficientnet_v2_s", "inception_v3", "maxvit_t", "swin_v2_t")


def section(**values: Any) -> ModelConfig:
    return ModelConfig.model_validate(values)


def on_meta(num_classes: int = 10, image_size: int = 224, **values: Any) -> Classifier:
    with META:
        return build_model(section(**values), num_classes, image_size)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def train(classifier: Classifier, image_size: int, steps: int = 2) -> dict[str, Tensor]:
    """A few plain SGD steps on noise; returns the tensors as they were before."""
    before = snapshot(classifier.module)
    optimizer = torch.optim.SGD([p for p in classifier.module.parameters() if p.requires_grad], lr=0.1)
    for _ in range(steps):
        set_train_mode(classifier)
        loss = classifier.module(torch.randn(4, 3, image_size, image_size)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return before


def test_vgg16_parameter_counts() -> None:
    assert count(on_meta(1000, name="vgg16").module) == 138_357_544
    assert count(on_meta(10, name="vgg16").module) == 134_301_514
    assert count(on_meta(10, name="vgg16", head="append").module) == 138_367_554


@pytest.mark.slow
def test_vgg16_of_width_one_is_torchvisions_to_the_bit() -> None:
    def probes(module: nn.Module) -> dict[str, Tensor]:
        """Some of every tensor, so that two models of half a gigabyte need not be there at once."""
        return {name: tensor.flatten()[:: max(1, tensor.numel() // 5000)].clone() for name, tensor in state(module)}

    def state(module: nn.Module) -> list[tuple[str, Tensor]]:
        return [(name, tensor) for name, tensor in module.state_dict().items() if not name.startswith("classifier.6")]

    torch.manual_seed(4)
    ours = probes(build_model(section(name="vgg16", dropout=0.25), 10, 32).module)
    torch.manual_seed(4)
    theirs = probes(torchvision.models.vgg16(dropout=0.25))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_vgg16_width_scales_every_layer() -> None:
    module = on_meta(name="vgg16", width=0.25).module
    shapes = {name: tuple(tensor.shape) for name, tensor in module.named_parameters() if name.endswith("weight")}
    channels = [shape[0] for name, shape in shapes.items() if name.startswith("features")]
    assert channels == [16, 16, 32, 32, 64, 64, 64, 128, 128, 128, 128, 128, 128]
    linear = [shape for name, shape in shapes.items() if name.startswith("classifier")]
    assert linear == [(1024, 128 * 49), (1024, 1024), (10, 1024)]
    assert [p.shape[0] for p in on_meta(name="vgg16", width=1e-6).module.get_submodule("features").parameters()] == [
        1
    ] * 26


def test_vgg16_dropout_is_the_configured_one() -> None:
    module = on_meta(name="vgg16", dropout=0.125).module
    assert [child.p for child in module.modules() if isinstance(child, nn.Dropout)] == [0.125, 0.125]


@pytest.mark.parametrize("values", [TINY_VGG, {"name": "squeezenet1_1"}], ids=["linear", "convolution"])
@pytest.mark.parametrize("head", ["replace", "append"])
def test_new_head_receives_gradient(values: dict[str, Any], head: str) -> None:
    torch.manual_seed(0)
    classifier = build_model(section(**values, head=head), 10, 32)
    layer = classifier.module.get_submodule(classifier.heads[0])
    classifier.module(torch.randn(4, 3, 32, 32)).sum().backward()
    gradients = [parameter.grad for parameter in layer.parameters()]
    assert len(gradients) == 2
    assert all(gradient is not None and bool(gradient.any()) for gradient in gradients)


@pytest.mark.parametrize(
    ("name", "replaced", "appended"),
    quick_or_soak([family for family in FAMILIES if family[0] not in LARGE][::6], FAMILIES),
    ids=[family[0] for family in FAMILIES],
)
@pytest.mark.filterwarnings("error")
def test_every_family_takes_a_new_head(name: str, replaced: str, appended: str) -> None:
    image_size = 299 if name == "inception_v3" else 224
    classifier = on_meta(7, image_size, name=name)
    assert classifier.heads == (replaced,)
    check_forward(classifier, image_size, 7)
    behind = on_meta(7, image_size, name=name, head="append")
    assert behind.heads == (appended,)
    check_forward(behind, image_size, 7)
    new = sum(p.numel() for p in behind.module.get_submodule(appended).parameters())
    assert new == 1000 * 7 + (name != "maxvit_t") * 7  # MaxViT's last layer has no bias
    assert {tensor.device for tensor in behind.module.state_dict().values()} == {META}


@pytest.mark.parametrize(("name", "image_size"), [("vit_b_32", 64), ("maxvit_t", 448), ("resnet18", 32)])
def test_other_image_sizes(name: str, image_size: int) -> None:
    check_forward(on_meta(10, image_size, name=name), image_size, 10)


@pytest.mark.parametrize("image_size", [8, 27, 32, 40])
def test_cifar10_cnn_is_the_classic_one(image_size: int) -> None:
    torch.manual_seed(0)
    classifier = build_model(section(name="cifar10_cnn"), 10, image_size)
    torch.manual_seed(0)
    side = image_size // 8
    layers = [nn.Conv2d(3, 32, 5, padding=2), nn.MaxPool2d(2), nn.Conv2d(32, 32, 5, padding=2), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(32, 64, 5, padding=2), nn.MaxPool2d(2), nn.Flatten()]
    plain = nn.Sequential(*layers, nn.Linear(64 * side**2, 64), nn.Linear(64, 10))
    images_NCHW = torch.randn(2, 3, image_size, image_size)
    assert torch.equal(classifier.module(images_NCHW), plain(images_NCHW))
    assert classifier.heads == ("classifier.1",)


def test_cifar10_cnn_has_nothing_to_append_to() -> None:
    with pytest.raises(UserError, match=r"model.head: append makes sense only for a model published with 1000 classes"):
        on_meta(name="cifar10_cnn", head="append", image_size=32)


def test_initial_weights_come_from_the_global_generator() -> None:
    def weights(seed: int) -> Tensor:
        torch.manual_seed(seed)
        module = build_model(section(name="resnet18"), 10, 32).module
        return nn.utils.parameters_to_vector(module.parameters()).detach()

    first = weights(1)
    assert torch.equal(weights(1), first)
    assert not torch.equal(weights(2), first)


@pytest.mark.parametrize("name", ["cifar10_cnn", "vgg16", "alexnet"])
def test_frozen_features_do_not_move(name: str) -> None:
    values = TINY_VGG if name == "vgg16" else {"name": name}
    image_size = 64 if name == "alexnet" else 32
    classifier = build_model(section(**values, freeze="features"), 10, image_size)
    before, after = train(classifier, image_size), classifier.module.state_dict()
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert moved == {name for name in after if not name.startswith("features.")}


def test_frozen_batchnorm_does_not_move() -> None:
    classifier = build_model(section(name="resnet18", freeze="backbone"), 10, 32)
    before, after = train(classifier, 32), classifier.module.state_dict()
    assert {name for name in after if not torch.equal(after[name], before[name])} == {"fc.weight", "fc.bias"}


def test_frozen_dropout_drops_nothing_and_eval_mode_is_undone() -> None:
    classifier = build_model(section(**TINY_VGG, freeze="backbone"), 10, 32)
    images_NCHW = torch.randn(2, 3, 32, 32)
    classifier.module.eval()
    expected = classifier.module(images_NCHW)
    set_train_mode(classifier)
    assert torch.equal(classifier.module(images_NCHW), expected)
    free = build_model(section(**TINY_VGG), 10, 32)
    free.module.eval()
    set_train_mode(free)
    assert all(module.training for module in free.module.modules())
    assert free.frozen == frozenset()


@pytest.mark.parametrize("head", ["replace", "append"])
@pytest.mark.parametrize("name", ["vit_b_32", "swin_t", "resnet18", "vgg11"])
def test_backbone_is_everything_but_the_head(name: str, head: str) -> None:
    """Also parameters outside of any leaf module: class tokens, position embeddings, fused attention weights."""
    classifier = on_meta(name=name, head=head, freeze="backbone")
    learning = {name for name, parameter in classifier.module.named_parameters() if parameter.requires_grad}
    assert learning == {f"{classifier.heads[0]}.weight", f"{classifier.heads[0]}.bias"}
    in_train_mode = {name for name, module in classifier.module.named_modules() if module.training}
    assert classifier.heads[0] in in_train_mode
    assert all(classifier.heads[0].startswith(name) for name in in_train_mode)


def test_freeze_features_needs_features() -> None:
    with pytest.raises(
        UserError, match=r"model.freeze: features .* ResNet has conv1, bn1, .*, fc: use freeze: backbone"
    ):
        on_meta(name="resnet18", freeze="features")


def test_patterns_freeze_parameters_and_modules_that_are_frozen_as_a_whole() -> None:
    classifier = on_meta(name="resnet18", freeze=["conv1.*", "layer1.*", "layer2.0.bn1.weight", "*.bn2.*"])
    learning = {name for name, parameter in classifier.module.named_parameters() if parameter.requires_grad}
    frozen = {name for name, _ in classifier.module.named_parameters()} - learning
    assert "layer2.0.bn1.weight" in frozen
    assert {"layer2.0.bn1.bias", "layer2.0.conv1.weight", "fc.weight", "bn1.weight"} <= learning
    in_eval_mode = {name for name, module in classifier.module.named_modules() if not module.training}
    assert {"conv1", "layer1", "layer1.1.relu", "layer4.1.bn2"} <= in_eval_mode  # what has no parameters, too
    assert not {"layer2", "layer2.0", "layer2.0.bn1", "fc", ""} & in_eval_mode
    assert {name for name in frozen if name.startswith(("layer3", "layer4"))} == {
        f"layer{stage}.{block}.bn2.{kind}" for stage in (3, 4) for block in (0, 1) for kind in ("weight", "bias")
    }


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        (["layer9.*"], "model.freeze: 'layer9.[*]' matches no parameter; there are 62: conv1.weight, "),
        (["[!f]*", "head"], "match all 62 parameters: nothing is trained"),
    ],
)
def test_patterns_that_freeze_nothing_or_all_are_refused(freeze: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        on_meta(name="resnet18", freeze=freeze)


@pytest.mark.parametrize(
    ("values", "image_size", "message"),
    [
        ({"name": "inception_v3"}, 32, "data.image_size: Inception3 cannot take 2 images of 32 x 32"),
        ({"name": "alexnet"}, 32, "data.image_size: AlexNet cannot take 2 images of 32 x 32"),
        ({"name": "vit_b_16"}, 100, "model vit_b_16: .*data.image_size 100"),
        ({"name": "maxvit_t"}, 100, "model maxvit_t: .*data.image_size 100"),
        ({"name": "resnet18", "widht": 2}, 32, "model resnet18: .*unexpected keyword argument 'widht'"),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else None,
)
def test_impossible_models_are_told(values: dict[str, Any], image_size: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_forward(on_meta(10, image_size, **values), image_size, 10)


def test_check_forward_leaves_a_real_model_alone() -> None:
    classifier = build_model(section(name="shufflenet_v2_x0_5"), 10, 32)
    before = snapshot(classifier.module)
    check_forward(classifier, 32, 10)
    assert all(torch.equal(tensor, before[name]) for name, tensor in classifier.module.state_dict().items())
    with pytest.raises(UserError, match=r"ShuffleNetV2 gives \[2, 10\] for 2 images, must give \[2, 11\]"):
        check_forward(classifier, 32, 11)


def test_a_torchvision_for_another_torch_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("trainlib.models.sources.torchvision_models.import_module", broken)
    with pytest.raises(UserError, match=r"torchvision does not load beside torch .*nms.* from the same index"):
        build_model(ModelConfig(name="resnet18"), 3, 64)
