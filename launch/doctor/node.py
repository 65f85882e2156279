"""Start of the measuring ranks on one node; srun runs `python -m launch.doctor.node` on each of several."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from launch.local.ranks.agent import Agent
from launch.local.start.command import Command, Node, command_here
from launch.local.start.network import interface_to, own_interfaces
from launch.slurm.head import free_ports, node_names
from trainlib.runs.machine.gpus import count_gpus

MODULE = "trainlib.distributed.checks.measure"


def num_nodes(environment: Mapping[str, str]) -> int:
    """Return the number of nodes in this SLURM allocation, 1 outside one."""
    return int(environment.get("SLURM_JOB_NUM_NODES") or 1) if "SLURM_JOB_ID" in environment else 1


def measuring_command(output: Path, processes: int, node: Node | None = None) -> Command:
    """Return the command that starts this machine's measuring ranks, in the way training starts its own."""
    return command_here([str(output)], processes, count_gpus(), module=MODULE, node=node)


def node_words(output: Path, processes: int) -> list[str]:
    """Return the command line for each node of this allocation. Raises QueueError if its first node is not found."""
    head = node_names(os.environ.get("SLURM_JOB_NODELIST"))[0]
    (port,) = free_ports(f"doctor-{os.environ['SLURM_JOB_ID']}-{os.getpid()}", 1)
    return [sys.executable, "-m", "launch.doctor.node", str(output), str(processes), head, str(port)]


def main() -> int:
    """Start this node's ranks, wait for their end, and return the exit code of their launcher.

    The nodes gather as those of a run do, with the secret in the folder of the output.
    """
    output, processes, head, port = sys.argv[1:]
    interface = os.environ.get("GLOO_SOCKET_IFNAME") or interface_to(head, own_interfaces())
    place = Node(num_nodes(os.environ), int(os.environ["SLURM_NODEID"]), (head, int(port)), interface)
    command = measuring_command(Path(output), int(processes), place)
    agent = Agent(command, environment={"TRAINLAUNCH_RUN_DIRECTORY": str(Path(output).parent)})
    code = None
    while code is None:
        code = agent.wait(1.0)
    print("".join(agent.report.log) + (agent.report.error or ""), file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
