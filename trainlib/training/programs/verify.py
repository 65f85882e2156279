"""Repeat steps of a run and record them: `python -m trainlib.training.programs.verify RUN OUTPUT --steps N`.

Started by `launch verify` once for each number of ranks. Each rank writes OUTPUT/<world size>-<rank>.jsonl, in which
`launch.runs.verify` looks for differences: a line on where it begins, then, for each step, the SHA-256 of the gradient
of every parameter as the optimizer gets it, of every weight and buffer after it, and the rows that the step led to. The
run itself is only read.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from trainlib.config import read_resolved
from trainlib.config.libraries.timm_models import packages_of
from trainlib.data import load_data
from trainlib.distributed import process_group
from trainlib.distributed.allreduce.elastic import digests
from trainlib.distributed.consensus.stop_consensus import StopConsensus
from trainlib.distributed.devices import hardware
from trainlib.errors import EXIT_OK, TrainlaunchError, UserError
from trainlib.models.own_parts.code_parts import parts_of
from trainlib.models.weights.files import weights_sha256
from trainlib.runs.attempt.stop_request import StopFlag
from trainlib.runs.directory import RunDirectory
from trainlib.runs.files.json_records import append_line
from trainlib.runs.machine import environment, launch_variables
from trainlib.runs.own_code.loading import code_of_run
from trainlib.runs.records.checkpoints import find_named, steps_in
from trainlib.runs.records.rows import BY_THE_CLOCK, Row
from trainlib.training.build.data import plan_of
from trainlib.training.build.training import build_inputs, build_training
from trainlib.training.checkpoints import checkpoint
from trainlib.training.checkpoints.checkpoint import Checkpoint
from trainlib.training.checkpoints.provenance import require_same_config, require_same_data
from trainlib.training.hooks import Hook
from trainlib.training.programs.arguments import add_code
from trainlib.training.step.train_step import StepResult
from trainlib.training.trainer import Trainer


class Recorder(Hook):
    """Writes the lines of one rank: the state around every optimizer step, and the rows that the step led to."""

    def __init__(self, path: Path):
        self._path = path
        self._line: dict[str, Any] = {}

    def write(self, line: Mapping[str, Any]) -> None:
        """Append a line to the file, which is on disk then."""
        append_line(self._path, line)

    def on_start(self, trainer: Trainer) -> None:
        """Look at gradients and weights around every optimizer step from now on."""
        module, optimizer = trainer.state.classifier.module, trainer.state.optimizer.optimizer

        def before(*_: object) -> None:
            gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
            self._line["gradients"] = digests(gradients)

        def after(*_: object) -> None:
            self._line["weights"] = digests(module.state_dict())
            self._line["weights_sha256"] = weights_sha256(module.state_dict())

        optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(after)

    def on_row(self, row: Row) -> None:
        """Keep a row, without what the clock decides."""
        kept = {key: value for key, value in row.items() if key not in BY_THE_CLOCK}
        self._line.setdefault("rows", []).append(kept)

    def on_step_end(self, trainer: Trainer, result: StepResult) -> None:
        """Write the line of the step."""
        self.write({"step": trainer.progress.step, "num_threads": torch.get_num_threads(), **self._line})
        self._line = {}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program, as one of the ranks; returns the exit code."""
    options = _parse(arguments)
    recorder = Recorder(Path(options.output) / f"{launch_variables.world_size()}-{launch_variables.rank()}.jsonl")
    try:
        rerun(RunDirectory(Path(options.run)), recorder, options.steps, options.checkpoint, options.code)
    except TrainlaunchError as error:
        recorder.write({"error": str(error), "exit_code": error.exit_code})
        return error.exit_code
    return EXIT_OK


def rerun(run: RunDirectory, recorder: Recorder, num_steps: int, named: str | None, code: Sequence[str] = ()) -> None:
    """Train `num_steps` steps of a run, from a checkpoint, as one of the ranks. Nothing is written into the run.

    named   the checkpoint, as a name; None = the newest that so many steps follow, or the beginning
    code    the values of `--code`; none where the run's copy is to be used
    """
    config = read_resolved(run.config_file)
    process_group.check_device(config.train)
    custom = parts_of(config, code_of_run(config.code, code, run.path, ["launch", "verify", str(run.path)]))
    dataset = load_data(config.data, config.seed, own=custom.load_dataset())
    with process_group.joined(config.train) as accelerator:
        plan, _ = plan_of(config, dataset)
        if named is None:
            start = _newest(run, plan.total_steps - num_steps)
        else:
            start = checkpoint.verify(find_named(run.checkpoints, named, "--checkpoint"))
        if start is not None:
            require_same_config(config, start)
            require_same_data(run, start, dataset.listing)
        training = build_training(build_inputs(config, dataset, accelerator, start, custom), start, custom)
        first, last = training.progress.step, training.progress.step + num_steps
        if last > training.plan.total_steps:
            left = training.plan.total_steps - first
            raise UserError(f"--steps: got {num_steps}, must be at most {left}, which follow step {first} in this run")
        packages = packages_of(config.model.name)
        facts = environment.bits(hardware.ingredients(accelerator.device, accelerator.num_processes, *packages))
        facts["code"] = environment.with_own_code(facts["code"], custom.code())
        changed = environment.bit_changes(start.manifest, facts, ignored=["world_size"]) if start else []
        recorder.write({"from_step": first, "world_size": accelerator.num_processes, "changed": changed})
        Trainer(training, [recorder]).run(StopConsensus(StopFlag(), None), until=last)


def _newest(run: RunDirectory, last_step: int) -> Checkpoint | None:
    """Return the newest checkpoint up to this step, verified; None where there is none."""
    for step, path in reversed(steps_in(run.checkpoints).items()):
        if step <= last_step:
            return checkpoint.verify(path)
    return None


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m trainlib.training.programs.verify", allow_abbrev=False)
    parser.add_argument("run")
    parser.add_argument("output")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--checkpoint")
    add_code(parser)
    return parser.parse_args(sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    sys.exit(main())
