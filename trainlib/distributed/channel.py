"""Connections between the few ranks of one machine: quicker than gloo's, which go through TCP also there.

Who is at the other end of a connection that breaks is gone, and a RuntimeError says so in gloo's words.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch.distributed as dist

from trainlib.config import TrainConfig
from trainlib.distributed.process_group import GlooChannel, broadcast_object, gather_objects
from trainlib.distributed.stop_consensus import Channel
from trainlib.runs.launch_variables import local_world_size

MOST_RANKS = 8  # each talks to all others
PATIENCE = 30.0  # seconds for a peer to connect
MEMORY = Path("/dev/shm")  # a file system in memory, where there is one
LOST = "Connection closed by peer"  # as gloo says it


def are_near(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether all ranks are on this machine, and few."""
    world_size = dist.get_world_size() if dist.is_initialized() else 1
    return local_world_size(environ) == world_size and world_size <= MOST_RANKS


def control_channel(config: TrainConfig) -> Channel | None:
    """On which all ranks agree, beside the gradients; None for one process. A collective."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return None
    return (UnixSocketChannel.open() if are_near() else None) or GlooChannel(config)


class UnixSocketChannel:
    """One rank's connections to all others."""

    def __init__(self, connections: list[socket.socket]):
        self._connections = connections
        self._handed_in = False

    @classmethod
    def open(cls) -> UnixSocketChannel | None:
        """None, on every rank, where one of them cannot be reached. A collective."""
        rank, world_size = dist.get_rank(), dist.get_world_size()
        folder = broadcast_object(make_socket_folder() if rank == 0 else None)
        if folder is None:
            return None
        connections: list[socket.socket] | None = None
        with socket.socket(socket.AF_UNIX) as door:
            is_open = False
            with suppress(OSError):
                door.bind(str(folder / str(rank)))
                door.listen(world_size)
                door.settimeout(PATIENCE)
                is_open = True
            if all(gather_objects(is_open)):
                with suppress(OSError):
                    connections = _connections(folder, door, rank, world_size)
            all_met = all(gather_objects(connections is not None))
        if rank == 0:
            shutil.rmtree(folder, ignore_errors=True)  # connections stay
        return cls(connections) if all_met and connections is not None else None

    def size(self) -> int:
        """How many ranks there are."""
        return len(self._connections) + 1

    def barrier(self) -> None:
        """Come back when all are here."""
        self.send_flag(asked=False)
        self.any_flag()

    def send_flag(self, *, asked: bool) -> None:
        """Send a flag to all others."""
        self._handed_in = asked
        try:
            for peer in self._connections:
                peer.sendall(b"\1" if asked else b"\0")
        except OSError as error:
            raise RuntimeError(f"{LOST}: {error}") from error

    def any_flag(self) -> bool:
        """Whether anybody's flag was up, of those that were handed in together."""
        try:
            flags = [self._handed_in, *(peer.recv(1) for peer in self._connections)]
        except OSError as error:
            raise RuntimeError(f"{LOST}: {error}") from error
        if b"" in flags:
            raise RuntimeError(LOST)
        return True in flags or b"\1" in flags


def make_socket_folder() -> Path | None:
    """In memory, where that is possible."""
    with suppress(OSError):
        return Path(tempfile.mkdtemp(prefix="trainlaunch-", dir=MEMORY if os.access(MEMORY, os.W_OK) else None))
    return None


def _connections(folder: Path, door: socket.socket, rank: int, world_size: int) -> list[socket.socket]:
    """Made to the ranks before this one, and by those after it."""
    made = []
    for lower in range(rank):
        made.append(socket.socket(socket.AF_UNIX))
        made[-1].connect(str(folder / str(lower)))
    return made + [door.accept()[0] for _ in range(rank + 1, world_size)]
