"""A real SLURM on this machine: munged, one slurmctld and some slurmd (n0, n1), with files and ports of their own."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from patience import HANG

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol")
NODES = ("n0", "n1")
HOSTS = Path("/etc/hosts")

CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={directory}/munge.socket
CryptoType=crypto/munge
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool-%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd-%n.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
SlurmdParameters=config_overrides
ReturnToService=2
GresTypes=gpu
KillWait=30
UnkillableStepTimeout=60
InactiveLimit=0
MinJobAge=600
{patience}
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=100000
{nodes}
PartitionName=main Nodes={names} Default=YES MaxTime=2:00:00 State=UP OverSubscribe=FORCE:4
"""


# SLURM takes a step or a node for lost after 10 s of silence by default, which a loaded machine brings about.
PATIENCE = "MessageTimeout=100\nBatchStartTimeout=100\nTCPTimeout=30"


class Cluster:
    """Started with `start`, ended with `stop`. `environment` is what SLURM's commands need to find it."""

    def __init__(self, directory: Path, nodes: Sequence[str] = NODES):
        self.directory, self.nodes = directory, nodes
        self.conf = directory / "slurm.conf"
        self.environment = {"SLURM_CONF": str(self.conf)}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._hosts_before: bytes | None = None

    def start(self) -> None:
        for name in ("state", *(f"spool-{node}" for node in self.nodes)):
            (self.directory / name).mkdir(parents=True)
        self.directory.chmod(0o755)
        self._resolve_names()
        self._write_conf()
        self._start_munge()
        self.start_controller()
        for node in self.nodes:
            self.start_node(node)
        self.wait_until_idle()

    def stop(self) -> None:
        for name in [*self.nodes, "controller", "munge"]:
            self.kill(name)
        if self._hosts_before is not None:
            HOSTS.write_bytes(self._hosts_before)

    def kill(self, name: str) -> None:
        """SIGKILL to one of the daemons: `controller`, `munge`, or a node's slurmd (its jobs' processes live on)."""
        process = self._processes.pop(name, None)
        if process is not None:
            process.kill()
            process.wait()

    def start_controller(self) -> None:
        self._spawn("controller", ["slurmctld", "-D", "-f", str(self.conf)])

    def start_node(self, node: str) -> None:
        self._spawn(node, ["slurmd", "-D", "-N", node, "-f", str(self.conf)])

    def run(self, words: Sequence[str], *, timeout: float = HANG, **options: object) -> str:
        """A command's standard output, with this cluster in its environment."""
        done = subprocess.run(
            words, env=os.environ | self.environment, capture_output=True, text=True, timeout=timeout, check=False
        )
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def job(self, job_id: str) -> Mapping[str, str]:
        """What `scontrol show job` says of a job, by field."""
        text = self.run(["scontrol", "show", "job", job_id, "--oneliner"])
        return dict(word.partition("=")[::2] for word in text.split() if "=" in word)

    def wait_until_idle(self, timeout: float = HANG) -> None:
        """All nodes up, no jobs."""
        deadline = time.monotonic() + timeout
        states = ""
        while time.monotonic() < deadline:
            done = subprocess.run(
                ["sinfo", "-h", "-N", "-o", "%T"], env=os.environ | self.environment, capture_output=True, text=True
            )
            states = done.stdout + done.stderr
            if done.stdout.split() == ["idle"] * len(self.nodes):
                return
            time.sleep(0.2)
        logs = "\n".join(path.read_text()[-2000:] for path in self.directory.glob("*.log"))
        raise AssertionError(f"the cluster did not come up: {states}\n{logs}")

    def _spawn(self, name: str, words: Sequence[str]) -> None:
        with (self.directory / f"{name}.out").open("ab") as output:
            self._processes[name] = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=os.environ | self.environment
            )

    def _start_munge(self) -> None:
        key = self.directory / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        words = ["munged", "--foreground", "--force", f"--socket={self.directory}/munge.socket", f"--key-file={key}"]
        words += [f"--{kind}-file={self.directory}/munge.{kind}" for kind in ("log", "pid", "seed")]
        self._spawn("munge", words)
        deadline = time.monotonic() + HANG
        while not (self.directory / "munge.socket").exists():
            assert time.monotonic() < deadline, (self.directory / "munge.out").read_text()
            time.sleep(0.05)

    def _write_conf(self) -> None:
        ports = [_free_port() for _ in range(1 + len(self.nodes))]
        host = socket.gethostname()
        nodes = "\n".join(
            f"NodeName={node} NodeHostname={host} NodeAddr={node} Port={port} CPUs=8 RealMemory=2000 State=UNKNOWN "
            "Gres=gpu:4"
            for node, port in zip(self.nodes, ports[1:], strict=True)
        )
        self.conf.write_text(
            CONF.format(
                patience=PATIENCE,
                host=host,
                ports=ports,
                directory=self.directory,
                nodes=nodes,
                names=",".join(self.nodes),
            )
        )
        for index in range(4):  # slurmd counts the GPUs whose device files are there, whatever they are
            (self.directory / f"gpu{index}").touch()
        (self.directory / "gres.conf").write_text(f"Name=gpu File={self.directory}/gpu[0-3]\n")
        (self.directory / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")

    def _resolve_names(self) -> None:
        self._hosts_before = HOSTS.read_bytes()
        if any(node.encode() not in self._hosts_before.split() for node in self.nodes):
            HOSTS.write_bytes(self._hosts_before.rstrip() + b"\n127.0.0.1 " + " ".join(self.nodes).encode() + b"\n")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
