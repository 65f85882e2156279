"""What a step of `launch run` costs with and without a mirror: `python -m bench.mirroring [key=value ...]`.

One run trains. The process that copies it is stopped and continued in turns, and the CPU time of the training's own
thread for each step is compared between the turns, so that other load on the machine counts less.
"""

from __future__ import annotations

import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from trainlib.runs.mirror.process import PROGRAM

TURNS = 40
TURN_SECONDS = 4.0
KEYS = (
    "mirror=copies",
    "train.epochs=1000",
    "checkpoint.every=20st",
    "tracking={log_every: 1, tensorboard: false, progress: false, wandb: {mode: disabled}}",
)
RUN = Path("runs/quickstart")


def main(arguments: list[str]) -> None:
    """Print the median CPU time of a step in either case, and what was copied."""
    os.chdir(tempfile.mkdtemp())
    command = [sys.executable, "-m", "launch", "run", "quickstart", *KEYS, *arguments]
    run = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    while not _steps() or (pair := _copier()) is None:
        if run.poll() is not None:
            raise SystemExit("the run has ended before its first step")
        time.sleep(0.1)
    copier, training = pair
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(TURNS):
        os.kill(copier, signal.SIGCONT if turn % 2 == 0 else signal.SIGSTOP)
        time.sleep(TURN_SECONDS / 4)
        before = _cpu_seconds(training), _steps()
        time.sleep(TURN_SECONDS)
        after = _cpu_seconds(training), _steps()
        if after[1] > before[1]:
            seconds[turn % 2 == 0].append((after[0] - before[0]) / (after[1] - before[1]))
    os.kill(copier, signal.SIGCONT)
    steps, copying = _steps(), sum(psutil.Process(copier).cpu_times()[:2])
    run.send_signal(signal.SIGTERM)
    run.wait()
    for copies, of_turns in seconds.items():
        print(
            f"{'with' if copies else 'without'} a mirror: {_spread(of_turns)} of CPU time a step, {len(of_turns)} turns"
        )
    more = [one - other for one, other in zip(seconds[True], seconds[False], strict=False)]
    print(f"with a mirror more than in the next turn without: {_spread(more)}")
    there = sum(path.stat().st_size for path in Path("copies").rglob("*") if path.is_file())
    print(
        f"{steps} steps, a checkpoint every 20; {there / 1e6:.1f} MB are at the mirror; "
        f"the process that copies took {copying / steps * 1e3:.2f} ms of CPU time a step"
    )


def _spread(seconds: list[float]) -> str:
    """Return the median and the quartiles, in milliseconds."""
    low, median, high = statistics.quantiles(seconds, n=4)
    return f"median {median * 1e3:.2f} ms, quartiles {low * 1e3:.2f} to {high * 1e3:.2f}"


def _steps() -> int:
    try:
        return (RUN / "metrics.jsonl").read_bytes().count(b'"scope": "step"')
    except FileNotFoundError:
        return 0


def _copier() -> tuple[int, int] | None:
    """Return the ids of the process that copies the run in this folder, and of the one that trains."""
    for process in Path("/proc").iterdir():
        try:
            is_it = process.name.isdecimal() and f"{PROGRAM}\0follow".encode() in (process / "cmdline").read_bytes()
            if is_it and (process / "cwd").resolve() == Path.cwd():
                found = re.search(r"(?m)^PPid:\s*(\d+)$", (process / "status").read_text())
                return (int(process.name), int(found[1])) if found else None
        except OSError:  # it has ended meanwhile
            continue
    return None


def _cpu_seconds(process: int) -> float:
    """Return for how long the main thread of a process has computed."""
    return int(Path(f"/proc/{process}/task/{process}/schedstat").read_text().split()[0]) / 1e9


if __name__ == "__main__":
    main(sys.argv[1:])
