"""Trains a complete run again from what its directory holds, and compares the results."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trainlib.runs
from trainlib.config import Config, read_resolved, weights_run
from trainlib.errors import TrainlaunchError, UserError
from trainlib.platform.isolation import child_variables
from trainlib.runs.files.json_records import Record, read_json, read_lines
from trainlib.runs.machine.environment import bit_changes, bits
from trainlib.runs.records.checkpoints import steps_in
from trainlib.runs.records.rows import BY_THE_CLOCK

UNTRACKED = (
    *("tracking.wandb.mode=disabled", "tracking.tensorboard=false", "tracking.trackers=[]"),
    *("mirror=null", "checkpoint.after=null"),  # a mirror has the run itself, with which it would be compared
)
NAMED_AT_MOST = 6


@dataclass(frozen=True)
class Comparison:
    """What two trainings of one configuration have in common.

    differences   sentences on what is not the same in every bit; none where all is
    figures       for each reported figure that differs, its name and the largest difference
    environment   phrases on software, hardware and data that are not those of the first training
    """

    differences: Sequence[str]
    figures: Mapping[str, float]
    environment: Sequence[str]


@contextmanager
def trained_again(run: Path, code: Sequence[str]) -> Iterator[Path]:
    """Context manager: the directory of a second training with the configuration of a complete run; removed on exit.

    It has the run's number of processes and threads, and no trackers. The run itself is only read.

    code   values of `--code`; none where the run's own copy is to be used

    Raises UserError for a run that is not complete, TrainlaunchError where the training fails.
    """
    if read_json(run / "summary.json").get("status") != "completed":
        raise UserError(f"{run}: is not complete: train it to its end with launch run {run}/config.yaml")
    environment, config = read_json(run / "environment.json"), read_resolved(run / "config.yaml")
    with tempfile.TemporaryDirectory(prefix="launch-verify-") as folder:
        _link_weights(config, run, Path(folder))
        words = [sys.executable, "-m", "launch", "run", str(run / "config.yaml"), f"name={config.name}", *UNTRACKED]
        words += [word for one in code for word in ("--code", one)]
        variables = {trainlib.runs.RUNS_VARIABLE: folder}
        if threads := environment.get("num_threads"):
            variables["TRAINLAUNCH_NUM_THREADS"] = str(threads)
        world_size = environment.get("world_size") or 1
        words += ["--processes", str(world_size)]
        done = subprocess.run(words, env={**os.environ, **child_variables(os.environ), **variables}, stdout=sys.stderr)
        if done.returncode:
            raise TrainlaunchError(f"{run}: the second training ended with exit code {done.returncode}")
        yield Path(folder) / config.name


def _link_weights(config: Config, run: Path, folder: Path) -> None:
    """Let the second training find the run from whose weights this one began."""
    found = weights_run(config.model.weights)
    if found is not None:
        (folder / found.name).symlink_to((run.parent / found.name).absolute(), target_is_directory=True)


def compare(then: Path, now: Path) -> Comparison:
    """Compare two complete run directories of one configuration."""
    before, after = (read_json(run / "summary.json") for run in (then, now))
    differences = [
        f"{key} was {_short(before.get(key))}, is {_short(after.get(key))}"
        for key in ("step", "weights_sha256")
        if before.get(key) != after.get(key)
    ]
    rows = [_rows(run) for run in (then, now)]
    figures = _largest_differences(*rows)
    if rows[0].keys() != rows[1].keys():
        differences.append(f"{len(rows[0])} rows were reported, and {len(rows[1])} are")
    if figures:
        differences.append(f"reported figures differ: {', '.join(list(figures)[:NAMED_AT_MOST])}")
    return Comparison(differences, figures, [*_environment(then, now), *_data(then, now)])


def _rows(run: Path) -> dict[tuple[Any, ...], Record]:
    """Return the rows of a run by what they are of; of a row that a resumed run made again, the last one."""
    return {(row.get("split"), row.get("scope"), row.get("step")): row for row in read_lines(run / "metrics.jsonl")}


def _largest_differences(then: Mapping[Any, Record], now: Mapping[Any, Record]) -> dict[str, float]:
    """Return the largest difference of each figure that is not the same in all rows, by `split/name`."""
    largest: dict[str, float] = {}
    for key in then.keys() & now.keys():
        for name in {**then[key], **now[key]}:
            value, other = then[key].get(name), now[key].get(name)
            numbers = [one for one in (value, other) if isinstance(one, int | float)]  # None: it is not finite
            if name in BY_THE_CLOCK or value == other or not numbers:
                continue
            distance = abs(numbers[0] - numbers[1]) if len(numbers) == 2 else float("inf")
            figure = f"{key[0]}/{name}"
            largest[figure] = max(largest.get(figure, 0.0), distance)
    return dict(sorted(largest.items()))


def _environment(then: Path, now: Path) -> list[str]:
    before, after = (read_json(run / "environment.json") for run in (then, now))
    return bit_changes(before, bits(after))


def _data(then: Path, now: Path) -> list[str]:
    """Return phrases on what the checkpoints of two runs say of their data that is not the same."""
    before, after = (_manifest(run).get("data") or {} for run in (then, now))
    return [
        f"data: {key} was {_short(before.get(key))}, is {_short(after.get(key))}"
        for key in {**before, **after}
        if before.get(key) != after.get(key)
    ]


def _manifest(run: Path) -> Record:
    """Return the manifest of a run's newest checkpoint."""
    steps = steps_in(run / "checkpoints")
    return read_json(steps[max(steps)] / "manifest.json") if steps else {}


def _short(value: Any) -> str:
    return str(value)[:16]


def text_of(found: Comparison, run: Path) -> str:
    """Return what to tell of a comparison."""
    if not found.differences:
        digest = str(read_json(run / "summary.json").get("weights_sha256"))[:16]
        lines = [f"the same in every bit: weights {digest}, and every reported figure"]
    else:
        lines = [f"different: {'; '.join(found.differences)}"]
        lines += [f"  {name}: by at most {value:.2g}" for name, value in found.figures.items()]
    if found.environment:
        lines.append(f"not as in the run: {'; '.join(found.environment)}")
    elif found.differences:
        lines.append("of software, hardware and data nothing is known to be other than in the run")
    return "\n".join(lines)
