"""Check of torch and its devices, and a measured all-reduce between ranks that start like those of training."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.doctor.finding import Finding, note, ok, problem
from launch.doctor.node import measuring_command, node_words, num_nodes
from launch.doctor.storage import check_storage
from launch.local.ranks.agent import Agent
from launch.local.start.command import Command
from launch.local.start.devices import choose_processes
from launch.slurm.queue import QueueError, one_task_a_node
from trainlib.platform.isolation import child_variables
from trainlib.runs.attempt.secret import make_secret
from trainlib.runs.machine.gpus import count_gpus

GIB = 1 << 30
_SECONDS = 120.0  # importing torch from a slow disk included
_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # the last one is ARM's


@dataclass(frozen=True)
class Outcome:
    """The output of the measuring ranks, and their end.

    facts     versions and devices; None if the ranks ended before they wrote them
    reduced   one record for each size of the all-reduce
    """

    facts: Mapping[str, Any] | None
    reduced: list[Mapping[str, Any]]
    exit_code: int | None  # None: they did not end in time
    last_words: str


def check_ranks(processes: int | None) -> Iterator[Finding]:
    """Check the devices that torch sees, then the all-reduce, in an allocation between all of its nodes.

    processes   of each node; None for one for each GPU. Without GPUs, two, or one on each of several nodes
    """
    gpus, nodes = count_gpus(), num_nodes(os.environ)
    number = choose_processes(processes, gpus) if processes or gpus else 2 if nodes == 1 else 1
    try:
        outcome = run_ranks(number, nodes=nodes)
    except QueueError as error:
        yield problem("all-reduce", str(error), "see that scontrol show hostnames works in this allocation")
        return
    if outcome.facts is None:
        yield problem("torch", f"does not start: {_ending(outcome)}", "reinstall torch and torchvision together")
        return
    yield from devices(outcome.facts, gpus, _driver(), _cpu_flags())
    yield all_reduce(outcome, number, nodes)
    yield from check_storage("cache", Path(outcome.facts["cache"]))  # of decoded images: only trainlib knows where


def run_ranks(processes: int, *, nodes: int = 1, seconds: float = _SECONDS) -> Outcome:
    """Start `processes` ranks of the measuring program on each node, and wait for their end. Raises QueueError."""
    shared = None if nodes == 1 else Path().absolute()  # rank 0 may be on another machine than this process
    with tempfile.TemporaryDirectory(prefix=".launch-doctor-", dir=shared) as folder:
        output, log = Path(folder) / "output.jsonl", Path(folder) / "log"
        if nodes == 1:
            command = measuring_command(output, processes)
        else:
            make_secret(Path(folder))
            command = Command((*one_task_a_node(nodes), *node_words(output, processes)), {})
        with log.open("wb") as stream:
            agent = Agent(command, environment=child_variables(os.environ), stdout=stream, stderr=stream)
            exit_code: int | None = None
            try:
                exit_code = agent.wait(seconds)
            finally:
                _kill_tree(agent.process)
        lines = output.read_text().splitlines() if output.exists() else []
        words = [*"".join(agent.report.log).splitlines(), *log.read_text(errors="replace").splitlines()]
    records = [json.loads(line) for line in lines]
    return Outcome(
        next((record["facts"] for record in records if "facts" in record), None),
        [record["reduced"] for record in records if "reduced" in record],
        exit_code,
        " / ".join(line.strip() for line in words if line.strip())[-300:] if exit_code else "",
    )


def devices(facts: Mapping[str, Any], gpus: int, driver: str | None, cpu_flags: set[str]) -> Iterator[Finding]:
    """Return findings about torch, the devices that it can use, and their precisions."""
    build = f"torch {facts['torch']}, " + (f"built for CUDA {facts['cuda']}" if facts["cuda"] else "built for CPUs")
    if facts["torchvision"]:
        advice = "install torch and torchvision together, from the same index"
        yield problem("torch", f"{build}; torchvision does not work with it: {facts['torchvision']}", advice)
    elif gpus and not facts["gpus"]:
        advice = "install the build of torch for this driver's CUDA: pytorch.org/get-started"
        yield problem("torch", f"{build}, sees none of the {gpus} GPUs (driver {driver})", advice)
    else:
        yield ok("torch", build + (f", NCCL {facts['nccl']}" if facts["nccl"] else ""))
    if facts["device"] != "cpu":
        models = [f"{gpu['name']} ({gpu['memory'] / GIB:.0f} GiB)" for gpu in facts["gpus"]]
        counted = [f"{models.count(model)} x {model}" for model in dict.fromkeys(models)]
        yield ok("devices", ", ".join(counted) + (f", driver {driver}" if driver else ""))
        yield _gpu_precision(facts["bf16"])
    else:
        threads = f"{facts['threads']} thread{'s' * (facts['threads'] > 1)}"
        yield ok("devices", f"no GPU: trains on the CPU ({facts['cpu_capability']}), {threads} a process")
        bf16 = "bf16 is in this CPU's instructions" if cpu_flags & _BF16_FLAGS else "bf16 works, slower than float32"
        yield ok("precision", f"{bf16}; fp16 takes a GPU")


def all_reduce(outcome: Outcome, processes: int, nodes: int = 1) -> Finding:
    """Return the finding about the speed of the all-reduce, and whether its sums are right.

    processes   ranks on each node
    """
    topic = "all-reduce"
    measured = outcome.reduced
    ranks = f"{processes * nodes} ranks" + (f" on {nodes} nodes" if nodes > 1 else "")
    if any(not m["correct"] for m in measured):
        return problem(
            topic,
            f"wrong sums between {ranks}",
            "try NCCL_P2P_DISABLE=1: PCIe access control (ACS, IOMMU) corrupts transfers between GPUs on some machines",
        )
    if outcome.exit_code != 0:
        advice = "NCCL_DEBUG=INFO launch doctor tells more; on several networks, set NCCL_SOCKET_IFNAME"
        return problem(topic, f"failed between {ranks}: {_ending(outcome)}", advice)
    if processes * nodes == 1:
        return ok(topic, "one process, nothing to add up; --processes N measures it")
    sizes = ", ".join(f"{_size(m['bytes'])} in {_time(m['seconds'])}" for m in measured)
    largest = measured[-1]
    rate = f"bus bandwidth {largest['bus_bandwidth'] / 1e9:.2f} GB/s"
    return ok(topic, f"{ranks} through {largest['backend']}: {sizes}; {rate}; sums are right")


def _gpu_precision(bf16: bool) -> Finding:
    if bf16:
        return ok("precision", "bf16 and fp16")
    return note("precision", "fp16, no bf16 on this GPU", "train.precision: fp16")


def _ending(outcome: Outcome) -> str:
    if outcome.exit_code is None:
        return f"nothing came within {_SECONDS:.0f} s"
    return f"exit code {outcome.exit_code}: {outcome.last_words}"


def _kill_tree(child: subprocess.Popen[bytes]) -> None:
    """Kill the remaining ranks, each of which is in a session of its own."""
    import psutil

    if child.poll() is not None:
        return
    with suppress(psutil.NoSuchProcess):
        ranks = psutil.Process(child.pid).children(recursive=True)
        child.kill()
        for rank in ranks:
            with suppress(psutil.NoSuchProcess):
                rank.kill()
    child.wait()


def _driver() -> str | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    with suppress(OSError, subprocess.SubprocessError):
        words = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=True)
        return done.stdout.split("\n")[0].strip() or None
    return None


def _cpu_flags() -> set[str]:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return set(line.split())
    return set()


def _size(number: int) -> str:
    return f"{number >> 20} MiB" if number >= 1 << 20 else f"{number >> 10} KiB"


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} us"
