"""The section `slurm` of the configuration."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator, Field

from trainlib.config.schema.base import Section
from trainlib.config.schema.values import Memory, NodeCount, SetupLine, SlurmWord

_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<first>\d+)(?::(?P<second>\d+))?(?::(?P<third>\d+))?")
_MOST_SIGNAL_SECONDS = 65535  # sbatch keeps them in 16 bits


def minutes_of(time: str) -> float | None:
    """Return a time limit as SLURM writes it, in minutes; None for no limit. Raises ValueError for other text.

    `90` (minutes), `90:00`, `1:30:00`, `1-12` (days-hours), `1-12:30`, `1-12:30:00`, `UNLIMITED`.
    """
    if time.lower() in ("unlimited", "infinite"):
        return None
    match = _TIME.fullmatch(time)
    parts = [int(part) for part in match.group("first", "second", "third") if part] if match else []
    if match and match["days"]:
        hours, minutes, seconds = [*parts, 0, 0][:3]
        total = int(match["days"]) * 1440 + hours * 60 + minutes + seconds / 60
    else:
        hours, minutes, seconds = {1: [0, *parts, 0], 2: [0, *parts], 3: parts}.get(len(parts), [0, 0, 0])
        total = hours * 60 + minutes + seconds / 60
    if total <= 0:
        raise ValueError(
            "must be a time limit as SLURM writes it: 90 (minutes), 1:30:00 (hours), 1-12:00:00 (days-hours), "
            "or UNLIMITED"
        )
    return total


def _time(value: object) -> object:
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    minutes_of(text if isinstance(text, str) else "")
    return text


def _partition(value: object) -> object:
    if not (isinstance(value, str) and re.fullmatch(r"[^\s=]+", value) and value.isprintable()):
        raise ValueError("must be the name of a partition, or several as a,b")
    return value


Time = Annotated[str, BeforeValidator(_time)]
PartitionName = Annotated[str, BeforeValidator(_partition)]


class SlurmConfig(Section):
    """`slurm`: the resources that `launch submit` asks SLURM for."""

    nodes: NodeCount = 1
    gpus_per_node: Annotated[int, Field(ge=0)] = 1
    processes_per_node: Annotated[int, Field(ge=1)] | None = None
    time: Time = "01:00:00"
    partition: PartitionName | None = None
    cpus_per_gpu: Annotated[int, Field(ge=1)] | None = None
    mem: Memory | None = None
    account: SlurmWord | None = None
    qos: SlurmWord | None = None
    mail: SlurmWord | None = None
    setup: list[SetupLine] = Field([])
    signal_seconds: Annotated[int, Field(ge=1, le=_MOST_SIGNAL_SECONDS)] = 120
    max_failures: Annotated[int, Field(ge=0)] = 3

    @property
    def fewest_nodes(self) -> int:
        """The lower end of `nodes`."""
        return int(str(self.nodes).partition("-")[0])

    @property
    def most_nodes(self) -> int:
        """The upper end of `nodes`."""
        return int(str(self.nodes).rpartition("-")[2])

    @property
    def processes_on_each(self) -> int:
        """Number of ranks on each node, unless the job gets other GPUs than are asked for here."""
        return self.processes_per_node or self.gpus_per_node or 1
