"""The same recipe in plain PyTorch, sharing no code with trainlib: what `launch run cifar10_cnn` is compared with.

    python bench/plain_loop.py DIR [--epochs 20] [--seed 0]

DIR is a class-folder tree, DIR/train/<class>/* and DIR/test/<class>/*, of 32x32 images. Trains the tutorial CNN
as configs/cifar10_cnn.yaml does: batches of 64, SGD with momentum, StepLR, random crops and flips, a tenth of the
training images held out, the epoch with the best validation accuracy tested once. Prints a line an epoch and the test
accuracy.
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import transforms
from torchvision.datasets import ImageFolder

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def tutorial_cnn(num_classes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 32, 5, padding=2),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 5, padding=2),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(1024, 64),
        nn.Linear(64, num_classes),
    )


def loaders(root: Path, batch_size: int) -> tuple[DataLoader[Any], DataLoader[Any], DataLoader[Any], int]:
    plain = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    augmented = transforms.Compose(
        [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), *plain.transforms]
    )
    train, held_out = ImageFolder(root / "train", augmented), ImageFolder(root / "train", plain)
    order = torch.randperm(len(train)).tolist()
    num_val = len(train) // 10

    def loader(dataset: Dataset[Any], *, shuffle: bool) -> DataLoader[Any]:
        return DataLoader(dataset, batch_size, shuffle=shuffle, num_workers=2, persistent_workers=True)

    return (
        loader(Subset(train, order[num_val:]), shuffle=True),
        loader(Subset(held_out, order[:num_val]), shuffle=False),
        loader(ImageFolder(root / "test", plain), shuffle=False),
        len(train.classes),
    )


@torch.no_grad()
def accuracy(model: nn.Module, loader: DataLoader[Any]) -> float:
    model.eval()
    hits = total = 0
    for images, labels in loader:
        hits += (model(images).argmax(1) == labels).sum().item()
        total += len(labels)
    return hits / total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    train, val, test, num_classes = loaders(options.root, batch_size=64)
    model = tutorial_cnn(num_classes)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=5, gamma=0.5)
    criterion = nn.CrossEntropyLoss()
    best, best_state = -1.0, {}
    for epoch in range(options.epochs):
        model.train()
        began, total = time.perf_counter(), 0.0
        for images, labels in train:
            loss = criterion(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(labels)
        seconds = time.perf_counter() - began
        scheduler.step()
        val_accuracy = accuracy(model, val)
        if val_accuracy > best:
            best, best_state = val_accuracy, copy.deepcopy(model.state_dict())
        mean_loss = total / len(train.dataset)  # type: ignore[arg-type]
        print(
            f"epoch {epoch + 1:2}/{options.epochs}  loss {mean_loss:.4f}  val {val_accuracy:.4f}  {seconds:.1f} s",
            flush=True,
        )
    model.load_state_dict(best_state)
    print(f"test accuracy {accuracy(model, test):.4f}")


if __name__ == "__main__":
    main()
