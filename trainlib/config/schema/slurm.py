"""The section `slurm` of the configuration."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from trainlib.config.schema.base import Section
from trainlib.config.schema.values import Memory, NodeCount, SetupLine, SlurmWord


class SlurmConfig(Section):
    """`slurm`: the resources that `launch submit` asks SLURM for."""

    nodes: NodeCount = 1
    gpus_per_node: Annotated[int, Field(ge=0)] = 1
    processes_per_node: Annotated[int, Field(ge=1)] | None = None
    time: Annotated[str, Field(min_length=1)] = "01:00:00"
    partition: str | None = None
    cpus_per_gpu: Annotated[int, Field(ge=1)] | None = None
    mem: Memory | None = None
    account: SlurmWord | None = None
    qos: SlurmWord | None = None
    mail: SlurmWord | None = None
    setup: list[SetupLine] = Field([])
    signal_seconds: Annotated[int, Field(ge=1)] = 120
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
