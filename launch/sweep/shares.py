"""The parts of this machine that runs get which train at the same time: GPUs, and threads of the CPU."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainlib.errors import UserError
from trainlib.runs.files.json_records import read_json
from trainlib.runs.machine import launch_variables
from trainlib.runs.machine.launch_variables import NUM_THREADS

GPUS = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Begun:
    """What a run began with, which it keeps for the sake of its bits: threads of each process, and processes."""

    num_threads: int
    world_size: int


def begun(directory: Path) -> Begun | None:
    """Return what the run in a directory began with; None where it has not begun."""
    facts = read_json(directory / "environment.json")
    threads, world_size = facts.get("num_threads"), facts.get("world_size")
    return Begun(threads, world_size) if isinstance(threads, int) and isinstance(world_size, int) else None


def visible_names(count: int, environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return how CUDA_VISIBLE_DEVICES names the first `count` GPUs that are visible."""
    given = [name.strip() for name in environment.get(GPUS, "").split(",") if name.strip()]
    return given[:count] if given else [str(index) for index in range(count)]


class Shares:
    """Shares the machine out among the runs that train at the same time.

    parallel    the number of runs at a time
    processes   of each run; None: what it began with, or an equal share of the GPUs, or one without GPUs
    gpus        names of the GPUs, for CUDA_VISIBLE_DEVICES
    cores       of the CPU that may be used
    """

    def __init__(self, parallel: int, processes: int | None, gpus: Sequence[str], cores: int):
        if gpus and processes is not None and processes > len(gpus):
            raise UserError(
                f"--processes: got {processes}, must be at most {len(gpus)}, the GPUs that are visible here"
            )
        self._parallel, self._processes, self._gpus, self._cores = parallel, processes, tuple(gpus), cores
        self._taken: dict[str, tuple[str, ...]] = {}

    def take(self, name: str, first: Begun | None, *, is_elastic: bool) -> tuple[list[str], dict[str, str]]:
        """Return options of `launch run`, and variables, for a run that starts now.

        first        what the run began with; None for a new one
        is_elastic   the number of threads is one, whatever else is shared
        Raises UserError where a run needs more GPUs than there are.
        """
        processes = self._number(first)
        options = ["--processes", str(processes)] if processes is not None else []
        variables = {}
        number = processes or 1
        if self._gpus and number > len(self._gpus):
            raise UserError(f"{name}: began with {number} processes, and {len(self._gpus)} GPUs are visible here")
        if self._gpus and processes is not None and (self._parallel > 1 or processes < len(self._gpus)):
            load = [gpu for gpus in self._taken.values() for gpu in gpus]
            chosen = sorted(sorted(self._gpus, key=load.count)[:number], key=self._gpus.index)
            self._taken[name] = tuple(chosen)
            variables[GPUS] = ",".join(chosen)
        if first is not None:
            variables[NUM_THREADS] = str(first.num_threads)
        elif self._parallel > 1 and not is_elastic and launch_variables.num_threads() is None:
            variables[NUM_THREADS] = str(max(1, self._cores // (self._parallel * number)))
        return options, variables

    def give_back(self, name: str) -> None:
        """Free what a run has taken, which has ended."""
        self._taken.pop(name, None)

    def _number(self, first: Begun | None) -> int | None:
        """Return the number of processes to ask for; None leaves it to `launch run`."""
        if self._processes is not None or first is not None:
            return self._processes or (first.world_size if first else None)
        return max(1, len(self._gpus) // self._parallel) if self._gpus and self._parallel > 1 else None
