"""Measure the cache of pictures: `python -m bench.caching [--before REPOSITORY] [--folder DIR]`.

Prints the processor's seconds (of the process and its children) and the seconds that pass, of a first start, which
decodes everything, and of a second one, which finds it decoded: for photos of 12 megapixels, which it makes, and for
a folder with train/<class> and test/<class>, if one is given. With another checkout of this repository, both are
measured in turn, and the ratio is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).parents[1]
WIDTH, HEIGHT = 4000, 3000

# Run by each checkout: the configuration of both is the same.
LOAD = """
import json, os, resource, sys, time
from trainlib.config.schema.sections import DataConfig
from trainlib.data import load_data
import torchvision.io, PIL.Image
config = DataConfig(name="image_folder", root=sys.argv[1], image_size=int(sys.argv[2]))
before, start = os.times(), time.perf_counter()
dataset = load_data(config)
assert len(next(dataset.train.images.batches([__import__("torch").arange(2)]))) == 2
seconds, after = time.perf_counter() - start, os.times()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"cpu": sum(after[:4]) - sum(before[:4]), "seconds": seconds, "peak": peak}))
"""


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--before", type=Path, help="another checkout, with the older code")
    parser.add_argument("--folder", type=Path, help="a folder with train/<class> and test/<class>")
    parser.add_argument("--size", type=int, default=32, help="data.image_size for the folder")
    parser.add_argument("--photos", type=int, default=48, help="photos of 12 megapixels; 0 for none")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    checkouts = {"now": HERE} | ({"before": options.before} if options.before else {})
    with tempfile.TemporaryDirectory() as temporary:
        if options.photos:
            root = Path(temporary) / "photos"
            make_photos(root, options.photos)
            report(f"{options.photos} photos of 12 megapixels", measure(root, 224, checkouts, options.rounds))
        if options.folder:
            report(str(options.folder), measure(options.folder, options.size, checkouts, options.rounds))


def make_photos(root: Path, count: int) -> None:
    """Write JPEG files of 4000 x 3000 pixels, with the detail of photographs, a third of them for the test."""
    generator = np.random.default_rng(0)
    contents = []
    for number in range(4):
        path = root / f"{number}.jpg"
        root.mkdir(exist_ok=True)
        coarse = Image.fromarray(generator.integers(0, 256, (30, 40, 3), np.uint8)).resize((WIDTH, HEIGHT))
        noise = generator.normal(0, 6, (HEIGHT, WIDTH, 3))
        Image.fromarray((np.asarray(coarse) + noise).clip(0, 255).astype(np.uint8)).save(path, quality=85)
        contents.append(path.read_bytes())
        path.unlink()
    for number in range(count):
        folder = root / ("test" if number % 3 == 2 else "train") / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:04}.jpg").write_bytes(contents[number % 4])


def measure(root: Path, size: int, checkouts: dict[str, Path], rounds: int) -> dict[str, list[dict[str, float]]]:
    """Return what each checkout took, by name and start; first all of one round, then of the next."""
    found: dict[str, list[dict[str, float]]] = {}
    for _ in range(rounds):
        for name, checkout in checkouts.items():
            with tempfile.TemporaryDirectory() as cache:
                for start in ("first", "second"):
                    found.setdefault(f"{name}, {start}", []).append(load(root, size, checkout, cache))
    return found


def load(root: Path, size: int, checkout: Path, cache: str) -> dict[str, float]:
    """Load the data once, in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "TRAINLAUNCH_CACHE": cache}
    command = [sys.executable, "-c", LOAD, str(root), str(size)]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, cwd=checkout)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def report(title: str, found: dict[str, list[dict[str, float]]]) -> None:
    """Print the median of each, and the ratios."""
    print(title)
    medians = {name: statistics.median(row["cpu"] for row in rows) for name, rows in found.items()}
    for name, rows in found.items():
        seconds = statistics.median(row["seconds"] for row in rows)
        peak = statistics.median(row["peak"] for row in rows)
        print(f"  {name:14} {medians[name]:8.2f} s of CPU {seconds:8.2f} s {peak / 1e6:8.0f} MB")
    for name, ratio in ratios(medians):
        print(f"  {name} start: before / now = {ratio:.2f}")


def ratios(medians: dict[str, float]) -> Iterator[tuple[str, float]]:
    """Yield by how much less CPU the newer code takes."""
    for start in ("first", "second"):
        if f"before, {start}" in medians:
            yield start, medians[f"before, {start}"] / medians[f"now, {start}"]


if __name__ == "__main__":
    main()
