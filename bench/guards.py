"""What it costs to distrust run directories and data: two trees of this software, measured in turns.

    python bench/guards.py BEFORE AFTER --pictures DIR

BEFORE and AFTER are checkouts with a `.venv` each, DIR holds class folders in `train` and `test`. Measured are `launch
list` over 500 run directories, a run of one step from its start to its end, and the loading of the pictures: the first
start, which decodes them, and the second. Times are medians: processor seconds of all processes, and seconds by the
clock.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

NUM_RUNS = 500
SMALL = ["data.limit=640", "train.epochs=null", "tracking.tensorboard=false", "tracking.wandb.mode=disabled"]
LOAD = """\
import resource, sys, time
from trainlib.config import load_config
from trainlib.data import load_data
data = load_config([{"name": "x", "data": {"name": "image_folder", "root": sys.argv[1]}}]).data
began, used = time.perf_counter(), time.process_time()
load_data(data)
others = resource.getrusage(resource.RUSAGE_CHILDREN)
print(time.process_time() - used + others.ru_utime + others.ru_stime, time.perf_counter() - began)
"""

Times = dict[str, list[tuple[float, float]]]


def run(tree: Path, words: Sequence[str], cwd: Path) -> tuple[float, float]:
    """Run Python of a tree with these arguments; return the processor seconds and the seconds that it took.

    LOAD prints both itself, without those that go into importing torch.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TRAINLAUNCH_CACHE": str(cwd / "cache")}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [tree / ".venv/bin/python", *words]
    done = subprocess.run(command, cwd=cwd, env=environment, check=True, capture_output=True, text=True)
    if LOAD in words:
        used, took = map(float, done.stdout.split()[-2:])
        return used, took
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, time.perf_counter() - began


def make_runs(tree: Path, cwd: Path) -> None:
    """Make run directories: one that is trained, and copies of it."""
    run(tree, ["-m", "trainlib.train", "quickstart", "name=first", "train.steps=4", *SMALL], cwd)
    for number in range(NUM_RUNS - 1):
        shutil.copytree(cwd / "runs/first", cwd / f"runs/copy-{number:03}")


def measure(tree: Path, cwd: Path, pictures: Path | None, times: Times) -> None:
    """Measure everything once, in a folder that has its run directories."""
    if (cwd / "runs/first").exists():
        times.setdefault("launch list, 500 runs", []).append(run(tree, ["-m", "launch", "list"], cwd))
        words = ["-m", "trainlib.train", "quickstart", "name=new", "train.steps=1", *SMALL]
        times.setdefault("a run of one step", []).append(run(tree, words, cwd))
        shutil.rmtree(cwd / "runs/new")
    if pictures is not None:
        shutil.rmtree(cwd / "cache", ignore_errors=True)
        for start in ("first", "second", "second"):
            times.setdefault(f"pictures, {start} start", []).append(run(tree, ["-c", LOAD, str(pictures)], cwd))


def medians(times: Sequence[tuple[float, float]]) -> str:
    """Return the medians of both kinds of seconds as text."""
    return ", ".join(f"{statistics.median(seconds):.2f} s" for seconds in zip(*times, strict=True))


def main() -> None:
    """Measure both trees in turns, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trees", type=Path, nargs=2, metavar="TREE")
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--only-pictures", action="store_true")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    pictures = options.pictures.absolute() if options.pictures else None
    found: list[Times] = [{}, {}]
    with tempfile.TemporaryDirectory() as folder:
        places = [Path(folder, name) for name in ("before", "after")]
        for tree, cwd in zip(options.trees, places, strict=True):
            cwd.mkdir()
            if not options.only_pictures:
                make_runs(tree.absolute(), cwd)
        for _ in range(options.rounds):
            for tree, cwd, times in zip(options.trees, places, found, strict=True):
                measure(tree.absolute(), cwd, pictures, times)
    print("| | before: processor, clock | after: processor, clock |\n|---|---|---|")
    for name in found[1]:
        print(f"| {name} | {medians(found[0][name])} | {medians(found[1][name])} |")


if __name__ == "__main__":
    main()
