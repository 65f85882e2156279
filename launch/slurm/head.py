"""Chooses where the ranks of a job connect: the head node, and a port there that no other job takes."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice

from launch.slurm.queue import QueueError, hostnames

# Below the ephemeral ports of every system, from which a port could be given away between the probe and its use.
FIRST_PORT, NUM_PORTS = 10_000, 20_000
_STRIDE = 7919  # prime, so that every port comes once


def node_names(node_list: str | None) -> list[str]:
    """Return the names of this job's nodes, the head first. Raises QueueError where SLURM does not tell them."""
    if not node_list:
        raise QueueError("SLURM_JOB_NODELIST is not set: this is meant to run inside a job of SLURM")
    return hostnames(node_list)


def candidate_ports(rendezvous_id: str) -> Iterator[int]:
    """Yield every port from 10000 to 29999 once, in an order of its own for each start of each job."""
    first = int.from_bytes(hashlib.sha256(rendezvous_id.encode()).digest()[:8], "big")
    for number in range(NUM_PORTS):
        yield FIRST_PORT + (first + number * _STRIDE) % NUM_PORTS


def free_ports(rendezvous_id: str, count: int, is_free: Callable[[int], bool] | None = None) -> Sequence[int]:
    """Return the first `count` candidates that are free on this machine. Raises QueueError where there are too few."""
    found = list(islice(filter(is_free or port_is_free, candidate_ports(rendezvous_id)), count))
    if len(found) < count:
        raise QueueError(f"no {count} ports between {FIRST_PORT} and {FIRST_PORT + NUM_PORTS - 1} are free here")
    return found


def port_is_free(port: int) -> bool:
    """Return True if a server could listen at this port on all addresses of this machine."""
    families = [socket.AF_INET, *([socket.AF_INET6] if socket.has_dualstack_ipv6() else [])]
    with ExitStack() as sockets:
        for family in families:
            probe = sockets.enter_context(socket.socket(family, socket.SOCK_STREAM))
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                probe.bind(("", port))
            except OSError:
                return False
    return True
