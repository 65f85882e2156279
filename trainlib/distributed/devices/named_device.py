"""The device of a rank in words, by which people and the launcher find it."""

from __future__ import annotations

import socket
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class NamedDevice:
    """A device that a rank computes on, as people and the launcher find it."""

    rank: int
    host: str
    name: str
    index: int | None
    uuid: str | None

    @classmethod
    def of_this_rank(cls, rank: int, device: torch.device) -> NamedDevice:
        """Return the device that this process trains on."""
        if device.type != "cuda":
            return cls(rank, socket.gethostname(), "CPU", None, None)
        properties = torch.cuda.get_device_properties(device)
        uuid = getattr(properties, "uuid", None)
        return cls(rank, socket.gethostname(), properties.name, device.index, str(uuid) if uuid is not None else None)

    def __str__(self) -> str:
        """Return `rank 1 on host n0, GPU 1 (NVIDIA H200, UUID ...)`."""
        place = f"rank {self.rank} on {self.host}"
        if self.index is None:
            return f"{place}, {self.name}"
        return f"{place}, GPU {self.index} ({self.name}, UUID {self.uuid or 'not known'})"
