"""Our training beside other loops, on the CPU: `make bench`, or

    python -m bench.run [--data DIR] [--parts speed,overhead,...] [--rounds 7] [--steps 50] [--quick]

speed      images a second of every arm (see bench/arms) on the tutorial CNN, batches of 64, float32
overhead   what each arm adds to a step of a bare loop, on a network of one layer, with one thread
startup    from a cold start to the first step
ranks      two processes (or --processes) against one with as many threads in all, 300 steps a round
gloo       as many processes as --processes says beside DistributedDataParallel over gloo, for three models
loading    pictures that a CPU second loads, decoded from JPEG files; see bench/loading.py
listing    processor time and memory to the first step with --files small files; see bench/listing.py

Arms take turns in rotating order, so that whatever slows the machine slows all of them; a time counts only where the
losses of all arms agree. The last table holds the ratios against the bounds that were set. Everything goes to
bench/results/<time>/: table.md, plot.png and seconds.json. bench/gpu does the same, and more, on a GPU.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

from bench.arms import ARMS, BARE, DDP, FAST, ONE, OURS, Arm, beside_gloo, of_ranks
from bench.intervals import Seconds
from bench.listing import listing_table, measure_listing
from bench.loading import loading_table, make_pictures, time_loaders
from bench.loops import available, time_arms
from bench.plot import plot
from bench.startup import SCRIPT, time_starts
from bench.table import Results, machine, overhead_table, seconds_table, speed_table
from bench.verdicts import verdict_table, verdicts
from bench.workload import Workload
from trainlib.distributed.process_group import num_threads

PARTS = ("speed", "overhead", "startup", "ranks", "gloo", "loading", "listing")
BESIDE_GLOO = ("cnn", "resnet18", "vgg16-half")  # all of VGG16 would take two gigabytes in each process
RESULTS = Path(__file__).parent / "results"
FEW_FILES = 20_000  # of the part `listing`, with --quick
MORE_STEPS = 10  # in a round of `overhead`, whose steps are short
MORE_OF_RANKS = 6  # in a round of `ranks`, where a whole run has many


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return the parser of the options that all benchmarks of loops have."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", help="class folders: DIR/train/<class>/*, DIR/test/<class>/*; default: drawings")
    made.add_argument("--parts", help="some of them, separated by commas; default: all")
    made.add_argument("--arms", help="only these, separated by semicolons; the bare loop and ours are always there")
    made.add_argument("--threads", type=int, default=num_threads(os.environ), help="of torch in every arm")
    made.add_argument("--rounds", type=int, default=7)
    made.add_argument("--steps", type=int, default=50, help="of a round")
    made.add_argument("--quick", action="store_true", help="two rounds of few steps: to see that it works")
    made.add_argument("--results", type=Path, default=RESULTS / time.strftime("%Y%m%d-%H%M%S"))
    return made


def chosen_parts(options: argparse.Namespace, parts: tuple[str, ...]) -> list[str]:
    """Return the parts that the user asked for. Raises SystemExit for an unknown one."""
    chosen: list[str] = options.parts.split(",") if options.parts else [*parts]
    if unknown := set(chosen) - {*parts}:
        raise SystemExit(f"--parts: got {', '.join(sorted(unknown))}, must be of {', '.join(parts)}")
    return chosen


def chosen_arms(options: argparse.Namespace) -> dict[str, Arm]:
    """Return the arms that the user asked for and that can run here. Raises SystemExit for an unknown one."""
    names = [OURS, BARE, *options.arms.split(";")] if options.arms else list(ARMS)
    if unknown := set(names) - {*ARMS}:
        raise SystemExit(f"--arms: got {'; '.join(sorted(unknown))}, must be of {'; '.join(ARMS)}")
    return available({name: ARMS[name] for name in names})


def time_overhead(workload: Workload, arms: Mapping[str, Arm], directory: Path) -> dict[str, list[float]]:
    """Time the arms that get the same tensors, so that only their loops differ."""
    loops = {name: arm for name, arm in arms.items() if name in (OURS, FAST, BARE) or name.endswith(", tensors")}
    return time_arms(workload, loops, directory)


def time_beside_gloo(workload: Workload, number: int, results: Results) -> None:
    """Time our training and a bare loop in this number of processes, and add the table."""
    seconds = time_arms(workload, beside_gloo(number), results.folder / f"gloo-{number}")
    unit = "of the processor a step" if workload.cpu_time else "a step"
    title = f"{workload.model}, {number} processes"
    results.add(title, seconds_table(seconds, DDP, unit, workload.steps), seconds)


def main() -> None:
    command = parser(__doc__)
    command.add_argument("--batch-size", type=int, default=64)
    command.add_argument("--processes", default="2", help="of the parts `ranks` and `gloo`, separated by commas")
    command.add_argument("--models", default=",".join(BESIDE_GLOO), help="of the part `gloo`, separated by commas")
    command.add_argument("--cpu-time", action="store_true", help="the processor's time: of the part `gloo`")
    command.add_argument("--files", type=int, default=600_000, help="of the part `listing`")
    options = command.parse_args()
    parts, arms = chosen_parts(options, PARTS), chosen_arms(options)
    rounds, steps = (2, 3) if options.quick else (options.rounds, options.steps)
    root = os.path.abspath(options.data) if options.data else None
    folder: Path = options.results.absolute()
    results = Results(folder, f"{machine(options.threads)}; {rounds} rounds of {steps} steps")

    def workload(model: str, steps: int, threads: int, *, cpu_time: bool = False) -> Workload:
        made = Workload(
            root, folder / "images.pt", model, steps, rounds, threads, options.batch_size, cpu_time=cpu_time
        )
        made.prepare()
        return made

    seconds: Seconds
    if "speed" in parts:
        seconds = time_arms(workload("cnn", steps, options.threads), arms, folder)
        plot(seconds, options.batch_size * steps, folder / "plot.png")
        results.add("speed", speed_table(seconds, options.batch_size * steps), seconds)
    many = steps if options.quick else MORE_STEPS * steps
    if "overhead" in parts:
        seconds = time_overhead(workload("one-layer", many, 1), arms, folder)
        results.add("overhead", overhead_table(seconds, many), seconds)
    if "startup" in parts:
        seconds = time_starts(root, rounds, folder / "startup")
        results.add("startup", seconds_table(seconds, SCRIPT, "to the first step"), seconds)
    numbers = [int(number) for number in options.processes.split(",")]
    if "ranks" in parts:
        of_round = steps if options.quick else MORE_OF_RANKS * steps
        seconds = time_arms(workload("cnn", of_round, max(2, options.threads)), of_ranks(numbers), folder)
        results.add("ranks", seconds_table(seconds, ONE, "a step", of_round), seconds)
    if "gloo" in parts:
        threads = max(2, options.threads)
        for model, number in itertools.product(options.models.split(","), numbers):
            time_beside_gloo(workload(model, steps, threads, cpu_time=options.cpu_time), number, results)
    if "loading" in parts:
        made = RESULTS / "pictures"
        make_pictures(made, *((200, 2) if options.quick else (3000, 12)))
        measured = time_loaders(made, rounds, 2)
        (folder / "loading.json").write_text(json.dumps(measured, indent=1))
        results.add("loading", loading_table(measured))
    if "listing" in parts:
        ranks = measure_listing(FEW_FILES if options.quick else options.files, min(rounds, 3))
        (folder / "listing.json").write_text(json.dumps(ranks, indent=1))
        results.add("listing", listing_table(ranks, FEW_FILES if options.quick else options.files))
    if table := verdict_table(verdicts(results.measured, many)):
        results.add("verdicts", table)
    (folder / "images.pt").unlink(missing_ok=True)
    print(f"results in {folder}")


if __name__ == "__main__":
    main()
