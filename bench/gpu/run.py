"""Our training beside others on an NVIDIA GPU: `make bench-gpu BENCH_ARGS='--data DIR'`, or

    python -m bench.gpu.run --data DIR [--airbench CLONE] [--parts smoke,waits,...] [--runs 50] [--quick]

loops      images a second of every arm (see bench/arms), and what each adds to a bare loop, in batches of 64 and 1,024;
           ours also with reproducibility: fast
airbench   airbench94 of the package, and airbench94_muon.py of a clone, beside our fast recipe (--config): accuracy,
           seconds, seconds from a cold start; airbench's network in our training beside its own loop
vgg16      VGG16 and ResNet-50 at 224 pixels in bfloat16: images a second, what part of a large matrix product that is
smoke      a training in fp16, and one that is killed, goes on, and is trained again with the same bits
waits      how often, and where, our steps wait for the GPU

`--budget 8m` plans what fits into eight minutes: fewer arms, runs and rounds, and a part without time is left out.
DIR holds CIFAR-10 as class folders; without it the part `airbench` is left out, and the others train on drawings.
`--cpu --quick` does all of it on a CPU, to see that it works. bench/results/<time>/ has table.md and seconds.json.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from bench.arms import ARMS_ON_GPU, BARE, FAST, OURS, TENSORS
from bench.gpu import airbench_runs as airbench
from bench.gpu.budget import RUNS, Budget, minutes
from bench.gpu.smoke import smoke_tests
from bench.gpu.syncs import count_waits, waits_text
from bench.gpu.vgg import LOOPS, peak_flops, step_flops, time_vgg, vgg_table
from bench.intervals import Interval, bootstrap, ratio
from bench.loops import time_arms
from bench.plot import plot
from bench.run import MORE_STEPS, chosen_arms, chosen_parts, parser, time_overhead
from bench.table import Results, machine, overhead_table, rows_table, speed_table
from bench.verdicts import Verdict, verdict_table, verdicts
from bench.workload import Workload

SKIPPED_STEPS = 10  # before waits are counted: kernels are chosen and memory is asked for in the first ones


@dataclass(frozen=True)
class Setting:
    """The options that all parts share; sizes are those for a GPU, or tiny ones."""

    options: argparse.Namespace
    results: Results
    root: str | None
    rounds: int
    steps: int
    budget: Budget
    until: float = math.inf

    @property
    def quick(self) -> bool:
        return bool(self.options.quick)

    def workload(self, model: str, batch_size: int, steps: int, **more: object) -> Workload:
        folder, gpu = self.results.folder, not self.options.cpu
        copy = folder / ("noise.pt" if "noise" in more else "images.pt")
        threads = self.options.threads
        more |= {"until": self.until}
        made = Workload(self.root, copy, model, steps, self.rounds, threads, batch_size, gpu, **more)  # type: ignore[arg-type]
        made.prepare()
        return made


def loops(setting: Setting) -> list[Verdict]:
    found: list[Verdict] = []
    arms, results = chosen_arms(setting.options) | {FAST: ARMS_ON_GPU[FAST]}, setting.results
    if setting.budget.is_limited and not setting.options.arms:
        arms = {name: arm for name, arm in arms.items() if name in (OURS, FAST, BARE, *TENSORS)}
    for batch_size in map(int, setting.options.batch_sizes.split(",")):
        title, folder = f"batches of {batch_size}", results.folder / f"batches-of-{batch_size}"
        folder.mkdir()
        speed = time_arms(setting.workload("cnn", batch_size, setting.steps), arms, folder)
        plot(speed, batch_size * setting.steps, folder / "plot.png")
        results.add(f"speed, {title}", speed_table(speed, batch_size * setting.steps), speed)
        many = setting.steps if setting.quick else MORE_STEPS * setting.steps
        overhead = time_overhead(setting.workload("one-layer", batch_size, many), arms, folder)
        results.add(f"overhead, {title}", overhead_table(overhead, many), overhead)
        found += _titled(title, verdicts({"speed": speed, "overhead": overhead}, many))
    return found


def compare_airbench(setting: Setting) -> list[Verdict]:
    if setting.root is None:
        setting.results.add("airbench", "Left out: it needs CIFAR-10 as class folders, `--data DIR`.")
        return []
    options, folder = setting.options, setting.results.folder / "airbench"
    number = min(options.runs, RUNS) if setting.budget.is_limited else options.runs
    clone = options.airbench.absolute() if options.airbench else None
    num_images = airbench.write_tensors(setting.root, folder)
    runs = {
        OURS: airbench.our_runs(options.config, setting.root, folder, number),
        "airbench94": airbench.package_runs(folder, number),
    }
    if clone:
        runs["airbench94_muon"] = airbench.script_runs(clone, folder, number)
    repeats = 1 if setting.quick or setting.budget.is_limited else 3
    cold = airbench.cold_seconds(options.config, setting.root, folder, clone, repeats)
    found = _recipes(setting.results, runs, cold)
    batch_size = 16 if setting.quick else airbench.PACKAGE_BATCH_SIZE
    speeds = {
        "its network in our training": airbench.network_speed(setting.root, folder, batch_size),
        "its own loop": airbench.package_speed(runs["airbench94"], num_images),
    }
    medians = {name: (f"{statistics.median(values):,.0f}",) for name, values in speeds.items()}
    setting.results.add("airbench's network", rows_table(("", "images/s"), medians))
    own = statistics.median(speeds["its own loop"])
    faster = bootstrap([speed / own for speed in speeds["its network in our training"]])
    return [*found, Verdict("airbench's network: our training / its own loop", faster, 1.0)]


def _recipes(results: Results, runs: Mapping[str, Sequence[airbench.Run]], cold: Mapping[str, float]) -> list[Verdict]:
    rows = {}
    for name, made in runs.items():
        accuracy = bootstrap([run.accuracy for run in made], statistics.fmean)
        seconds = bootstrap([run.seconds for run in made], statistics.fmean)
        rows[f"{name}, {len(made)} runs"] = (
            f"{accuracy.median:.4f} ({accuracy.low:.4f} to {accuracy.high:.4f})",
            f"{seconds.median:.3f} ({seconds.low:.3f} to {seconds.high:.3f})",
            f"{cold[name]:.1f}",
        )
    times = {name: [run.seconds for run in made] for name, made in runs.items()}
    columns = ("", "mean accuracy (95 % interval)", "mean seconds (95 % interval)", "seconds from a cold start")
    results.add("airbench", rows_table(columns, rows), times)
    accuracy = bootstrap([run.accuracy for run in runs[OURS]], statistics.fmean)
    faster = [
        Verdict(f"{name} / ours, seconds of a run", ratio(times[name], times[OURS]), 1.0)
        for name in times
        if name != OURS
    ]
    return [Verdict("our mean accuracy beside airbench", accuracy, 0.94), *faster]


def vgg16(setting: Setting) -> list[Verdict]:
    small = setting.options.cpu
    batch_size = 4 if small else setting.options.vgg_batch_size
    more = {"precision": "bf16", "image_size": 32 if small else 224, "noise": 32 * batch_size}
    names = chosen_arms(setting.options) if setting.options.arms else LOOPS
    found: list[Verdict] = []
    for title, model in (("VGG16", "vgg16-thin"),) if small else (("VGG16", "vgg16"), ("ResNet-50", "resnet50")):
        workload = setting.workload(model, batch_size, setting.steps, **more)
        seconds = time_vgg(workload, setting.results.folder, names)
        peak = peak_flops(workload.device, 256 if small else 8192)
        setting.results.add(title, vgg_table(seconds, workload, step_flops(workload), peak), seconds)
        found += _titled(title, verdicts({"speed": seconds}, setting.steps))
    return found


def smoke(setting: Setting) -> list[Verdict]:
    found = smoke_tests(setting.results.folder / "smoke", gpu=not setting.options.cpu)
    tried = [(what, float(holds)) for what, holds in found]
    rows = {what: ("yes" if holds else "no",) for what, holds in tried}
    setting.results.add("smoke", rows_table(("", "holds"), rows))
    return [Verdict(what, Interval(holds, holds, holds), 1.0) for what, holds in tried]


def waits(setting: Setting) -> list[Verdict]:
    skip = 1 if setting.quick else SKIPPED_STEPS
    workload = setting.workload("cnn", 16 if setting.quick else 64, setting.steps)
    stacks, steps = count_waits(workload, skip, (lambda mode: None) if setting.options.cpu else None)
    setting.results.add("waits", waits_text(stacks, steps))
    each = sum(stacks.values()) / steps
    return [Verdict("waits for the GPU in a step", Interval(each, each, each), 0.0, at_most=True)]


def _titled(title: str, found: Iterable[Verdict]) -> Iterable[Verdict]:
    return (verdict._replace(what=f"{title}: {verdict.what}") for verdict in found)


PARTS = {"smoke": smoke, "waits": waits, "loops": loops, "vgg16": vgg16, "airbench": compare_airbench}  # in this order


def main() -> None:
    command = parser(__doc__)
    command.add_argument("--airbench", type=Path, help=f"a clone of airbench's repository, with {airbench.SCRIPT}")
    command.add_argument("--config", default="cifar10_fast", help="our recipe that is compared with airbench's")
    command.add_argument("--runs", type=int, default=50, help="of each recipe")
    command.add_argument("--batch-sizes", default="64,1024", help="of the part `loops`")
    command.add_argument("--vgg-batch-size", type=int, default=64)
    command.add_argument("--budget", type=minutes, default=math.inf, help="minutes for all parts, like 8m")
    command.add_argument("--cpu", action="store_true", help="tiny sizes on the CPU: to see that it works")
    options = command.parse_args()
    asked = chosen_parts(options, tuple(PARTS))
    parts = [name for name in PARTS if name in asked]
    if not (options.cpu or torch.cuda.is_available()):
        raise SystemExit("no NVIDIA GPU was found; --cpu --quick tries it on the CPU")
    rounds, steps = (2, 3) if options.quick else (options.rounds, options.steps)
    device = "no GPU" if options.cpu else torch.cuda.get_device_name()
    facts = machine(options.threads, ("torch", "torchvision", "accelerate", "lightning", "timm", "airbench"))
    results = Results(options.results.absolute(), f"{device}; {facts}; {rounds} rounds of {steps} steps")
    root = os.path.abspath(options.data) if options.data else None
    setting = Setting(options, results, root, rounds, steps, Budget(options.budget))
    found: list[Verdict] = []
    failed: list[str] = []
    for i, name in enumerate(parts):
        if (until := setting.budget.until(name, parts[i + 1 :])) is None:
            results.add(name, "Left out: no time is left for it.")
            continue
        try:
            found += PARTS[name](replace(setting, until=until))
        except Exception as error:  # noqa: BLE001 - the other parts are not to be lost
            failed.append(name)
            results.add(f"{name}: failed", f"{type(error).__name__}: {error}")
        (results.folder / "noise.pt").unlink(missing_ok=True)
    if table := verdict_table(iter(found)):
        results.add("verdicts", table)
    (results.folder / "images.pt").unlink(missing_ok=True)
    print(f"results in {results.folder}")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
