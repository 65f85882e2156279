"""One loader of JPEG files, timed in a process of its own: `python -m bench.arms.loaders NAME FOLDER THREADS`.

Each gives batches of 64 random resized crops, half of them mirrored, normalised, float32 [64, 3, 224, 224], but for the
limits. It prints one JSON object: CPU seconds of this process and its children, seconds, pictures, megabytes of memory.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil
import torch

SIZE, BATCH = 224, 64
PHOTO_ROUNDS = 4
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Loader = Callable[[Path, int], Iterable[Any]]


def ours(folder: Path, threads: int) -> Iterator[Any]:
    """Stream as a training does: decoding in threads, then flips and normalisation of the whole batch."""
    from trainlib.data.augment.augmentation import Augmentation
    from trainlib.data.augment.preprocess import Preprocess
    from trainlib.data.batches.loader import BatchLoader
    from trainlib.data.batches.rank_slice import RankSlice
    from trainlib.data.datasets.dataset import ImageSet
    from trainlib.data.datasets.images import StreamedImages
    from trainlib.data.pictures.decoding.reader import PictureReader
    from trainlib.data.pictures.files import PlainFiles
    from trainlib.data.pictures.framing import Frames, Framing, RandomCrop

    paths = sorted(map(str, folder.glob("train/*/*.jpg")))
    reader = PictureReader(Frames(Framing(SIZE, SIZE), RandomCrop(0, SIZE, SIZE)))
    images = ImageSet(StreamedImages(PlainFiles(paths), reader), torch.zeros(len(paths), dtype=torch.int64))
    loader = BatchLoader(images, Preprocess(MEAN, STD, SIZE), RankSlice(0, 1, None), torch.device("cpu"))
    order = list(torch.split(torch.randperm(len(paths)), BATCH))
    for batch in loader.train_batches(order, 0, Augmentation(0, flip=True, crop_padding=0)):
        yield batch[0].images_NCHW


def image_folder(folder: Path, threads: int, *, by_torchvision: bool = False) -> Iterable[Any]:
    """Load with torchvision's ImageFolder and a DataLoader, as its recipes do."""
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.transforms import v2

    if by_torchvision:
        steps = [v2.RandomResizedCrop(SIZE, antialias=True), v2.RandomHorizontalFlip()]
        transform = v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
        data = ImageFolder(
            str(folder / "train"), transform, loader=lambda path: decode_image(path, mode=ImageReadMode.RGB)
        )
    else:
        old = [transforms.RandomResizedCrop(SIZE), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        data = ImageFolder(str(folder / "train"), transforms.Compose([*old, transforms.Normalize(MEAN, STD)]))
    return DataLoader(data, BATCH, shuffle=True, num_workers=threads, persistent_workers=True)


def image_folder_io(folder: Path, threads: int) -> Iterable[Any]:
    return image_folder(folder, threads, by_torchvision=True)


def timm_loader(folder: Path, threads: int) -> Iterable[Any]:
    from timm.data import create_dataset, create_loader

    data = create_dataset("", root=str(folder), split="train", is_training=True)
    return create_loader(
        data,
        input_size=(3, SIZE, SIZE),
        batch_size=BATCH,
        is_training=True,
        color_jitter=None,
        interpolation="bilinear",
        mean=MEAN,
        std=STD,
        num_workers=threads,
        use_prefetcher=False,
        persistent_workers=True,
    )


def dali(folder: Path, threads: int) -> Iterator[Any]:
    """NVIDIA DALI's pipeline for training on ImageNet, without a GPU."""
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=BATCH, num_threads=threads, device_id=None)
    def pipeline() -> Any:
        files, labels = fn.readers.file(file_root=str(folder / "train"), random_shuffle=True)
        pictures = fn.decoders.image_random_crop(
            files, device="cpu", output_type=types.RGB, random_aspect_ratio=[3 / 4, 4 / 3], random_area=[0.08, 1.0]
        )
        resized = fn.resize(pictures, resize_x=SIZE, resize_y=SIZE, antialias=True)
        return fn.crop_mirror_normalize(
            resized,
            dtype=types.FLOAT,
            output_layout="CHW",
            mean=[255 * value for value in MEAN],
            std=[255 * value for value in STD],
            mirror=fn.random.coin_flip(),
        ), labels

    made = pipeline()
    made.build()
    pictures = len(list(folder.glob("train/*/*.jpg")))
    for _ in range(-(-pictures // BATCH)):
        yield made.run()[0]


def limit(folder: Path, threads: int, *, resized: bool = False) -> Iterator[Any]:
    """Decode in one thread, and cut and resize the middle two thirds, with nothing around it."""
    import torch.nn.functional as F  # noqa: N812
    from torchvision.io import ImageReadMode, decode_jpeg

    done: list[Any] = []
    for path in folder.glob("train/*/*.jpg"):
        data = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
        picture = decode_jpeg(data, mode=ImageReadMode.RGB)
        if resized:
            height, width = picture.shape[1] * 2 // 3, picture.shape[2] * 2 // 3
            cut = picture[None, :, height // 4 : height // 4 + height, width // 4 : width // 4 + width]
            picture = F.interpolate(cut, (SIZE, SIZE), mode="bilinear", antialias=True)[0]
        done.append(picture)
        if len(done) == BATCH:
            yield done
            done = []


def limit_resized(folder: Path, threads: int) -> Iterator[Any]:
    return limit(folder, threads, resized=True)


def _photos(folder: Path) -> list[str]:
    """Return the paths of the photographs, each several times, as CPU seconds are counted in hundredths."""
    return PHOTO_ROUNDS * sorted(map(str, folder.glob("large/*.jpg")))


def photos(folder: Path, threads: int) -> Iterator[Any]:
    """Do what a decoding thread does with each photograph of 12 megapixels for an evaluation at 224 pixels."""
    from bench.arms.feeds import tune
    from trainlib.config import DataConfig
    from trainlib.data.pictures.decoding.reader import PictureReader
    from trainlib.data.pictures.decoding.threads import DecodingJob
    from trainlib.data.pictures.files import PlainFiles

    tune()
    files = PlainFiles(_photos(folder))
    reader = PictureReader.of(DataConfig(image_size=SIZE))
    for index in range(len(files)):
        images_NCHW = torch.empty((1, *reader.shape()), dtype=torch.uint8)
        DecodingJob(files, [index], reader, images_NCHW).decode(range(1), lambda _: None)
        yield images_NCHW


def photos_before(folder: Path, threads: int) -> Iterator[Any]:
    """Do the same as it was done before there was `data.decode`; see bench/arms/older_worker.py."""
    command = [sys.executable, str(Path(__file__).with_name("older_worker.py")), str(SIZE)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdin
        assert worker.stdout
        for path in _photos(folder):
            print(path, file=worker.stdin, flush=True)
            yield [worker.stdout.readline()]


LOADERS: dict[str, Loader] = {
    "ours": ours,
    "ImageFolder, PIL": image_folder,
    "ImageFolder, torchvision.io": image_folder_io,
    "timm": timm_loader,
    "DALI, CPU": dali,
    "decode only": limit,
    "decode and resize": limit_resized,
    "12 megapixels": photos,
    "12 megapixels, before": photos_before,
}


def _cpu_seconds() -> float:
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(sum(process.cpu_times()[:4]) for process in processes)  # of children that have ended as well


def _megabytes() -> float:
    """Return the memory of this process and its children; what they share counts once."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(process.memory_full_info().pss for process in processes) / 1e6


def main() -> None:
    name, folder, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    batches = iter(LOADERS[name](folder, threads))
    next(batches)  # imports, processes and threads have begun by now
    cpu, began, pictures, memory = _cpu_seconds(), time.monotonic(), 0, 0.0
    for batch in batches:
        pictures += (
            len(batch[0])
            if isinstance(batch, list | tuple) and torch.is_tensor(batch[0]) and batch[0].ndim == 4
            else len(batch)
        )
        if not memory and pictures >= 10 * BATCH:
            memory = _megabytes()
    cpu, seconds = _cpu_seconds() - cpu, time.monotonic() - began
    print(json.dumps({"cpu": cpu, "seconds": seconds, "pictures": pictures, "megabytes": memory}))


if __name__ == "__main__":
    main()
