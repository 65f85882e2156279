"""CPU microseconds a picture, 3 x 224 x 224: each augmentation on whole batches, and torchvision's, on one thread.

torchvision gets one picture at a time, as in its data loaders, but for MixUp and CutMix, which take batches there too.

    python bench/augmentation.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from itertools import count

import torch
from torch import Tensor
from torchvision.transforms import v2

from trainlib.data.augment.augmentation import flip
from trainlib.data.augment.draws import Draws
from trainlib.data.augment.erase import draw_boxes, erase
from trainlib.data.augment.mix import Mixing, mix
from trainlib.data.augment.policies.jitter import ColorJitter
from trainlib.data.augment.policies.policy import AugMix, AutoAugment, RandAugment, TrivialAugment

SIZE, BATCH, ROUNDS = 224, 32, 7


def microseconds(apply: Callable[[int], object]) -> float:
    """Return the median over the rounds of CPU time a picture; each round has other draws."""
    seconds = []
    for round_number in range(ROUNDS + 1):
        start = time.process_time()
        apply(round_number)
        seconds.append(time.process_time() - start)
    return statistics.median(seconds[1:]) / BATCH * 1e6


def pictures() -> Tensor:
    """Return smooth pictures, uint8: what an operation costs hardly depends on them."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 256, (BATCH, 3, 28, 28), generator=generator).float()
    return torch.nn.functional.interpolate(coarse, size=SIZE, mode="bilinear").to(torch.uint8)


def arms() -> Iterator[tuple[str, Callable[[int], object], Callable[[int], object]]]:
    """Yield the name of each augmentation, ours and torchvision's, as functions of the round."""
    images, ids = pictures(), torch.arange(BATCH)
    values = images.float()
    nearest = v2.InterpolationMode.NEAREST

    def each(transform: v2.Transform, batch: Tensor = images) -> Callable[[int], object]:
        return lambda _: [transform(picture) for picture in batch]

    def change(function: Callable[[Tensor, Draws], Tensor]) -> Callable[[int], object]:
        return lambda number: function(images, Draws(number, ids))

    yield "horizontal flip", lambda _: flip(images, ids & 1, 3), each(v2.RandomHorizontalFlip())
    yield "trivial", change(TrivialAugment()), each(v2.TrivialAugmentWide())
    yield "randaugment", change(RandAugment()), each(v2.RandAugment())
    yield "autoaugment", change(AutoAugment()), each(v2.AutoAugment())
    yield "augmix", change(AugMix()), each(v2.AugMix(interpolation=nearest))
    yield "color_jitter 0.4 0.4 0.4", change(ColorJitter(0.4, 0.4, 0.4)), each(v2.ColorJitter(0.4, 0.4, 0.4))
    yield "the same, hue 0.1", change(ColorJitter(0.4, 0.4, 0.4, 0.1)), each(v2.ColorJitter(0.4, 0.4, 0.4, 0.1))

    def erased(number: int) -> object:
        return erase(values, draw_boxes(Draws(number, ids), 0.25, SIZE, SIZE))

    yield "erase 0.25", erased, each(v2.RandomErasing(0.25), values)
    for name, mixing, transform in (
        ("mixup 0.2", Mixing(0, 0.2), v2.MixUp(alpha=0.2, num_classes=10)),
        ("cutmix 1.0", Mixing(0, 0.0, 1.0), v2.CutMix(num_classes=10)),
    ):
        steps = count()
        yield (
            name,
            lambda _, mixing=mixing, steps=steps: mix(values, mixing.draw(next(steps), SIZE, SIZE)),
            lambda _, transform=transform: transform(values, ids % 10),
        )


def main() -> None:
    torch.set_num_threads(1)
    print(f"{'':26}{'here':>8}{'torchvision':>14}")
    for name, ours, theirs in arms():
        print(f"{name:26}{microseconds(ours):8.0f}{microseconds(theirs):14.0f}", flush=True)


if __name__ == "__main__":
    main()
