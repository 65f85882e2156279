"""Finetune a published network on class folders of pictures: README's example, and plain scripts of PyTorch and timm.

`python -m bench.finetune_recipe --weights FILE --pictures DIR`: FILE is the one in the package `efficientnet-lite0-
pytorch-model`, DIR has a folder for each class, without splits. Three arms train for two epochs on the same splits, at
96 pixels, with one thread: `launch init` and `launch run` as in README; a plain script with the recipe of the
configuration that these wrote (head first, rates, warm-up and cosine, EMA, BatchNorm kept), on other random numbers;
and a plain script as people write it, all layers from the start. Seconds are those of the processor, children included.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from bench.startup import REPOSITORY
from trainlib.config import load_config
from trainlib.data.identity.splits import split_validation
from trainlib.data.sources.listed import listed_files

MODEL = "tf_efficientnet_lite0"
SIZE, EPOCHS, BATCH_SIZE, WARMUP_STEPS = 96, 2, 32, 20
WEIGHT_DECAY, EMA_DECAY, HEAD_LR = 0.05, 0.999, 1e-3
USUAL_LR = 3e-4  # of the script as people write it
ARMS = ("launch run", "plain, same recipe", "plain, as usual")
Sample = tuple[str, int]


def main() -> None:
    """Train each arm for each seed, in turns, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--seeds", default="0", help="such as 0,1,2")
    parser.add_argument("--lr", type=float, default=3e-4, help="of all but the head, in the first two arms")
    parser.add_argument("--arms", default=";".join(ARMS))
    parser.add_argument("--plain", help=argparse.SUPPRESS)  # this process is a plain arm: the splits and its arguments
    arguments = parser.parse_args()
    if arguments.plain:
        print(json.dumps(train_plainly(**json.loads(arguments.plain), weights=arguments.weights)))
        return
    print("| arm | seed | test accuracy | CPU s |\n|---|---|---|---|", flush=True)
    for seed in map(int, arguments.seeds.split(",")):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            (folder / "photos").symlink_to(arguments.pictures.resolve())
            words = _words(arguments.weights.resolve(), seed, arguments.lr)
            command = [sys.executable, "-m", "launch"]
            _run([*command, "init", "photos"], folder)
            for arm in arguments.arms.split(";"):
                if arm == "launch run":
                    seconds, _ = _run([*command, "run", "photos.yaml", *words], folder)
                    accuracy = json.loads((folder / "runs/photos/summary.json").read_text())["test"]["accuracy"]
                else:
                    task = {"seed": seed, "lr": arguments.lr, "is_usual": arm == ARMS[2]}
                    task["splits"] = _splits(folder, words, seed)
                    more = [
                        "--weights",
                        str(arguments.weights.resolve()),
                        "--pictures",
                        ".",
                        "--plain",
                        json.dumps(task),
                    ]
                    seconds, printed = _run([sys.executable, "-m", "bench.finetune_recipe", *more], folder)
                    accuracy = json.loads(printed.splitlines()[-1])
                print(f"| {arm} | {seed} | {accuracy:.4f} | {seconds:.0f} |", flush=True)


def _words(weights: Path, seed: int, lr: float) -> list[str]:
    model = [f"model.name=timm/{MODEL}", f"model.weights={weights}", "model.weights_keys=shapes"]
    return [*model, f"data.image_size={SIZE}", f"train.epochs={EPOCHS}", f"seed={seed}", f"optimizer.lr={lr}"]


def _run(command: Sequence[str], folder: Path) -> tuple[float, str]:
    """Run a command with one thread; return processor seconds of it and its children, and what it printed."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "TRAINLAUNCH_CACHE": str(folder / "cache")}
    environment |= {"TRAINLAUNCH_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, check=True, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, done.stdout


def _splits(folder: Path, words: list[str], seed: int) -> dict[str, list[Sample]]:
    """Return path and label of the pictures of each split of the configuration that `launch init` wrote."""
    data = load_config([str(folder / "photos.yaml"), *words]).data
    found = listed_files(data.model_copy(update={"root": str(folder / "photos")}), seed)
    samples, facts = found.samples, found.training
    train_ids, val_ids = split_validation(facts.labels_N, data.val_fraction, seed, data.split, facts.identities_N)
    rows = {"train": train_ids.tolist(), "val": val_ids.tolist(), "test": samples.rows("test")}
    place = folder / "photos"
    return {
        split: [(str(place / samples.names[row]), int(samples.labels_N[row])) for row in rows[split]] for split in rows
    }


class _Files(Dataset[tuple[Tensor, int]]):
    def __init__(self, samples: Sequence[Sample], transform: Callable[[Image.Image], Tensor]):
        self.samples, self.transform = samples, transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.samples[index]
        return self.transform(Image.open(path).convert("RGB")), label


def train_plainly(splits: dict[str, list[Sample]], *, weights: Path, seed: int, lr: float, is_usual: bool) -> float:
    """Return the test accuracy of a plain script: with the finetune recipe, or as people write one."""
    import timm

    torch.manual_seed(seed)
    to_tensor = [transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]
    crop = transforms.RandomResizedCrop(SIZE) if is_usual else transforms.RandomResizedCrop(SIZE, (0.5, 1.0))
    random = transforms.Compose([crop, transforms.RandomHorizontalFlip(), *to_tensor])
    resize = transforms.Resize(round(SIZE / 0.882), transforms.InterpolationMode.BICUBIC)
    fixed = transforms.Compose([resize, transforms.CenterCrop(SIZE), *to_tensor])
    train = DataLoader(_Files(splits["train"], random), BATCH_SIZE, shuffle=True, num_workers=1)
    val, test = (DataLoader(_Files(splits[split], fixed), BATCH_SIZE, num_workers=1) for split in ("val", "test"))
    model = timm.create_model(MODEL, num_classes=1000)
    model.load_state_dict(dict(zip(model.state_dict(), torch.load(weights).values(), strict=True)))
    model.reset_classifier(len({label for _, label in splits["train"]}))
    trained = [_train_usually(model, train)] if is_usual else _train_by_recipe(model, train, lr)
    best: tuple[float, float, dict[str, Any]] | None = None
    for candidate in trained:
        accuracy, loss = _figures(candidate, val)
        if best is None or (accuracy, -loss) > best[:2]:
            best = accuracy, -loss, copy.deepcopy(candidate.state_dict())
    assert best is not None
    model.load_state_dict(best[2])
    return _figures(model, test)[0]


def _train_usually(model: nn.Module, batches: DataLoader[Any]) -> nn.Module:
    optimizer = torch.optim.AdamW(model.parameters(), USUAL_LR, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * len(batches))
    model.train()
    for _ in range(EPOCHS):
        for images, labels in batches:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
            schedule.step()
    return model


def _train_by_recipe(model: Any, batches: DataLoader[Any], lr: float) -> Any:
    """Train as the recipe does; yield the average of the weights after each epoch."""
    head = model.get_classifier()
    backbone = [p for p in model.parameters() if all(p is not mine for mine in head.parameters())]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in backbone if p.ndim > 1], "lr": lr, "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in backbone if p.ndim <= 1], "lr": lr, "weight_decay": 0.0},
            {"params": [head.weight], "lr": HEAD_LR, "weight_decay": WEIGHT_DECAY},
            {"params": [head.bias], "lr": HEAD_LR, "weight_decay": 0.0},
        ]
    )
    epoch_steps = len(batches)

    def factor(step: int) -> float:
        step -= epoch_steps
        if step < 0:
            return 1.0
        if step < WARMUP_STEPS:
            return 0.1 + 0.9 * step / WARMUP_STEPS
        rest = (EPOCHS - 1) * epoch_steps - WARMUP_STEPS
        return float(0.5 + 0.5 * torch.cos(torch.tensor((step - WARMUP_STEPS) / rest * torch.pi)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    average, num_steps = copy.deepcopy(model), 0
    model.eval()  # the network has no dropout; BatchNorm keeps its statistics
    for epoch in range(EPOCHS):
        for parameter in backbone:
            parameter.requires_grad_(epoch > 0)
        for images, labels in batches:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels, label_smoothing=0.1).backward()
            optimizer.step()
            schedule.step()
            num_steps += 1
            decay = min(EMA_DECAY, num_steps / (9 + num_steps))
            with torch.no_grad():
                for mean, value in zip(average.parameters(), model.parameters(), strict=True):
                    mean.lerp_(value, 1 - decay)
        yield average


@torch.no_grad()
def _figures(model: nn.Module, batches: DataLoader[Any]) -> tuple[float, float]:
    """Return accuracy and mean loss over all batches."""
    was_training = model.training
    model.eval()
    outputs = [(model(images), labels) for images, labels in batches]
    model.train(was_training)
    logits, labels = (torch.cat(parts) for parts in zip(*outputs, strict=True))
    loss = nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
    return float((logits.argmax(1) == labels).float().mean()), float(loss)


if __name__ == "__main__":
    main()
