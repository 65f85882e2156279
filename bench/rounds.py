"""One arm's side of taking turns: it trains in its own process, and waits after every round for its turn."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn

from bench.arms import Arm
from bench.workload import Workload
from trainlib.runs.machine.launch_variables import NUM_THREADS

Result = tuple[float, list[float]]  # seconds of a round, the loss of each of its steps


NOTHING: Mapping[str, str] = MappingProxyType({})


class OverError(Exception):
    """All rounds are done: the arm's loop ends with this."""


class Rounds:
    """The rounds of one arm, each of which starts from the same weights.

    An arm calls `begin` before its first step, and `step` after every step.
    """

    def __init__(self, connection: Connection, steps: int, clock: Callable[[], float] = time.perf_counter):
        self._connection = connection
        self._steps = steps
        self._clock = clock
        self._losses: list[float | Tensor] = []

    def begin(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Remember the initial weights, and wait for the first turn."""
        self._network, self._optimizer = network, optimizer
        self._initial = {name: value.clone() for name, value in network.state_dict().items()}
        self._wait()

    def step(self, loss: float | Tensor) -> None:
        """Record a step's loss; after a round, wait for the next. Raises OverError after the last round."""
        self._losses.append(loss.detach() if isinstance(loss, Tensor) else loss)
        if len(self._losses) == self._steps:
            _wait_for_gpu()
            seconds = self._clock() - self._began
            self._connection.send((seconds, [float(loss) for loss in self._losses]))
            self._wait()

    def _wait(self) -> None:
        self._losses = []
        if not self._connection.recv():
            raise OverError
        self._network.load_state_dict(self._initial)
        for state in self._optimizer.state.values():  # in place, as a CUDA graph may hold it; SGD goes on as from none
            for value in state.values():
                value.zero_()
        _wait_for_gpu()
        self._began = self._clock()


def _wait_for_gpu() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def run_arm(
    arm: Arm, workload: Workload, connection: Connection, log: Path, environment: Mapping[str, str] = NOTHING
) -> None:
    """Train, in a process of the arm.

    log           file that gets everything that the arm prints
    environment   variables that say which rank this process is
    """
    os.environ.update(environment)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(log.parent)
    threads = max(1, workload.threads // arm.processes)
    torch.set_num_threads(threads)
    os.environ[NUM_THREADS] = str(threads)
    if not workload.gpu:
        os.environ["ACCELERATE_USE_CPU"] = "true"
    module, _, function = arm.place.partition(":")
    train: Callable[..., None] = getattr(import_module(module), function)
    try:
        clock = time.process_time if workload.cpu_time else time.perf_counter
        train(workload, Rounds(connection, workload.steps, clock), **arm.options)
    except OverError:
        pass
    except BaseException:  # noqa: BLE001 - the parent tells, and the log has it all
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
