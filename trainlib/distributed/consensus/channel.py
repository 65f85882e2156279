"""Channels on which ranks tell each other yes or no, beside the gradients.

The few ranks of one machine talk over Unix-domain sockets, which are quicker than gloo: gloo's messages go through TCP
also there. All others use gloo. A broken connection means that the rank at its other end is gone: then a RuntimeError
is raised in gloo's words, so that it is recognised as such (see `process_group.joined`).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol, cast

import torch
import torch.distributed as dist

from trainlib.config import TrainConfig
from trainlib.distributed.process_group import broadcast_object, collective_timeout, gather_objects
from trainlib.runs.files.scratch import make_scratch
from trainlib.runs.machine import launch_variables

MAX_LOCAL_RANKS = 8  # each has a connection to all others
CONNECT_SECONDS = 30.0  # for another rank to connect
LOST = "Connection closed by peer"  # as gloo says it


class Channel(Protocol):
    """A connection between all ranks, on which each sends a flag and later receives the flags of all."""

    def size(self) -> int:
        """Return the number of ranks."""

    def send_flag(self, flag: bool) -> None:
        """Send this rank's flag to every other rank, without waiting."""

    def any_flag(self) -> bool:
        """Receive the flag that each rank has sent, and return True if any is set. Wait for those under way."""


def open_channel(config: TrainConfig) -> Channel | None:
    """Return the fastest channel that connects all ranks; None for one process. A collective."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return None
    return (UnixSocketChannel.open() if are_all_local() else None) or GlooChannel(config)


def are_all_local(environ: Mapping[str, str] = os.environ) -> bool:
    """Return True if all ranks are on this machine, and at most MAX_LOCAL_RANKS."""
    world_size = dist.get_world_size() if dist.is_initialized() else 1
    return launch_variables.local_world_size(environ) == world_size and world_size <= MAX_LOCAL_RANKS


class GlooChannel:
    """A channel for any ranks: a process group of its own, as flags must not mix with the gradients."""

    def __init__(self, config: TrainConfig):
        """Make the process group. A collective."""
        self._group = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=collective_timeout(config)))
        self._pending: tuple[torch.Tensor, dist.Work] | None = None

    def size(self) -> int:
        """Return the number of ranks."""
        return self._group.size()

    def send_flag(self, flag: bool) -> None:
        """Start an all-reduce of the ranks' flags."""
        flags = torch.tensor([int(flag)])
        work = dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        assert work is not None
        self._pending = (flags, work)

    def any_flag(self) -> bool:
        """Wait for the all-reduce, and return True if any rank's flag is set."""
        assert self._pending is not None, "a flag was sent before"
        flags, work = self._pending
        work.wait()
        return bool(flags.item())


class UnixSocketChannel:
    """Unix-domain sockets from this rank to every other rank of the machine."""

    def __init__(self, connections: list[socket.socket]):
        self._connections = connections
        self._own_flag = False

    @classmethod
    def open(cls) -> UnixSocketChannel | None:
        """Connect all ranks; return None, on every rank, where one of them cannot be reached. A collective."""
        rank, world_size = dist.get_rank(), dist.get_world_size()
        scratch = make_scratch() if rank == 0 else None
        folder = broadcast_object(scratch.path if scratch else None)
        if folder is None:
            return None
        connections: list[socket.socket] | None = None
        with socket.socket(socket.AF_UNIX) as listener:
            is_listening = False
            with suppress(OSError):
                listener.bind(str(folder / str(rank)))
                listener.listen(world_size)
                listener.settimeout(CONNECT_SECONDS)
                is_listening = True
            if all(gather_objects(is_listening)):
                with suppress(OSError):
                    connections = _connect(folder, listener, rank, world_size)
            all_connected = all(gather_objects(connections is not None))
        if scratch is not None:
            scratch.remove()  # connections stay
        return cls(connections) if all_connected and connections is not None else None

    def size(self) -> int:
        """Return the number of ranks."""
        return len(self._connections) + 1

    def barrier(self) -> None:
        """Block until every rank has called this."""
        self.send_flag(False)
        self.any_flag()

    def send_flag(self, flag: bool) -> None:
        """Send this rank's flag to every other rank, without waiting."""
        self._own_flag = flag
        try:
            for connection in self._connections:
                connection.sendall(b"\1" if flag else b"\0")
        except OSError as error:
            raise RuntimeError(f"{LOST}: {error}") from error

    def any_flag(self) -> bool:
        """Receive one flag from every other rank, and return True if any is set, this rank's own included."""
        try:
            flags = [connection.recv(1) for connection in self._connections]
        except OSError as error:
            raise RuntimeError(f"{LOST}: {error}") from error
        if b"" in flags:
            raise RuntimeError(LOST)
        return self._own_flag or b"\1" in flags


def _connect(folder: Path, listener: socket.socket, rank: int, world_size: int) -> list[socket.socket]:
    """Connect to the ranks before this one, and accept the connections of those after it."""
    connections = []
    for lower in range(rank):
        connections.append(socket.socket(socket.AF_UNIX))
        connections[-1].connect(str(folder / str(lower)))
    return connections + [listener.accept()[0] for _ in range(rank + 1, world_size)]
