"""Times the arms in rotating order. Each lives in a process of its own, and waits while others have their turn."""

from __future__ import annotations

import importlib.util
import math
import multiprocessing
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

from bench.arms import ARMS, BARE, FLOOR
from bench.rounds import Result, run_arm
from bench.workload import Workload

# Of a loss; sums in another layout or order differ by less at the steps of one round.
TOLERANCE = 2e-3
PATIENCE = 300.0  # seconds for an arm to get ready, or for a round


class UnequalCurvesError(AssertionError):
    """An arm computed something else than the others, so that its time means nothing."""


def available(names: Sequence[str]) -> list[str]:
    """Those of these arms whose packages are installed."""
    return [name for name in names if not (package := ARMS[name].needs) or importlib.util.find_spec(package)]


def time_arms(workload: Workload, names: Sequence[str], directory: Path) -> dict[str, list[float]]:
    """Seconds of each arm in each round. Raises UnequalCurvesError; a first round warms up and does not count."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torchvision", "accelerate", "trainlib.session"])
    connections: dict[str, Connection] = {}
    processes = []
    try:
        for name in names:
            connections[name], theirs = context.Pipe()
            arm = ARMS[name]
            log = directory / f"{workload.model} {name}".replace(" ", "-").replace(",", "") / "output.txt"
            log.parent.mkdir(parents=True)
            process = context.Process(target=run_arm, args=(arm.place, arm.options, workload, theirs, log))
            process.start()
            theirs.close()
            processes.append(process)
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for number in range(workload.rounds + 1):
            turn = number % len(names)
            order = [*names[turn:], *names[:turn]][:: -1 if number % 2 else 1]  # nobody has always the same neighbours
            results = {name: _turn(name, connections[name]) for name in order}
            _require_equal_curves(results, number)
            if number:
                for name, (elapsed, _) in results.items():
                    seconds[name].append(elapsed)
    finally:
        for connection in connections.values():
            with suppress(OSError):
                connection.send(False)
        for process in processes:
            process.join(60)
            process.kill()
    return seconds


def _turn(name: str, connection: Connection) -> Result:
    connection.send(True)
    if not connection.poll(PATIENCE):
        raise TimeoutError(f"{name}: no answer in {PATIENCE:.0f} s")
    try:
        result: Result = connection.recv()
    except EOFError:
        raise RuntimeError(f"{name}: its process ended; its output.txt tells why") from None
    return result


def _require_equal_curves(results: Mapping[str, Result], number: int) -> None:
    """Every arm but the one that repeats a batch had the same loss at each step of the round."""
    expected = results[BARE][1]
    for name, (_, losses) in results.items():
        if name == FLOOR:
            continue
        for step, (ours, theirs) in enumerate(zip(expected, losses, strict=True)):
            if not math.isclose(ours, theirs, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
                raise UnequalCurvesError(f"{name}: round {number}, step {step}: loss {theirs}, expected {ours}")
