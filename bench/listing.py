"""The part `listing`: processor time and memory of each rank up to the first step, with very many small files.

The files, JPEG of 8 x 8 pixels in 100 class folders, are made in a temporary folder, which is removed. Every start is a
real one, `launch run`, whose ranks are looked at from outside once the row of the first step is there; what each takes
with 200 files, for imports most of all, is subtracted. Beside it: torchvision's listing, and the least that has to be
done to notice a file that was edited in place, which torchvision does not: ask for each file.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from bench.startup import REPOSITORY

NUM_CLASSES = 100
FEW = 200
WORLD_SIZES = (1, 4)
MARK = "TRAINLAUNCH_BENCH_LISTING"
FIRST_STEP_SECONDS = 3600.0
LISTINGS = {
    "torchvision, ImageFolder": "found = [ImageFolder(root + split) for split in ('/train', '/test')]",
    "os.scandir and stat": "found = [entry.stat().st_ctime_ns for folder in folders for entry in os.scandir(folder)]",
}
LIST = """
import glob, json, os, sys, time
from torchvision.datasets import ImageFolder
def pss():
    return int(open("/proc/self/smaps_rollup").read().split("Pss:")[1].split()[0]) / 1024
root = sys.argv[1]
folders, memory, used = glob.glob(root + "/*/*"), pss(), time.process_time()
{}
print(json.dumps([time.process_time() - used, pss() - memory]))
"""

Taken = tuple[float, float]  # processor seconds, and MB of memory (PSS: pages that n processes share count 1/n)


def make_files(root: Path, count: int) -> None:
    """Write small JPEG files, nine tenths of them for training."""
    random = np.random.default_rng(0)
    contents = []
    for _ in range(64):
        file = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8)).save(file, "JPEG")
        contents.append(file.getvalue())
    for index in range(count):
        folder = root / ("test" if index // NUM_CLASSES % 10 == 9 else "train") / f"class-{index % NUM_CLASSES:03}"
        if index < 10 * NUM_CLASSES:
            folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index:07}.jpg").write_bytes(contents[index % len(contents)])


def measure_listing(count: int, rounds: int) -> dict[str, list[list[Taken]]]:
    """Return what each rank takes in each round, by name; in `first start` everything is decoded, once."""
    measured: dict[str, list[list[Taken]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, number in (("few", FEW * 10), ("many", count)):
            make_files(folder / name, number)
        least = {}
        for world_size in WORLD_SIZES:
            _start(folder, "few", world_size)
            least[world_size] = _start(folder, "few", world_size)
        _keep(measured, "first start, 1 rank", _start(folder, "many", 1), least[1])
        for _ in range(rounds):
            for name, line in LISTINGS.items():
                command = [sys.executable, "-c", LIST.replace("{}", line), str(folder / "many")]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
                measured.setdefault(name, []).append([tuple(json.loads(done.stdout))])
            for size in WORLD_SIZES:
                _keep(measured, f"second start, {size} rank(s)", _start(folder, "many", size), least[size])
    return measured


def _keep(measured: dict[str, list[list[Taken]]], name: str, taken: list[Taken], least: list[Taken]) -> None:
    over = [(cpu - cpu_0, mb - mb_0) for (cpu, mb), (cpu_0, mb_0) in zip(taken, least, strict=True)]
    measured.setdefault(name, []).append(sorted(over, reverse=True))


def _start(folder: Path, data: str, world_size: int) -> list[Taken]:
    """Start a training, and return what each rank has taken when the first step is done; then end it."""
    shutil.rmtree(folder / "runs", ignore_errors=True)
    values = ["name=start", f"data={{name: image_folder, root: {folder / data}, image_size: 8}}", "train={steps: 1}"]
    quiet = ["tracking={log_every: 1, tensorboard: false, wandb: {mode: disabled}}"]
    words = ["run", "cifar10_cnn", "--processes", str(world_size), *values, *quiet]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", MARK: str(time.time_ns())}
    environment |= {"PYTHONPATH": str(REPOSITORY), "TRAINLAUNCH_CACHE": str(folder / "cache")}
    metrics, end = folder / "runs/start/metrics.jsonl", time.monotonic() + FIRST_STEP_SECONDS
    with (folder / "output.txt").open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "launch", *words],
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        while not (metrics.exists() and metrics.read_bytes().count(b"\n")):
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"no first step:\n{(folder / 'output.txt').read_text()[-2000:]}")
            time.sleep(0.01)
        taken = _ranks(environment[MARK], world_size)
        os.kill(process.pid, signal.SIGTERM)
        process.wait()
    return taken


def _ranks(mark: str, world_size: int) -> list[Taken]:
    """Return what each rank of the start with this mark has taken so far, rank 0 first."""
    found: dict[int, list[Taken]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            variables = dict(line.partition("=")[::2] for line in (folder / "environ").read_text().split("\0"))
            if variables.get(MARK) != mark or ("RANK" not in variables and world_size > 1):
                continue
            ticks = (folder / "stat").read_text().rpartition(")")[2].split()[11:13]
            pss = (folder / "smaps_rollup").read_text().split("Pss:")[1].split()[0]
        except (OSError, ValueError, IndexError):  # it has just ended, or is another user's
            continue
        cpu = sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
        found.setdefault(int(variables.get("RANK", 0)), []).append((cpu, int(pss) / 1024))
    return [max(found[rank]) for rank in sorted(found)]  # beside helpers of its own, which inherit its variables


def listing_table(measured: dict[str, list[list[Taken]]], count: int) -> str:
    """Return the table: medians over the rounds, of the rank that took the most and of the one that took the least."""
    lines = [f"| {count:,} files | CPU s, most | CPU s, least | MB, most |", "|---|---|---|---|"]
    for name, rounds in measured.items():
        most, least = (statistics.median(ranks[place][0] for ranks in rounds) for place in (0, -1))
        memory = statistics.median(max(mb for _, mb in ranks) for ranks in rounds)
        lines.append(f"| {name} | {most:.2f} | {least:.2f} | {memory:.0f} |")
    return "\n".join(lines)
