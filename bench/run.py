"""Our training beside other loops, on the CPU: `make bench`, or

    python -m bench.run [--data DIR] [--parts speed,overhead,startup,ranks] [--rounds 7] [--steps 50] [--quick]

speed      images a second of every arm (see bench/arms) on the tutorial CNN, batches of 64, float32
overhead   what each arm adds to a step of a bare loop, on a network of one layer, with one thread
startup    from a cold start to the first step
ranks      two processes against one with two threads

Arms take turns in rotating order, so that whatever slows the machine slows all of them; a time counts only where the
losses of all arms agree. Everything goes to bench/results/<time>/: table.md, plot.png and seconds.json.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from bench.arms import ARMS, BARE, OURS
from bench.loops import available, time_arms
from bench.ranks import time_ranks
from bench.startup import SCRIPT, time_starts
from bench.table import Seconds, machine, overhead_table, plot, seconds_table, speed_table
from bench.workload import Workload
from trainlib.distributed import num_threads

PARTS = ("speed", "overhead", "startup", "ranks")
RESULTS = Path(__file__).parent / "results"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="class folders: DIR/train/<class>/*, DIR/test/<class>/*; default: drawings")
    parser.add_argument("--parts", help="default: all; with --gpu speed,overhead")
    parser.add_argument("--gpu", action="store_true", help="compare the loops on a GPU")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--arms", help="only these, separated by semicolons; the bare loop and ours are always there")
    parser.add_argument("--threads", type=int, default=num_threads(os.environ), help="of torch in every arm")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=50, help="of a round")
    parser.add_argument("--quick", action="store_true", help="two rounds of few steps: to see that it works")
    parser.add_argument("--results", type=Path, default=RESULTS / time.strftime("%Y%m%d-%H%M%S"))
    options = parser.parse_args()
    options.parts = options.parts.split(",") if options.parts else [*PARTS][: 2 if options.gpu else None]
    if unknown := set(options.parts) - {*PARTS}:
        parser.error(f"--parts: got {', '.join(sorted(unknown))}, must be of {', '.join(PARTS)}")
    return options


def main() -> None:
    options = parse_arguments()
    rounds, steps = (2, 3) if options.quick else (options.rounds, options.steps)
    root = os.path.abspath(options.data) if options.data else None
    results: Path = options.results.absolute()
    results.mkdir(parents=True)
    names = available([OURS, BARE, *options.arms.split(";")] if options.arms else list(ARMS))

    def workload(model: str, steps: int, threads: int) -> Workload:
        made = Workload(root, results / "images.pt", model, steps, rounds, threads, options.batch_size, options.gpu)
        made.prepare()
        return made

    def speed() -> tuple[str, Seconds]:
        seconds = time_arms(workload("cnn", steps, options.threads), names, results)
        plot(seconds, options.batch_size * steps, results / "plot.png")
        return speed_table(seconds, options.batch_size * steps), seconds

    def overhead() -> tuple[str, Seconds]:
        many = steps if options.quick else 10 * steps
        loops = [name for name in names if name in (OURS, BARE) or name.endswith("tensors")]
        seconds = time_arms(workload("one-layer", many, 1), loops, results)
        return overhead_table(seconds, many), seconds

    def startup() -> tuple[str, Seconds]:
        seconds = time_starts(root, rounds, results / "startup")
        return seconds_table(seconds, SCRIPT, "to the first step"), seconds

    def ranks() -> tuple[str, Seconds]:
        seconds = time_ranks(root, 10 if options.quick else 5 * steps, rounds, results / "ranks")
        return seconds_table(seconds, "1 process", "a step"), seconds

    parts: dict[str, Callable[[], tuple[str, Seconds]]] = dict(
        zip(PARTS, (speed, overhead, startup, ranks), strict=True)
    )
    measured: dict[str, Seconds] = {}
    table = f"{time.strftime('%Y-%m-%d')}, {machine(options.threads)}; {rounds} rounds of {steps} steps\n"
    print(table, flush=True)
    for name in options.parts:
        part, measured[name] = parts[name]()
        print(f"### {name}\n\n{part}\n", flush=True)
        table += f"\n### {name}\n\n{part}\n"
        (results / "table.md").write_text(table)
        (results / "seconds.json").write_text(json.dumps(measured, indent=1))
    (results / "images.pt").unlink(missing_ok=True)
    print(f"results in {results}")


if __name__ == "__main__":
    main()
