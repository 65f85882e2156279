"""Measure what it costs that a run heals itself, and that slow ranks are named: processor time, in one training.

    python bench/healing_cost.py [--processes 2] [--steps 1200] [--audit 100]

Under `launch run`, ranks keep snapshots in memory, tell the launcher their step, and compare their own time per sample.
Each of these calls is timed by the processor, in a training of the tutorial CNN on one thread a rank, beside the
processor time of the whole process from step 50 on; the thread that writes snapshots counts as well. With --audit, so
does what `train.audit` computes again and hashes, every so many steps.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
CONFIG = [
    "cifar10_cnn",
    "data={name: synthetic, limit: 6400, val_fraction: 0.01}",
    "tracking={wandb: {mode: disabled}, tensorboard: false}",
    "name=measured",
]
FIRST = 50  # steps that are not counted

# Imported by every rank before it trains, as one's own code is.
CODE = f"""\
import json, os, time
from trainlib.distributed.pace.slow_ranks import SlowRanks
from trainlib.distributed.pace.stopwatch import Stopwatch
from trainlib.training.checkpoints.snapshots import Snapshots, SnapshotWriter
from trainlib.training.hooks import StepFileHook
from trainlib.training.step.audit import Audit

spent, start = {{}}, {{}}

def timed(owner, name, part):
    call = getattr(owner, name)
    def timed_call(*rest, **more):
        began = time.thread_time()
        try:
            return call(*rest, **more)
        finally:
            spent[part] = spent.get(part, 0.0) + time.thread_time() - began
    setattr(owner, name, timed_call)

for owner, name, part in (
    (Stopwatch, "resume", "own time per sample"), (Stopwatch, "end_shard", "own time per sample"),
    (Stopwatch, "take", "own time per sample"), (SlowRanks, "add", "own time per sample"),
    (Snapshots, "take_if_due", "snapshots, in the training"), (SnapshotWriter, "_write", "snapshots, in their thread"),
    (StepFileHook, "on_progress", "the step, told to the launcher"),
    (Audit, "choose", "audits"), (Audit, "before_forward", "audits"), (Audit, "compare", "audits"),
):
    timed(owner, name, part)

def count(self, *rest, on_progress=StepFileHook.on_progress):
    on_progress(self, *rest)
    step = self._progress.step
    if step <= {FIRST}:
        spent.clear()
        start.update(used=time.process_time(), step=step)
    total = {{"steps": step - start["step"], "all": time.process_time() - start["used"], "parts": spent}}
    if step % 50 == 0 and spent:
        with open(f"{{os.environ['HEALING_COST']}}/rank-{{os.environ.get('RANK', 0)}}.json", "w") as file:
            json.dump(total, file)

StepFileHook.on_progress = count
"""


def main() -> None:
    """Train once, and print a table for each rank."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--audit", type=int, help="every so many steps; none by default")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "measured.py").write_text(CODE)
        threads = {"OMP_NUM_THREADS": "1", "TRAINLAUNCH_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        train = f"train={{steps: {options.steps}, batch_size: 64, audit: {options.audit or 'null'}}}"
        words = [*CONFIG, train, "--code", "measured.py"]
        subprocess.run(
            [sys.executable, "-m", "launch", "run", *words, "--processes", str(options.processes)],
            cwd=folder,
            env=os.environ | threads | {"PYTHONPATH": str(REPOSITORY), "HEALING_COST": folder},
            check=True,
        )
        for rank in range(options.processes):
            found = json.loads(Path(folder, f"rank-{rank}.json").read_text())
            print(f"\nrank {rank}, {found['steps']} steps | ms a step | share of all")
            for part, seconds in [*found["parts"].items(), ("together", sum(found["parts"].values()))]:
                print(f"{part} | {1000 * seconds / found['steps']:.4f} | {seconds / found['all']:.2%}")
            print(f"all that the process did | {1000 * found['all'] / found['steps']:.2f} |")


if __name__ == "__main__":
    main()
