"""Descriptions of the keys of `slurm`."""

from __future__ import annotations

from collections.abc import Mapping

from trainlib.config.docs.description import Description

D = Description

SLURM_DESCRIPTIONS: Mapping[str, Description] = {
    "slurm": D(
        "Resources that `launch submit` asks SLURM for; its command-line options override these keys.",
        "slurm='{nodes: 2, gpus_per_node: 4}'",
    ),
    "slurm.nodes": D(
        "Number of nodes; with `train.reproducibility: elastic` also a range like `1-4`, of which each start "
        "takes what the queue gives.",
        "slurm.nodes=2",
    ),
    "slurm.gpus_per_node": D(
        "GPUs on each node; 0: train on the nodes' CPUs.",
        "slurm.gpus_per_node=4",
    ),
    "slurm.processes_per_node": D(
        "Processes on each node; `null`: one for each GPU, or one on CPUs.",
        "slurm.processes_per_node=2",
    ),
    "slurm.time": D(
        "Time limit of the job, as `sbatch --time` takes it: minutes, `hours:minutes:seconds` or `days-hours`.",
        'slurm.time="04:00:00"',
    ),
    "slurm.partition": D(
        "Partition; `null`: the cluster's default.",
        "slurm.partition=gpu",
    ),
    "slurm.cpus_per_gpu": D(
        "CPU cores for each GPU; `null`: as the cluster says.",
        "slurm.cpus_per_gpu=8",
    ),
    "slurm.mem": D(
        "Memory of each node, with the unit `K`, `M`, `G` or `T`; `null`: as the cluster says.",
        "slurm.mem=64G",
    ),
    "slurm.account": D(
        "Account that the job's time is charged to.",
        "slurm.account=vision",
    ),
    "slurm.qos": D(
        "Quality of service, which may lift or lower a partition's limits.",
        "slurm.qos=high",
    ),
    "slurm.mail": D(
        "Address or user name that SLURM writes to when the job ends or fails.",
        "slurm.mail=me@example.org",
    ),
    "slurm.setup": D(
        "Lines of bash that the job runs before it starts Python, such as `module load` or `conda activate`; what they "
        "set reaches all nodes, and one that fails ends the job ([clusters.md](clusters.md)).",
        "slurm.setup='[module load cuda/12.4]'",
    ),
    "slurm.signal_seconds": D(
        "Seconds before the time limit at which the run writes a checkpoint and is queued again.",
        "slurm.signal_seconds=300",
    ),
    "slurm.max_failures": D(
        "How often a failed job is started again; preemptions and time limits do not count.",
        "slurm.max_failures=1",
    ),
}
