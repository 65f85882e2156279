"""Time the arms in rotating order: each has processes of its own, which wait while other arms take their turn."""

from __future__ import annotations

import importlib.util
import math
import multiprocessing
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

from bench.arms import BARE, FLOOR, Arm
from bench.rounds import Result, run_arm
from bench.workload import Workload

# Relative difference that is allowed between the losses of two arms. On GPUs convolutions round their input to 10 bits
# (TF32), and loops choose different kernels. Differences grow exponentially: losses of our training with one thread and
# with two are 4e-5 apart after 100 steps of the CNN, and 4e-3 after 200.
TOLERANCE, GPU_TOLERANCE = 2e-3, 1e-2
STEPS = 100  # steps for which that holds; each further 100 allow ten times as much
PATIENCE = 300.0  # seconds for an arm to get ready, or for a round
LEAST_ROUNDS = 2  # that count, also where there is no more time
SETTLING = 0.2  # seconds after a turn, in which its workers fill their queues, and disturb nobody


class UnequalCurvesError(AssertionError):
    """The losses of an arm differ from those of the others, so that its time cannot be compared."""


def available(arms: Mapping[str, Arm]) -> dict[str, Arm]:
    """Return those of these arms whose packages are installed."""
    return {name: arm for name, arm in arms.items() if not arm.needs or importlib.util.find_spec(arm.needs)}


def time_arms(workload: Workload, arms: Mapping[str, Arm], directory: Path) -> dict[str, list[float]]:
    """Return the seconds of each arm in each round, after a first round that does not count.

    Raises UnequalCurvesError if the losses of the arms differ.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torchvision", "accelerate", "trainlib.training.session"])
    names = list(arms)
    connections: dict[str, list[Connection]] = {name: [] for name in names}
    processes = []
    try:
        for name, arm in arms.items():
            folder = directory / f"{workload.model} {name}".replace(" ", "-").replace(",", "")
            folder.mkdir(parents=True)
            port = str(free_port())
            for rank in range(arm.processes):
                ours, theirs = context.Pipe()
                log = folder / ("output.txt" if rank == 0 else f"output-{rank}.txt")
                environment = of_rank(rank, arm.processes, port)
                process = context.Process(target=run_arm, args=(arm, workload, theirs, log, environment))
                process.start()
                theirs.close()
                connections[name].append(ours)
                processes.append(process)
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for number in range(workload.rounds + 1):
            if number > LEAST_ROUNDS and time.monotonic() > workload.until:
                break
            turn = number % len(names)
            order = [*names[turn:], *names[:turn]][:: -1 if number % 2 else 1]  # nobody has always the same neighbours
            results = {name: _turn(name, connections[name]) for name in order}
            _require_equal_curves(results, number, GPU_TOLERANCE if workload.gpu else TOLERANCE)
            if number:
                for name, (elapsed, _) in results.items():
                    seconds[name].append(elapsed)
    finally:
        for connection in (ours for ranks in connections.values() for ours in ranks):
            with suppress(OSError):
                connection.send(False)
        for process in processes:
            process.join(60)
            process.kill()
    return seconds


def _turn(name: str, ranks: Sequence[Connection]) -> Result:
    """Run one round of an arm; return its slowest rank's time, and the losses, each summed over the ranks."""
    for connection in ranks:
        connection.send(True)
    results: list[Result] = []
    for connection in ranks:
        if not connection.poll(PATIENCE):
            raise TimeoutError(f"{name}: no answer in {PATIENCE:.0f} s")
        try:
            results.append(connection.recv())
        except EOFError:
            raise RuntimeError(f"{name}: its process ended; its output.txt tells why") from None
    time.sleep(SETTLING)
    losses = [sum(parts) for parts in zip(*(losses for _, losses in results), strict=True)]
    return max(elapsed for elapsed, _ in results), losses


def _require_equal_curves(results: Mapping[str, Result], number: int, tolerance: float = TOLERANCE) -> None:
    """Raise UnequalCurvesError unless all arms, except the one that repeats a batch, had the same loss at each step."""
    reference = BARE if BARE in results else next(iter(results))
    expected = results[reference][1]
    for name, (_, losses) in results.items():
        if name == FLOOR:
            continue
        for step, (ours, theirs) in enumerate(zip(expected, losses, strict=True)):
            allowed = tolerance * 10 ** (step // STEPS)
            if not math.isclose(ours, theirs, rel_tol=allowed, abs_tol=allowed):
                raise UnequalCurvesError(f"{name}: round {number}, step {step}: loss {theirs}, expected {ours}")


def of_rank(rank: int, world_size: int, port: str) -> dict[str, str]:
    """Return the environment variables that `torchrun` sets for a rank; none for a single rank."""
    if world_size == 1:
        return {}
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
    return {name: str(value) for name, value in ranks.items()} | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}


def free_port() -> int:
    """Return a TCP port of this machine that is free at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
