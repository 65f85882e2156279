"""The network of the fast recipe, and its whitening, against the same written out in plain PyTorch and NumPy."""

from __future__ import annotations

import itertools
import json
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ranks
import safetensors.torch
import tiny
import torch
from parts import make_dataset, resolved
from paths import REPOSITORY
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from launch.cli import main as launch
from trainlib.config import ModelConfig
from trainlib.data.images import Images, ResidentImages, StreamedImages
from trainlib.data.loader import Preprocess
from trainlib.distributed import process_group
from trainlib.errors import UserError
from trainlib.inference.trained_model import load_model
from trainlib.models import Classifier, build_model, check_forward
from trainlib.models.architectures.whitening import whitening_weights
from trainlib.training.session import build_trainer

PREPROCESS = Preprocess((0.5, 0.4, 0.3), (0.25, 0.2, 0.3), 32)


class Plain(nn.Module):
    """The network as anybody would write it; it draws its initial weights in the order of its layers."""

    def __init__(self, widths: tuple[int, int, int] = (64, 256, 256), num_classes: int = 10, dirac: bool = True):
        super().__init__()
        channels = (24, *widths)
        self.whiten = nn.Conv2d(3, 24, 2)
        self.convolutions = nn.ModuleList()
        self.norms = nn.ModuleList()
        for inputs, outputs in itertools.pairwise(channels):
            for fan_in in (inputs, outputs):
                convolution = nn.Conv2d(fan_in, outputs, 3, padding="same", bias=False)
                if dirac:
                    for channel in range(min(fan_in, outputs)):
                        convolution.weight.data[channel] = 0
                        convolution.weight.data[channel, channel, 1, 1] = 1
                self.convolutions.append(convolution)
                self.norms.append(nn.BatchNorm2d(outputs, eps=1e-12, momentum=0.4))
        self.head = nn.Linear(widths[2], num_classes, bias=False)
        self.head.weight.data /= self.head.weight.data.std()

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.whiten(x))
        for group in range(3):
            x = F.max_pool2d(self.convolutions[2 * group](x), 2)
            x = F.gelu(self.norms[2 * group](x))
            x = F.gelu(self.norms[2 * group + 1](self.convolutions[2 * group + 1](x)))
        x = x.amax(dim=(2, 3))
        return self.head(x) / x.shape[1]

    def named_as_ours(self) -> dict[str, Tensor]:
        """The state_dict under the names that checkpoints have."""
        state = {"whiten.weight": self.whiten.weight, "whiten.bias": self.whiten.bias, "head.weight": self.head.weight}
        for index, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            place = f"features.{index // 2}"
            state[f"{place}.conv{index % 2 + 1}.weight"] = convolution.weight
            state |= {f"{place}.norm{index % 2 + 1}.{name}": value for name, value in norm.state_dict().items()}
        return {name: tensor.detach().clone() for name, tensor in state.items()}


def build(image_size: int = 32, num_classes: int = 10, **values: Any) -> Classifier:
    return build_model(ModelConfig.model_validate({"name": "cifar10_fast", **values}), num_classes, image_size)


def random_images(n: int, size: int = 32) -> Tensor:
    return torch.randint(0, 256, (n, 3, size, size), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


@pytest.mark.parametrize("dirac", [True, False])
@pytest.mark.parametrize(("width", "widths"), [(1.0, (64, 256, 256)), (0.2, (13, 51, 51)), (1e-6, (1, 1, 1))])
def test_it_is_the_plain_network(width: float, widths: tuple[int, int, int], dirac: bool) -> None:
    """Initial values are its own to the bit; so are, in either layout, the logits and statistics after a pass."""
    classes = 10 if width > 0.1 else 3
    torch.manual_seed(5)
    classifier = build(num_classes=classes, width=width, dirac=dirac)
    torch.manual_seed(5)
    plain = Plain(widths, classes, dirac)
    ours, expected = classifier.module.state_dict(), plain.named_as_ours()
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in expected)
    assert classifier.head == "head"
    images_NCHW = torch.randn(4, 3, 32, 32)
    assert torch.equal(classifier.module(images_NCHW), plain(images_NCHW))
    plain.to(memory_format=torch.channels_last)
    classifier.module.to(memory_format=torch.channels_last)
    assert torch.equal(classifier.module(images_NCHW), plain(images_NCHW))
    after = plain.named_as_ours()
    assert all(torch.equal(value, after[name]) for name, value in classifier.module.state_dict().items())
    assert not torch.equal(after["features.2.norm2.running_mean"], expected["features.2.norm2.running_mean"])


@pytest.mark.parametrize("whitening", [True, False])
def test_what_learns(whitening: bool) -> None:
    """Neither the whitening, where there is one, nor the scale of BatchNorm; everything else gets a gradient."""
    module = build(width=0.1, whitening=whitening).module
    module(torch.randn(4, 3, 32, 32)).square().sum().backward()
    still = {f"features.{i}.norm{j}.weight" for i in range(3) for j in (1, 2)}
    still |= {"whiten.weight"} if whitening else set()
    gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
    assert {name for name, gradient in gradients.items() if gradient is None} == still
    assert all(bool(gradient.any()) for gradient in gradients.values() if gradient is not None)
    assert all(bool((dict(module.named_parameters())[name] == 1).all()) for name in still if "norm" in name)


@pytest.mark.parametrize("image_size", [9, 16, 31, 32, 64, 96])
def test_other_image_sizes(image_size: int) -> None:
    """What is left of the image after three halvings is reduced to its maximum, whatever its size."""
    torch.manual_seed(2)
    module = build(image_size, width=0.1).module.eval()
    torch.manual_seed(2)
    plain = Plain((6, 26, 26)).eval()
    images_NCHW = torch.randn(2, 3, image_size, image_size)
    torch.testing.assert_close(module(images_NCHW), plain(images_NCHW))


def test_images_that_are_too_small_and_heads_that_cannot_be() -> None:
    with pytest.raises(UserError, match=r"cifar10_fast: needs images of 9 x 9 pixels or more \(data.image_size 8,"):
        build(8)
    with pytest.raises(UserError, match=r"data.image_size: Cifar10Fast cannot take 2 images of 8 x 8"):
        check_forward(build(32), 8, 10)
    with pytest.raises(UserError, match=r"1000 classes, and cifar10_fast is built for the classes of the data"):
        build(head="append")


def test_on_the_meta_device_and_with_a_frozen_backbone() -> None:
    with torch.device("meta"):
        classifier = build(num_classes=7)
    check_forward(classifier, 32, 7)
    assert {tensor.device.type for tensor in classifier.module.state_dict().values()} == {"meta"}
    frozen = build(width=0.1, freeze="backbone").module
    assert [name for name, parameter in frozen.named_parameters() if parameter.requires_grad] == ["head.weight"]


def expected_whitening(images_NCHW: Tensor) -> np.ndarray:
    """[24, 12], by NumPy, from every patch of these images, normalised."""
    mean, std = np.array(PREPROCESS.mean), np.array(PREPROCESS.std)
    images = (images_NCHW.permute(0, 2, 3, 1).numpy() / 255 - mean) / std
    size = images.shape[1] - 1
    corners = [images[:, y : y + size, x : x + size, c] for c in range(3) for y in (0, 1) for x in (0, 1)]
    variances, columns = np.linalg.eigh(np.cov(np.stack([corner.ravel() for corner in corners]), ddof=0))
    rows = []
    for variance, vector in sorted(zip(variances, columns.T, strict=True), key=lambda pair: -pair[0]):
        first = next(number for number in vector if abs(number) >= np.abs(vector).max() / 2)
        rows.append(vector * np.sign(first) / np.sqrt(variance + 5e-4))
    return np.concatenate([rows, -np.array(rows)])


def natural_images(n: int, size: int = 32) -> Tensor:
    """Neighbouring pixels are alike, and so are colours: noise that was smoothed."""
    noise = torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(3))
    smooth = F.avg_pool2d(noise, 5, 1, 2) * 200 + 80 * noise[:, :1] + 8 * noise
    return (smooth + 128).clamp(0, 255).to(torch.uint8)


def test_whitening_is_what_numpy_finds() -> None:
    images_NCHW = natural_images(60)
    weights = whitening_weights(ResidentImages(images_NCHW), torch.arange(10, 60), PREPROCESS)
    assert (weights.shape, weights.dtype) == ((24, 3, 2, 2), torch.float32)
    expected = expected_whitening(images_NCHW[10:])
    assert expected[:, :].std(axis=0).min() > 0.05
    np.testing.assert_allclose(weights.flatten(1).numpy(), expected, rtol=1e-5, atol=1e-5)


def test_whitened_patches_are_uncorrelated_with_variance_one() -> None:
    images_NCHW = natural_images(200)
    weights = whitening_weights(ResidentImages(images_NCHW), torch.arange(200), PREPROCESS).double()
    mean, std = (
        torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (PREPROCESS.mean, PREPROCESS.std)
    )
    outputs_NCHW = F.conv2d((images_NCHW / 255 - mean) / std, weights[:12])
    covariance = torch.cov(outputs_NCHW.transpose(0, 1).flatten(1))
    assert float((covariance - covariance.diag().diag()).abs().max()) < 1e-5
    assert 0.9 < float(covariance.diag().min()) <= float(covariance.diag().max()) <= 1 + 1e-5


def test_whitening_has_the_same_bits_with_any_number_of_threads_and_from_files(tmp_path: Path) -> None:
    images_NCHW = natural_images(150)
    paths = [str(tmp_path / f"{index}.png") for index in range(150)]
    for image, path in zip(images_NCHW, paths, strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    order = torch.randperm(150, generator=torch.Generator().manual_seed(0))
    found = []
    before = torch.get_num_threads()
    sources: list[tuple[Images, Tensor]] = [
        (ResidentImages(images_NCHW), torch.arange(150)),
        (ResidentImages(images_NCHW), order),
        (StreamedImages(paths, 32), torch.arange(150)),
    ]
    for threads, (images, ids_N) in enumerate(sources, 1):
        torch.set_num_threads(threads)
        found.append(whitening_weights(images, ids_N, PREPROCESS))
    torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_whitening_looks_at_five_thousand_images_of_all_classes() -> None:
    """Of 10,001 tiny ones, in two halves that differ: at every second, and at no other."""
    images_NCHW = torch.cat([natural_images(5_000, 9), random_images(5_001, 9)])
    ids_N = torch.arange(10_001)
    chosen = torch.tensor([i * 10_001 // 5_000 for i in range(5_000)])
    small = Preprocess(PREPROCESS.mean, PREPROCESS.std, 9)
    weights = whitening_weights(ResidentImages(images_NCHW), ids_N, small)
    np.testing.assert_allclose(weights.flatten(1), expected_whitening(images_NCHW[chosen]), rtol=1e-4, atol=1e-5)


def test_whitening_of_resized_images_and_of_a_single_colour() -> None:
    images_NCHW = natural_images(20, 32)
    resized = torch.stack([_by_pil(image, 24) for image in images_NCHW])
    large = Preprocess(PREPROCESS.mean, PREPROCESS.std, 24)
    weights = whitening_weights(ResidentImages(images_NCHW), torch.arange(20), large)
    np.testing.assert_allclose(weights.flatten(1), expected_whitening(resized), rtol=5e-3, atol=5e-3)
    grey = whitening_weights(ResidentImages(torch.full((3, 3, 32, 32), 77, dtype=torch.uint8)), torch.arange(3), large)
    assert bool(grey.isfinite().all())


def _by_pil(image_CHW: Tensor, size: int) -> Tensor:
    """Resized without rounding to whole numbers between rows and columns, and rounded at the end."""
    channels = [Image.fromarray(channel.astype(np.float32)) for channel in image_CHW.numpy()]
    resized = [np.asarray(channel.resize((size, size), Image.Resampling.BILINEAR)) for channel in channels]
    return torch.from_numpy(np.stack(resized)).round()


def config_of(**model: Any) -> Any:
    data = {"name": "synthetic", "val_fraction": 0.2, "augment": {"flip": True}}
    train = {"epochs": 1, "batch_size": 20}
    return resolved({"data": data, "model": {"name": "cifar10_fast", "width": 0.05, **model}, "train": train})


def test_a_fresh_run_begins_with_the_whitening_of_the_images_that_it_trains_on(tmp_path: Path) -> None:
    """Not of those held out; and neither where it is switched off, nor where weights are given."""
    dataset = make_dataset(50)
    with process_group.joined(config_of().train) as accelerator:
        trainer = build_trainer(config_of(), dataset, accelerator, None)
        state = trainer.state.classifier.module.state_dict()
        assert len(trainer.plan.ids_N) == 40
        preprocess = Preprocess(dataset.mean, dataset.std, 32)
        expected = whitening_weights(dataset.train.images, trainer.plan.ids_N, preprocess)
        assert torch.equal(state["whiten.weight"], expected)
        other = whitening_weights(dataset.train.images, torch.arange(50), preprocess)
        assert not torch.equal(state["whiten.weight"], other)

        off = build_trainer(config_of(whitening=False), dataset, accelerator, None).state.classifier.module
        assert not torch.allclose(off.state_dict()["whiten.weight"][:12], -off.state_dict()["whiten.weight"][12:])
        whitened_otherwise = {name: tensor.contiguous() for name, tensor in state.items()} | {"whiten.weight": other}
        safetensors.torch.save_file(whitened_otherwise, tmp_path / "w.safetensors")
        given = build_trainer(config_of(weights=str(tmp_path / "w.safetensors")), dataset, accelerator, None)
        assert torch.equal(given.state.classifier.module.state_dict()["whiten.weight"], other)


def arguments(images: Path, *more: str) -> list[str]:
    return tiny.arguments(images, 2, 3, "model={name: cifar10_fast, width: 0.05}", "scheduler=null", *more)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the images and a run that nobody disturbed."""
    cwd = tmp_path_factory.mktemp("whole")
    tiny.make_images(cwd / "images")
    assert ranks.train(arguments(cwd / "images"), cwd=cwd) == [0], ranks.console(cwd)
    return cwd


def test_a_resumed_run_is_the_whole_one_and_computes_no_whitening(whole: Path, tmp_path: Path) -> None:
    """Eight steps, stopped after three; when it goes on, the function that whitens is not even there."""
    part = arguments(whole / "images", "train={steps: 3, batch_size: 12, clip_grad_norm: 1.0}")
    assert ranks.train(part, cwd=tmp_path) == [0], ranks.console(tmp_path)
    rest = arguments(whole / "images")
    assert ranks.run(resume_without_whitening, rest, world_size=1, cwd=tmp_path) == [0], ranks.console(tmp_path)
    assert tiny.summary(tmp_path)["weights_sha256"] == tiny.summary(whole)["weights_sha256"]


def resume_without_whitening(arguments: list[str]) -> int:
    """In a rank."""
    from trainlib.config import load_config
    from trainlib.runs.stop_request import StopFlag
    from trainlib.train import train
    from trainlib.training import session

    del session.whiten  # type: ignore[attr-defined]
    return 0 if train(load_config(arguments), StopFlag(), rank=0, resume="") else 1


def test_elastic_runs_have_the_same_bits_on_one_and_two_ranks(whole: Path, tmp_path: Path) -> None:
    elastic = arguments(whole / "images", "train.reproducibility=elastic", "train.virtual_shards=4")
    results = []
    for world_size in (1, 2):
        cwd = tiny.in_folder(tmp_path, str(world_size))
        assert ranks.train(elastic, world_size=world_size, cwd=cwd) == [0] * world_size, ranks.console(cwd)
        results.append(tiny.summary(cwd)["weights_sha256"])
    assert results[0] == results[1]


def test_two_ranks_have_the_whitening_of_one(whole: Path, tmp_path: Path) -> None:
    """Their BatchNorm sees half a batch each, so what learns comes out otherwise; the whitening does not learn."""
    assert ranks.train(arguments(whole / "images"), world_size=2, cwd=tmp_path) == [0, 0], ranks.console(tmp_path)
    one, two = (
        safetensors.torch.load_file(cwd / "runs/run/checkpoints/step-00000008/model.safetensors")["whiten.weight"]
        for cwd in (whole, tmp_path)
    )
    assert torch.equal(one, two)


def test_what_it_trained_checks_predicts_and_exports(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every file holds the network of the oracle above: its weights load strictly, whole files give its logits."""
    monkeypatch.chdir(tmp_path)
    assert launch(["check", *arguments(whole / "images")]) == 0
    model = load_model(whole / "runs/run", device="cpu")
    plain = Plain((3, 13, 13), 2).eval()
    state = model.module.state_dict()
    plain_state = plain.state_dict()
    renamed = dict(zip(plain.named_as_ours(), _plain_names(plain), strict=True))
    plain.load_state_dict({renamed[name]: tensor for name, tensor in state.items()}, strict=True)
    assert plain_state.keys() == plain.state_dict().keys()
    images_NCHW = random_images(7)
    with torch.no_grad():
        expected_NC = plain(model.prepare(images_NCHW))
        torch.testing.assert_close(model.module(model.prepare(images_NCHW)), expected_NC)
    for export_format, suffix in (("state_dict", "pt"), ("torch_export", "pt2"), ("onnx", "onnx")):
        words = ["export", str(whole / "runs/run"), "--format", export_format, "--output", f"x.{suffix}"]
        assert launch(words) == 0, capsys.readouterr().err
    exported = torch.export.load("x.pt2").module()
    torch.testing.assert_close(exported(images_NCHW / 255), expected_NC, atol=1e-4, rtol=1e-3)
    assert json.loads(Path("x.pt.json").read_text())["model"]["width"] == 0.05
    capsys.readouterr()
    assert launch(["predict", str(whole / "runs/run"), str(whole / "images/test/a/00.png")]) == 0
    assert capsys.readouterr().out.split()[1] in ("a", "b")


def _plain_names(plain: Plain) -> list[str]:
    """The names in the oracle, in the order in which `named_as_ours` lists them."""
    names = ["whiten.weight", "whiten.bias", "head.weight"]
    for index, norm in enumerate(plain.norms):
        names += [f"convolutions.{index}.weight", *(f"norms.{index}.{name}" for name in norm.state_dict())]
    return names


def test_the_network_in_the_documentation_takes_its_weights() -> None:
    """docs/using-models.md writes it out; its logits are the model's times the number of features."""
    page = (REPOSITORY / "docs/using-models.md").read_text()
    (block,) = [b for b in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "def cifar10_fast" in b]
    found: dict[str, Any] = {"nn": nn, "OrderedDict": OrderedDict}
    exec(block, found)
    module = build(40, 7, width=0.2).module.eval()
    written_out = found["cifar10_fast"](7, 40, 0.2).eval()
    written_out.load_state_dict(module.state_dict(), strict=True)
    images_NCHW = torch.randn(2, 3, 40, 40)
    torch.testing.assert_close(written_out(images_NCHW) / 51, module(images_NCHW))
