"""Finetune a published network on real pictures, by `launch run` and by a plain loop of PyTorch and timm.

`python -m bench.finetune --weights FILE --data DIR`: FILE is the one in the package `efficientnet-lite0-pytorch-
model`, DIR has the folders `train` and `test`, each with a folder for each class. First the head is trained with the
backbone frozen, then everything from there. Both sides get the same files, transforms, batches, optimizer and
schedule, and no validation split. The plain loop does what such scripts do: it computes the frozen backbone anew in
each epoch, and loads with DataLoader's worker processes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from bench.startup import REPOSITORY

MODEL = "tf_efficientnet_lite0"
PROBE = {"epochs": 5, "lr": 3e-3, "flip": False}
WHOLE = {"epochs": 2, "lr": 5e-4, "flip": True}
BATCH_SIZE = 64
WEIGHT_DECAY = 0.05


def main() -> None:
    """Train each way, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--size", type=int, default=96, help="height and width of the images")
    parser.add_argument("--per-class", type=int, default=1000, help="training pictures of each class")
    parser.add_argument("--test-per-class", type=int, help="test pictures of each class; default: all")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        counts = {"train": arguments.per_class, "test": arguments.test_per_class}
        link_pictures(arguments.data, folder / "pictures", counts)
        weights = arguments.weights.resolve()
        rows = [
            ("launch run", *train_with_launch(folder, weights, arguments.size)),
            ("PyTorch and timm", *train_plainly(folder / "pictures", weights, arguments.size)),
        ]
    print("| | head: accuracy | head: s | then all: accuracy | then all: s |\n|---|---|---|---|---|")
    for name, *figures in rows:
        cells = (f"{accuracy:.4f} | {seconds:.0f}" for accuracy, seconds in figures)
        print(f"| {name} | {' | '.join(cells)} |")


def link_pictures(data: Path, folder: Path, counts: Mapping[str, int | None]) -> None:
    """Make a folder that holds the first pictures of each class, so many (None: all) of each split."""
    for split, count in counts.items():
        for class_folder in sorted((data / split).iterdir()):
            (folder / split / class_folder.name).mkdir(parents=True)
            for picture in sorted(class_folder.iterdir())[:count]:
                (folder / split / class_folder.name / picture.name).symlink_to(picture.resolve())


def train_with_launch(folder: Path, weights: Path, size: int) -> list[tuple[float, float]]:
    """Return test accuracy and wall seconds of the head's training, and of that of everything from there."""
    found = []
    phases = (
        ("head", PROBE, f"weights: {weights}, weights_keys: shapes, freeze: backbone"),
        ("all", WHOLE, "weights: run:head"),
    )
    for name, phase, model in phases:
        augment = "{flip: true}" if phase["flip"] else "{}"
        normalize = "{mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}"
        resize = f"{{size: {size}, interpolation: bicubic}}"
        values = [
            f"name={name}",
            f"data={{name: image_folder, root: {folder / 'pictures'}, image_size: {size}, val_fraction: 0, "
            f"augment: {augment}, normalize: {normalize}, resize: {resize}}}",
            f"model={{name: timm/{MODEL}, {model}}}",
            "loss={name: CrossEntropyLoss}",
            f"optimizer={{name: AdamW, lr: {phase['lr']}, weight_decay: {WEIGHT_DECAY}}}",
            "scheduler={name: CosineAnnealingLR, interval: step}",
            f"train={{epochs: {phase['epochs']}, batch_size: {BATCH_SIZE}}}",
            "tracking={tensorboard: false, wandb: {mode: disabled}}",
        ]
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "TRAINLAUNCH_CACHE": str(folder / "cache")}
        start = time.monotonic()
        command = [sys.executable, "-m", "launch", "run", "my_images", *values]
        subprocess.run(command, check=True, cwd=folder, env=environment, stdout=sys.stderr)
        seconds = time.monotonic() - start
        summary = json.loads((folder / "runs" / name / "summary.json").read_text())
        found.append((summary["test"]["accuracy"], seconds))
    return found


def train_plainly(pictures: Path, weights: Path, size: int) -> list[tuple[float, float]]:
    """Return the same of a script as people write it."""
    import timm
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    start = time.monotonic()
    to_tensor = [transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]
    resize = [transforms.Resize(size, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(size)]
    test = DataLoader(
        ImageFolder(str(pictures / "test"), transforms.Compose(resize + to_tensor)), BATCH_SIZE, num_workers=1
    )
    torch.manual_seed(0)
    model = timm.create_model(MODEL, num_classes=1000)
    model.load_state_dict(dict(zip(model.state_dict(), torch.load(weights).values(), strict=True)))
    model.reset_classifier(10)
    found = []
    for phase in (PROBE, WHOLE):
        flip = [transforms.RandomHorizontalFlip()] if phase["flip"] else []
        train = DataLoader(
            ImageFolder(str(pictures / "train"), transforms.Compose(resize + flip + to_tensor)),
            BATCH_SIZE,
            shuffle=True,
            num_workers=1,
        )
        _train(model, train, is_frozen=phase is PROBE, epochs=int(phase["epochs"]), lr=phase["lr"])
        found.append((_accuracy(model, test), time.monotonic() - start))
        start = time.monotonic()
    return found


def _train(
    model: nn.Module, batches: DataLoader[tuple[Tensor, Tensor]], *, is_frozen: bool, epochs: int, lr: float
) -> None:
    head = model.get_classifier()
    assert isinstance(head, nn.Module)
    for parameter in model.parameters():
        parameter.requires_grad_(not is_frozen)
    for parameter in head.parameters():
        parameter.requires_grad_(True)
    model.train(not is_frozen)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(batches))
    for _ in range(epochs):
        for images, labels in batches:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
            schedule.step()


@torch.no_grad()
def _accuracy(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    model.eval()
    correct = [(model(images).argmax(1) == labels).float() for images, labels in batches]
    return float(torch.cat(correct).mean())


if __name__ == "__main__":
    main()
