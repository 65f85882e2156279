"""Check of SLURM: its commands, its controller, and the folder that the nodes of an allocation share."""

from __future__ import annotations

import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from launch.doctor.finding import Finding, note, ok, problem
from launch.doctor.node import num_nodes
from launch.slurm.queue import Partition, QueueError, on_each_node, partitions
from trainlib.runs import RUNS

_COMMANDS = ("sbatch", "srun", "squeue", "scontrol", "sinfo", "scancel")
_NO_CONFIGURATION = "Could not establish a configuration source"

# Run once on each node: does it see the file, and does the lock that this process holds keep it out?
_LOOK = """
import fcntl, socket, sys, time
for attempt in range(50):  # for what a network file system keeps in its cache
    try:
        file = open(sys.argv[1], "r+")
        break
    except OSError as error:
        said = error.strerror
        time.sleep(0.1)
else:
    sys.exit(print(socket.gethostname(), "missing", said))
try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    print(socket.gethostname(), "shared", file.read())
else:
    print(socket.gethostname(), "unlocked", file.read())
"""


def check_cluster() -> Iterator[Finding]:
    """Check the commands, the controller and its partitions; in an allocation of several nodes, their shared folder."""
    missing = [command for command in _COMMANDS if shutil.which(command) is None]
    if len(missing) == len(_COMMANDS):
        yield note("SLURM", "not found; launch run works without it, launch submit needs sbatch")
        return
    if missing:
        yield problem("SLURM", f"{', '.join(missing)} not found, but others of its commands", "mend PATH")
        return
    conf = os.environ.get("SLURM_CONF")
    if conf and not Path(conf).is_file():  # which SLURM's commands would try to read for a minute
        yield problem("SLURM", f"there is no file {conf}, which SLURM_CONF names", "correct SLURM_CONF, or unset it")
        return
    try:
        found = partitions()
    except QueueError as error:
        if _NO_CONFIGURATION in str(error):
            yield note("SLURM", "its commands are here, but no cluster is configured: no slurm.conf, SLURM_CONF unset")
            return
        yield problem("SLURM", str(error), "is slurmctld up, and SLURM_CONF right? scontrol ping")
        return
    yield describe(found)
    nodes = num_nodes(os.environ)
    if nodes > 1:
        yield _shared_folder(RUNS, nodes)


def describe(found: list[Partition]) -> Finding:
    """Return the finding about the partitions that the controller lists."""
    if not any(partition.up for partition in found):
        listed = ", ".join(partition.name for partition in found)
        return problem("SLURM", f"no partition is up ({listed or 'there are none'})", "ask who runs the cluster: sinfo")
    words = [
        f"{p.name}{' (default)' if p.default else ''}: {p.usable} of {p.nodes} node{'s' * (p.nodes > 1)} usable"
        + (f", {p.gpus} GPUs each" if p.gpus else "")
        for p in found
    ]
    text = "; ".join(words)
    if not any(p.usable for p in found):
        return note("SLURM", text, "jobs will wait until a node is back: sinfo -R tells why they are gone")
    return ok("SLURM", text)


def _shared_folder(runs: Path, nodes: int) -> Finding:
    """Check that each node sees a file that this one makes, and respects the lock that this one holds on it."""
    import fcntl

    folder = runs if runs.is_dir() else Path()
    path = (folder / f".doctor-{secrets.token_hex(8)}").absolute()
    word = secrets.token_hex(8)
    try:
        with path.open("w") as file:
            file.write(word)
            file.flush()
            os.fsync(file.fileno())
            fcntl.flock(file, fcntl.LOCK_EX)
            answers = on_each_node([sys.executable, "-c", _LOOK, str(path)], nodes)
    except (OSError, QueueError) as error:
        return problem("shared", f"the nodes could not be asked: {error}", "see that srun works in this allocation")
    finally:
        path.unlink(missing_ok=True)
    return judge_shared(answers, folder.absolute(), nodes, word)


def judge_shared(answers: str, folder: Path, nodes: int, word: str) -> Finding:
    """Return the finding that follows from the lines `HOST shared|missing|unlocked WORD` of all nodes."""
    lines = [line.split(maxsplit=2) for line in answers.splitlines() if line.strip()]
    said = {kind: [line[0] for line in lines if line[1:2] == [kind]] for kind in ("shared", "missing", "unlocked")}
    stale = [line[0] for line in lines if line[1] != "missing" and line[2:] != [word]]
    if said["missing"] or stale or len(lines) < nodes:
        blind = ", ".join([*said["missing"], *stale]) or f"{nodes - len(lines)} of {nodes} nodes"
        return problem(
            "shared",
            f"{folder} is not the same on all nodes: {blind} cannot see a file made here",
            "start from a folder on a file system that all nodes mount",
        )
    if said["unlocked"]:
        return note(
            "shared",
            f"{folder} is the same on {nodes} nodes, but locks do not hold between them",
            "do not start one run twice on different nodes; Lustre: mount with flock, NFS: not with nolock",
        )
    return ok("shared", f"{folder} is the same on {nodes} nodes, and locks hold between them")
