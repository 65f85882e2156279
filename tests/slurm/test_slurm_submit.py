"""launch submit on a real SLURM: what is queued, what is refused, and that nothing is left behind where it fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ranks
import tiny
from paths import REPOSITORY
from patience import HANG
from slurm_cluster import Cluster

from launch.cli import main
from launch.slurm import follow
from trainlib.runs.files.json_records import read_lines

CPU = ["slurm.gpus_per_node=0"]
HELD = ["--sbatch", "hold"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    tiny.make_images(folder)
    return folder


@pytest.fixture
def training(images: Path) -> list[str]:
    """Eight steps on CPUs, a checkpoint at each fourth."""
    return [*tiny.arguments(images, 2, 4), *CPU]


@pytest.fixture
def slurm(cluster: Cluster, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """The cluster, and an empty folder to submit from, as in a person's shell."""
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return cluster


def queued(cluster: Cluster) -> list[str]:
    return cluster.run(["squeue", "-h", "-t", "PD,R,CG", "-o", "%i"]).split()


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file below a folder with its bytes, every folder with None."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def submitted_id(capsys: pytest.CaptureFixture[str]) -> str:
    """What stdout holds: the id of a job and nothing else."""
    captured = capsys.readouterr()
    assert captured.out.removesuffix("\n").isdecimal(), captured
    return captured.out.strip()


def test_what_is_edited_after_the_submission_changes_nothing(
    slurm: Cluster, training: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Configuration and code are those of the submission; --wait ends with the job's own code. Standard output is the
    job's id alone."""
    Path("mine.yaml").write_text("seed: 3\n")
    assert main(["submit", "mine.yaml", *training, *HELD, "--time", "10"]) == 0
    job_id = submitted_id(capsys)
    job = slurm.job(job_id)
    assert (job["JobName"], job["NumNodes"], job["TimeLimit"], job["Requeue"]) == ("run", "1-1", "00:10:00", "1")
    assert job["JobState"] == "PENDING"
    Path("mine.yaml").write_text("seed: 4\n")
    code = Path("runs/run/code")
    assert sorted(path.name for path in code.iterdir() if path.is_dir()) == ["launch", "slurm", "trainlib"]
    commit = (code / "COMMIT").read_text().strip() if (code / "COMMIT").exists() else None
    assert not list(code.rglob("__pycache__"))
    with (code / "trainlib/training/session/__init__.py").open("a") as copied:
        copied.write("\nprint('the code of the submission')\n")
    assert (REPOSITORY / "slurm/train.sbatch").read_bytes() == (code / "slurm/train.sbatch").read_bytes()
    slurm.run(["scontrol", "release", job_id])
    monkeypatch.setattr(follow, "_LONGEST_SECONDS", 1.0)
    states: list[str] = []
    assert follow.wait_for(job_id, Path("runs/run"), states.append) == 0
    assert any(state.startswith(f"job {job_id}: running on n0") for state in states)
    assert json.loads(Path("runs/run/summary.json").read_text())["status"] == "completed"
    assert "\nseed: 3\n" in Path("runs/run/config.yaml").read_text()
    said = "".join(path.read_text() for path in Path("runs/run/logs").iterdir())
    assert "the code of the submission" in said
    assert json.loads(Path("runs/run/environment.json").read_text())["git_commit"] == commit
    events = [line["event"] for line in read_lines(Path("runs/run/jobs.jsonl"))]
    assert sorted(events) == ["begin", "end", "submitted"]
    assert main(["submit", "mine.yaml", *training, "seed=3", "--time", "10"]) == 2
    assert "runs/run is finished" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message", "code"),
    [
        (["--partition", "nope"], "error: slurm.partition: got 'nope', must be one of main", 2),
        (["--time", "3-00:00:00"], "error: slurm.time: got 3-00:00:00, must be at most 120 minutes, the limit of", 2),
        (["--time", "soon"], 'error: slurm.time: got "soon", must be a time limit as SLURM writes it', 2),
        (["--nodes", "3"], "error: slurm.nodes: got 3, must be at most 2, the nodes of partition main", 2),
        (["--nodes", "all"], 'error: slurm.nodes: got "all", must be a whole number, or a range like 1-4', 2),
        (["--nodes", "1-2"], "error: slurm.nodes: got 1-2, must be one number: train.reproducibility is exact", 2),
        (
            ["--nodes", "1-3", "train.reproducibility=elastic"],
            "error: slurm.nodes: got 1-3, must be at most 2, the nodes of partition main",
            2,
        ),
        (["--gpus-per-node", "5"], "error: slurm.gpus_per_node: got 5, must be at most 4, the GPUs of a node of", 2),
        (["--sbatch", "nods=3"], "error: --sbatch nods=3: sbatch has no option --nods; did you mean nodes?", 2),
        (
            ["--sbatch", "constraint=big"],
            "error: sbatch refused the job: Batch job submission failed: Invalid feature",
            1,
        ),
        (["--site", "nowhere"], "error: --site nowhere: no such file", 2),
        (["missing.yaml"], "error: missing.yaml: no such file", 2),
        (["optimizer.lr=-1"], "error: optimizer.lr: got -1", 2),
        (["data.root=nowhere"], "error: data.root: ", 2),
        (["data.limit=100"], "error: data.limit: got 100, must be at most the 48 training samples", 2),
    ],
)
def test_a_mistake_is_one_message_and_leaves_nothing(
    words: list[str],
    message: str,
    code: int,
    slurm: Cluster,
    training: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = queued(slurm)
    assert main(["submit", *training, *words]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(message)
    assert captured.err.count("error:") == 1
    assert queued(slurm) == before
    assert list(Path().iterdir()) == []


def test_no_sbatch_on_the_machine(
    workdir: Path, training: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(workdir))
    assert main(["submit", *training]) == 2
    assert capsys.readouterr().err.startswith("error: no sbatch on this machine: SLURM's commands are not installed")
    assert list(workdir.iterdir()) == []


def test_a_controller_that_is_down(
    slurm: Cluster, training: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At the port that this configuration names, nobody answers."""
    text = slurm.conf.read_text()
    port = next(line for line in text.splitlines() if line.startswith("SlurmctldPort"))
    text = text.replace(port, f"SlurmctldPort={ranks.free_port()}").replace("MessageTimeout=100", "MessageTimeout=10")
    Path("slurm.conf").write_text(text)
    monkeypatch.setenv("SLURM_CONF", str(Path("slurm.conf").absolute()))
    assert main(["submit", *training]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Unable to contact slurm controller" in captured.err
    assert captured.err.endswith("nothing was queued: try again when SLURM answers\n")
    assert captured.err.count("\n") == 1
    assert [path.name for path in Path().iterdir()] == ["slurm.conf"]


def test_a_dry_run_needs_no_slurm_and_leaves_nothing(
    workdir: Path, training: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(workdir))
    assert main(["submit", *training, "--dry-run", "--sbatch", "qos=high"]) == 0
    call, _, script = capsys.readouterr().out.partition(f"\n\n# {REPOSITORY}/slurm/train.sbatch\n")
    assert call.splitlines()[0] == f"TRAINLAUNCH_PYTHON={sys.executable} \\"
    assert call.endswith("    --qos=high \\\n    runs/run/code/slurm/train.sbatch \\\n    runs/run/config.yaml")
    assert script == (REPOSITORY / "slurm/train.sbatch").read_text()
    assert list(workdir.iterdir()) == []


@pytest.mark.parametrize("words", [["--fresh"], ["--resume", "step-00000004"], ["--resume", "train.epochs=3"]])
def test_a_refused_submission_leaves_an_earlier_run_as_it_was(
    words: list[str], slurm: Cluster, training: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """sbatch refuses after the run was moved aside, set back to a checkpoint, or given another configuration; what it
    does not refuse has done just that."""
    assert ranks.train(training, cwd=Path.cwd()) == [0]
    before = contents(Path("runs"))
    assert main(["submit", *training, *words, "--sbatch", "constraint=big"]) == 1
    assert contents(Path("runs")) == before
    capsys.readouterr()
    assert main(["submit", *training, *words, *HELD]) == 0
    slurm.run(["scancel", submitted_id(capsys)])
    steps = sorted(path.name for path in Path("runs/run/checkpoints").iterdir())
    assert Path("runs/run.old-1").exists() == (words == ["--fresh"])
    expected = {
        "--fresh": [],
        "step-00000004": ["step-00000004", "step-00000008.superseded"],
        "train.epochs=3": ["step-00000004", "step-00000008"],
    }
    assert steps == expected[words[-1]]
    assert not Path("runs/run/summary.json").exists()
    assert ("epochs: 3" in Path("runs/run/config.yaml").read_text()) == (words[-1] == "train.epochs=3")


def test_a_run_is_queued_once(slurm: Cluster, training: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The job that waits is named; cancelled, it stands in the way no more. A stale STOP file does not either."""
    assert main(["submit", *training, *HELD]) == 0
    job_id = submitted_id(capsys)
    Path("runs/run/STOP").touch()
    assert main(["submit", *training, *HELD]) == 2
    assert f"run is in the queue already: job {job_id} is pending" in capsys.readouterr().err
    assert main(["cancel", "run"]) == 0
    assert slurm.job(job_id)["JobState"] == "CANCELLED"
    capsys.readouterr()
    assert main(["submit", *training, *HELD]) == 0
    assert not Path("runs/run/STOP").exists()
    slurm.run(["scancel", submitted_id(capsys)])
    assert main(["submit", *training, "seed=1", *HELD]) == 2
    assert "holds a run of a different configuration" in capsys.readouterr().err


def test_from_inside_an_allocation_nothing_of_it_is_taken_along(slurm: Cluster, training: list[str]) -> None:
    """Submitted from a real step that has one CPU and a bogus binding, the job asks for what it was told, and its
    environment, as the controller keeps it, holds none of the step's."""
    bogus = {"SLURM_CPU_BIND": "mask_cpu:0xbad", "SLURM_CPUS_PER_TASK": "1", "PMI_RANK": "5", "RANK": "7"}
    bogus |= {"SBATCH_TIMELIMIT": "3", "SLURM_EXPORT_ENV": "NONE"}
    inner = ["env", *(f"{name}={value}" for name, value in bogus.items()), sys.executable, "-m", "launch", "submit"]
    words = [*training, *HELD, "--nodes", "2", "--sbatch", "cpus-per-task=4", "--time", "10"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    step = ["srun", "--nodes=1", "--ntasks=1", "--cpus-per-task=1", "--time=5"]
    done = subprocess.run([*step, *inner, *words], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    job_id = done.stdout.strip()
    job = slurm.job(job_id)
    assert (job["NumNodes"], job["CPUs/Task"], job["TimeLimit"]) == ("2-2", "4", "00:10:00")
    kept = slurm.directory / "state" / f"hash.{int(job_id) % 10}" / f"job.{job_id}" / "environment"
    variables = dict(entry.partition("=")[::2] for entry in kept.read_bytes().decode().split("\0") if "=" in entry)
    assert {name: variables[name] for name in bogus if variables.get(name) == bogus[name]} == {}
    assert not {"SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_NODELIST", "SLURM_PROCID"} & variables.keys()
    assert variables["SLURM_CONF"] == str(slurm.conf)
    assert variables["TRAINLAUNCH_CODE"] == str(Path("runs/run/code").absolute())
    slurm.run(["scancel", job_id])


def test_ctrl_c_while_waiting_leaves_the_job_in_the_queue(slurm: Cluster, training: list[str]) -> None:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "launch", "submit", *training, *HELD, "--wait"]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as waiting:
        assert waiting.stdout is not None
        assert waiting.stderr is not None
        job_id = waiting.stdout.readline().strip()
        told = iter(waiting.stderr.readline, "")
        assert any(line.startswith(f"run is job {job_id}; launch status run tells") for line in told)
        assert next(told) == f"job {job_id}: pending (JobHeldUser)\n"
        time.sleep(0.2)
        waiting.send_signal(signal.SIGINT)
        _, said = waiting.communicate(timeout=HANG)
    assert waiting.returncode == 130
    assert f"job {job_id} stays in the queue" in said
    assert job_id in queued(slurm)
    slurm.run(["scancel", job_id])
