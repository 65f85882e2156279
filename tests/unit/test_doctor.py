"""`launch doctor`: each check against the real thing, whole and broken."""

from __future__ import annotations

import errno
import fcntl
import http.server
import json
import os
import re
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path

import pytest
import ranks
from needs import need
from paths import REPOSITORY
from slurm_cluster import Cluster

from launch.doctor import cluster as cluster_checks
from launch.doctor import ranks as rank_checks
from launch.doctor import software, storage, system, wandb_service
from launch.doctor.finding import Finding, Verdict, closing, note, ok, problem, row
from launch.doctor.ranks import Outcome

CANARY = "canary-0123456789abcdef0123456789abcdef0123"

FACTS = {
    "torch": "2.15.0",
    "cuda": None,
    "nccl": None,
    "device": "cpu",
    "gpus": [],
    "threads": 4,
    "cpu_capability": "AVX2",
    "bf16": False,
    "torchvision": None,
    "cache": "/cache",
}
H100 = {"name": "NVIDIA H100 80GB HBM3", "memory": 80 << 30, "capability": "9.0"}
ON_GPUS = FACTS | {"cuda": "13.0", "nccl": "2.28.9", "device": "cuda", "gpus": [H100, H100], "bf16": True}
REDUCED = {"bytes": 1 << 20, "seconds": 0.002, "bus_bandwidth": 0.5e9, "correct": True, "backend": "gloo"}


def verdicts(findings: Iterator[Finding]) -> list[tuple[str, str]]:
    return [(finding.topic, str(finding.verdict)) for finding in findings]


def test_rows_fit_a_terminal_and_can_be_copied_from() -> None:
    """Whole text: columns, words wrapped at 80, a path that is too long left whole."""
    path = "/a/very/long/path/of/a/run/directory/that/nobody/should/break/into/two/pieces/ever"
    found = [
        ok("Python", "3.11.7 on Linux"),
        note("W&B", "wandb 0.31.0, not logged in, and so many more words that they do not fit", "wandb login"),
        problem("runs", f"{path} cannot be written", "mend its permissions, or change to a folder that is writable"),
    ]
    assert (
        "\n".join(row(finding) for finding in found)
        == f"""\
ok       Python      3.11.7 on Linux
note     W&B         wandb 0.31.0, not logged in, and so many more words that
                     they do not fit
                     -> wandb login
problem  runs        {path}
                     cannot be written
                     -> mend its permissions, or change to a folder that is
                        writable"""
    )
    assert closing(found) == "1 problem, 1 note"
    assert closing([*found[:2], found[1]]) == "no problems, 2 notes"
    assert closing(found[:1]) == "no problems"


@pytest.mark.parametrize(
    ("requirements", "installed", "expected"),
    [
        (["torch (==2.11.0)", "numpy"], {"torch": "2.11.0+cu128", "numpy": "2"}, []),
        (["torch==2.11.0"], {"torch": "2.12.0"}, ["torch is 2.12.0, but torchvision needs ==2.11.0"]),
        (["torch>=2.11"], {"torch": "2.9.1"}, ["torch is 2.9.1, but torchvision needs >=2.11"]),
        (["torch>=2.11"], {"torch": "2.11.0a0+git123"}, []),
        (["pillow!=8.3.*,>=5.3.0"], {"pillow": "12.0.0"}, []),
        (["torch"], {"torch": None}, ["torch is missing, which torchvision needs"]),
        (["scipy ; extra == 'scipy'"], {}, []),
    ],
)
def test_requirements_that_do_not_hold(
    requirements: list[str], installed: dict[str, str | None], expected: list[str]
) -> None:
    assert software.unmet("torchvision", requirements, installed) == expected


def test_the_packages_of_this_machine_fit_as_pip_says_too() -> None:
    done = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    complaint = any(line.startswith(("torchvision ", "trainlaunch ")) for line in done.stdout.splitlines())
    assert (("packages", "problem") in verdicts(software.check_software())) == complaint


@pytest.mark.parametrize(
    ("files", "locked", "infiniband", "verdict"),
    [
        (1024, 8 << 20, False, "ok"),
        (256, resource.RLIM_INFINITY, False, "note"),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, True, "ok"),
        (1024, 8 << 20, True, "note"),
    ],
)
def test_limits(files: int, locked: int, infiniband: bool, verdict: str) -> None:
    assert system.limits(files, locked, has_infiniband=infiniband).verdict == verdict


def test_shared_memory_as_docker_gives_it() -> None:
    assert row(system.shared_memory(64 << 20)) == (
        "note     /dev/shm    64 MiB\n"
        "                     -> several GPUs need more: docker run --shm-size=1g (or\n"
        "                        --ipc=host)"
    )
    assert system.shared_memory(8 << 30).verdict is Verdict.OK


def test_a_good_folder(tmp_path: Path) -> None:
    """It need not be there yet, and nothing is left in it or beside it. Its file system is what findmnt calls it."""
    need("findmnt")
    (finding,) = storage.check_storage("runs", tmp_path / "runs")
    words = ["findmnt", "-n", "-o", "FSTYPE", "-T", str(tmp_path)]
    kind = subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    assert finding.verdict is not Verdict.PROBLEM
    assert f"{tmp_path}/runs on {kind}" in finding.text
    assert "MB/s" in finding.text
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a disk in memory with these options, until the test ends."""
    need("mount", "umount", root=True)
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(options: str) -> Path:
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)], check=True)
        return disk

    yield mount
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.parametrize(
    ("options", "said"), [("size=1m", "No space left on device"), ("ro", "Read-only file system")], ids=["full", "ro"]
)
def test_a_folder_that_cannot_be_written(mounted: Callable[[str], Path], options: str, said: str) -> None:
    disk = mounted(options)
    (finding,) = storage.check_storage("runs", disk / "runs")
    assert finding.verdict is Verdict.PROBLEM
    assert finding.text == f"{disk}/runs cannot be written: {said}"
    assert list(disk.iterdir()) == []


def test_little_room_and_a_disk_in_memory(mounted: Callable[[str], Path]) -> None:
    disk = mounted("size=200m")
    (finding,) = storage.check_storage("runs", disk)
    assert (finding.verdict, finding.advice) == (Verdict.PROBLEM, "make room: a checkpoint of a VGG16 takes 1.1 GB")
    assert f"{disk} on tmpfs: 0.2 GiB free" in finding.text


def test_the_file_system_of_a_path() -> None:
    mountinfo = (
        "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
        "23 22 0:5 / /home rw shared:2 master:3 - nfs4 server:/home rw\n"
        "24 23 0:6 / /home/a\\040b rw - lustre mds:/x rw\n"
    )
    assert storage.file_system(Path("/home/u/runs"), mountinfo) == "nfs4"
    assert storage.file_system(Path("/home/a b/runs"), mountinfo) == "lustre"
    assert storage.file_system(Path("/homes"), mountinfo) == "ext4"
    assert storage.file_system(Path("/x"), "") == "unknown file system"


def test_a_file_system_without_its_promises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Renames that are not atomic, and locks that are refused, or given twice, are each seen."""
    assert storage.renames_are_atomic(tmp_path)
    assert storage.lock_fault(tmp_path / "lock") is None
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", _replace_in_two_steps)
        assert not storage.renames_are_atomic(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", lambda file, how: None)
        assert storage.lock_fault(tmp_path / "lock") == "a second lock was given"
    monkeypatch.setattr(fcntl, "flock", _refuse_locks)
    assert storage.lock_fault(tmp_path / "lock") == os.strerror(errno.ENOLCK)
    assert verdicts(storage.check_storage("runs", tmp_path))[1:] == [("runs", "problem")]


def _replace_in_two_steps(self: Path, target: Path) -> None:
    target.unlink()
    time.sleep(0.001)
    os.rename(self, target)


def _refuse_locks(file: object, how: int) -> None:
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


@pytest.fixture
def server() -> Iterator[Callable[[float], str]]:
    """Starts a server whose clock is off by so many seconds, and gives its address."""
    started: list[http.server.HTTPServer] = []

    def start(skew: float) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.send_response_only(404)
                self.send_header("Date", formatdate(time.time() + skew, usegmt=True))
                self.end_headers()

            def log_message(self, *arguments: object) -> None: ...

        started.append(http.server.HTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=started[0].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{started[0].server_port}"

    yield start
    for each in started:
        each.shutdown()
        each.server_close()


def test_wandb_login_and_server(
    server: Callable[[float], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", server(0.0))
    assert verdicts(wandb_service.check_wandb()) == [("W&B", "note"), ("W&B server", "ok")]
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1\n  login user\n  password {CANARY}\n")
    (tmp_path / "netrc").chmod(0o600)
    found = list(wandb_service.check_wandb())
    assert [finding.verdict for finding in found] == [Verdict.OK, Verdict.OK]
    assert f"key in {tmp_path}/netrc" in found[0].text
    monkeypatch.setenv("WANDB_API_KEY", CANARY)
    found += wandb_service.check_wandb()
    assert "key in WANDB_API_KEY" in found[2].text
    assert CANARY not in repr(found)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{ranks.free_port()}")
    dead = list(wandb_service.check_wandb())[1]
    assert dead.verdict is Verdict.NOTE
    assert "Connection refused" in dead.text
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert verdicts(wandb_service.check_wandb()) == [("W&B", "ok")]


def test_a_clock_that_is_an_hour_off(server: Callable[[float], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", server(3600.0))
    finding = list(wandb_service.check_wandb())[1]
    assert finding.verdict is Verdict.NOTE
    seconds = re.search(r"this machine's clock is (-\d+) s off", finding.text)
    assert seconds is not None
    assert abs(int(seconds[1]) + 3600) <= 30  # whole seconds, and however long the answer took


def fake_commands(folder: Path, names: tuple[str, ...], sinfo: str) -> None:
    for name in names:
        (folder / name).write_text(f"#!/bin/sh\n{sinfo}\n")
        (folder / name).chmod(0o755)


@pytest.mark.parametrize(
    ("names", "sinfo", "verdict", "said"),
    [
        ((), "", "note", "not found; launch run works without it, launch submit needs sbatch"),
        (("sinfo", "sbatch"), "", "problem", "srun, squeue, scontrol, scancel not found, but others of its commands"),
        (cluster_checks._COMMANDS, "echo slurm_load: down >&2; exit 1", "problem", "sinfo -h failed: slurm_load: down"),
        (
            cluster_checks._COMMANDS,
            "echo 'sinfo: fatal: Could not establish a configuration source' >&2; exit 1",
            "note",
            "its commands are here, but no cluster is configured: no slurm.conf, SLURM_CONF unset",
        ),
        (cluster_checks._COMMANDS, "", "problem", "no partition is up (there are none)"),
        (
            cluster_checks._COMMANDS,
            "printf '%s\\n' 'cpu*|up|3|idle|(null)|1' 'cpu*|up|1|down*|(null)|1' 'h100|up|2|mixed|gpu:h100:8(S:0)|1'",
            "ok",
            "cpu (default): 3 of 4 nodes usable; h100: 2 of 2 nodes usable, 8 GPUs each",
        ),
    ],
    ids=["none", "half", "down", "unconfigured", "no partition", "two partitions"],
)
def test_slurm_as_its_commands_tell(
    names: tuple[str, ...],
    sinfo: str,
    verdict: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("SLURM_CONF", raising=False)
    fake_commands(tmp_path, names, sinfo)
    monkeypatch.setenv("PATH", str(tmp_path))
    (finding,) = cluster_checks.check_cluster()
    assert (finding.verdict, finding.text) == (verdict, said)


def test_a_configuration_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_commands(tmp_path, cluster_checks._COMMANDS, "sleep 60")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SLURM_CONF", "/nowhere/slurm.conf")
    assert verdicts(cluster_checks.check_cluster()) == [("SLURM", "problem")]


def test_a_real_cluster_and_an_allocation_of_two_nodes(cluster: Cluster, tmp_path: Path) -> None:
    """Inside an allocation, both nodes see the file that is made, the lock on it keeps them out, and one rank of each
    adds up what it has with the other's."""
    program = """
from launch.doctor import cluster, ranks
for finding in [*cluster.check_cluster(), *ranks.check_ranks(None)]:
    print(finding.topic, finding.verdict, finding.text)
"""
    environment = os.environ | cluster.environment | {"PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": ""}
    words = ["salloc", "--quiet", "--nodes=2", sys.executable, "-c", program]
    done = subprocess.run(
        words, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr
    slurm, shared, *_, all_reduce, _ = done.stdout.splitlines()
    assert slurm == "SLURM ok main (default): 2 of 2 nodes usable, 4 GPUs each"
    assert shared == f"shared ok {tmp_path} is the same on 2 nodes, and locks hold between them"
    assert all_reduce.startswith("all-reduce ok 2 ranks on 2 nodes through gloo: 4 KiB in ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("answers", "verdict", "said"),
    [
        ("n0 shared w\nn1 shared w\n", "ok", "/x is the same on 2 nodes, and locks hold between them"),
        ("n0 shared w\nn1 missing No such file or directory\n", "problem", "n1 cannot see a file made here"),
        ("n0 shared w\nn1 shared \n", "problem", "n1 cannot see a file made here"),
        ("n0 shared w\n", "problem", "1 of 2 nodes cannot see a file made here"),
        ("n0 shared w\nn1 unlocked w\n", "note", "locks do not hold between them"),
    ],
)
def test_a_folder_that_the_nodes_do_not_share(answers: str, verdict: str, said: str) -> None:
    finding = cluster_checks.judge_shared(answers, Path("/x"), 2, "w")
    assert finding.verdict == verdict
    assert said in finding.text


@pytest.mark.parametrize(
    ("facts", "gpus", "expected"),
    [
        (FACTS, 0, [("torch", "ok"), ("devices", "ok"), ("precision", "ok")]),
        (ON_GPUS, 2, [("torch", "ok"), ("devices", "ok"), ("precision", "ok")]),
        (ON_GPUS | {"bf16": False}, 2, [("torch", "ok"), ("devices", "ok"), ("precision", "note")]),
        (FACTS, 2, [("torch", "problem"), ("devices", "ok"), ("precision", "ok")]),
        (FACTS | {"torchvision": "RuntimeError: operator torchvision::nms does not exist"}, 0, [("torch", "problem")]),
    ],
    ids=["cpu", "gpus", "old gpus", "torch for CPUs beside GPUs", "torchvision of another torch"],
)
def test_devices_as_torch_sees_them(facts: dict[str, object], gpus: int, expected: list[tuple[str, str]]) -> None:
    assert verdicts(rank_checks.devices(facts, gpus, "580.65", set()))[: len(expected)] == expected


def test_gpus_are_counted_by_model() -> None:
    texts = [finding.text for finding in rank_checks.devices(ON_GPUS, 2, "580.65", set())]
    assert texts == [
        "torch 2.15.0, built for CUDA 13.0, NCCL 2.28.9",
        "2 x NVIDIA H100 80GB HBM3 (80 GiB), driver 580.65",
        "bf16 and fp16",
    ]


@pytest.mark.parametrize(
    ("outcome", "processes", "verdict", "said"),
    [
        (Outcome(FACTS, [REDUCED], 0, ""), 2, "ok", "1 MiB in 2.00 ms; bus bandwidth 0.50 GB/s; sums are right"),
        (Outcome(FACTS, [], 0, ""), 1, "ok", "one process, nothing to add up"),
        (Outcome(FACTS, [REDUCED | {"correct": False}], 0, ""), 2, "problem", "wrong sums between 2 ranks"),
        (Outcome(FACTS, [], 1, "no route to host"), 2, "problem", "failed between 2 ranks: exit code 1: no route to"),
        (Outcome(FACTS, [REDUCED], None, ""), 2, "problem", "failed between 2 ranks: nothing came within 120 s"),
    ],
)
def test_verdicts_on_the_all_reduce(outcome: Outcome, processes: int, verdict: str, said: str) -> None:
    finding = rank_checks.all_reduce(outcome, processes)
    assert finding.verdict == verdict
    assert said in finding.text


def measured(broken: bool) -> int:
    """In each rank: measure one size, rank 1 with an all-reduce that does nothing where it is to be broken."""
    import torch
    import torch.distributed as dist

    from trainlib.config import TrainConfig
    from trainlib.distributed import measure, process_group

    with process_group.joined(TrainConfig()):
        if broken:
            dist.all_reduce = lambda values, *arguments, **options: None
        started = time.perf_counter()
        found = measure.measure(1 << 20, torch.device("cpu"))
        assert found.seconds < time.perf_counter() - started
        assert found.bus_bandwidth == pytest.approx(2 * 2 / 3 * (1 << 20) / found.seconds)
        return 10 + found.correct


@pytest.mark.parametrize("broken", [False, True])
def test_sums_are_checked(broken: bool, tmp_path: Path) -> None:
    """Three ranks: the bus bandwidth is nccl-tests' formula, and sums that do not come about are seen by every rank."""
    codes = ranks.run(measured, broken, world_size=3, cwd=tmp_path)
    assert codes == [10 + (not broken)] * 3, ranks.console(tmp_path)


def test_ranks_that_cannot_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch that does not load is told with its own last words; ranks that hang are ended."""
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.13: cannot open shared object file')\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(REPOSITORY)]))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (finding,) = rank_checks.check_ranks(1)
    assert finding.verdict is Verdict.PROBLEM
    assert "libcudart.so.13: cannot open shared object file" in finding.text
    (tmp_path / "torch.py").write_text("import time; time.sleep(600)\n")
    start = time.monotonic()
    assert rank_checks.run_ranks(1, seconds=1.0).exit_code is None
    assert time.monotonic() - start < 10


def test_the_whole_command(tmp_path: Path) -> None:
    """From outside: two real ranks, JSON that holds every topic once, an exit code that fits, no secret, no files."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "WANDB_MODE": "offline", "WANDB_API_KEY": CANARY}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "PATH": os.path.dirname(sys.executable)}
    words = [sys.executable, "-m", "launch", "doctor", "--processes", "2", "--json"]
    done = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    found = {finding["topic"]: finding for finding in json.loads(done.stdout)}
    topics = "Python packages machine limits /dev/shm runs SLURM W&B torch devices precision all-reduce cache"
    assert list(found) == topics.split()
    assert found["all-reduce"]["verdict"] == "ok"
    assert "2 ranks through gloo" in found["all-reduce"]["text"]
    assert done.returncode == int(any(finding["verdict"] == "problem" for finding in found.values()))
    assert CANARY not in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []
