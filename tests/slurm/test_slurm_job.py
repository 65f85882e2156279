"""What the batch script is told at its start: arguments of an array's element, CPUs, and the assignments as a whole."""

import os
import subprocess
from pathlib import Path

import pytest
from needs import need
from parts import resolved
from paths import REPOSITORY

from launch.slurm.job import _srun_said, assignments, cpus_on_each, expand_arguments, main
from trainlib.errors import UserError
from trainlib.runs.records.jobs import JobStart

SCRIPT = REPOSITORY / "slurm" / "train.sbatch"


def test_an_element_of_an_array_takes_its_line(workdir: Path) -> None:
    (workdir / "runs.txt").write_text("quickstart name=a\nquickstart name='b c' optimizer='{name: SGD, lr: 0.1}'\n")
    assert expand_arguments(["@runs.txt", "seed=3"], 1) == [
        "quickstart",
        "name=b c",
        "optimizer={name: SGD, lr: 0.1}",
        "seed=3",
    ]
    assert expand_arguments(["quickstart", "--resume"], None) == ["quickstart", "--resume"]


@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "device", "none", "long"])
def test_only_the_end_of_a_regular_file_is_taken_for_what_srun_said(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "logs/7-srun.out"
    log.parent.mkdir()
    (tmp_path / "other").write_text("srun: error: node failure on n1")
    if kind == "link":
        log.symlink_to(tmp_path / "other")
    elif kind == "pipe":
        os.mkfifo(log)
    elif kind == "folder":
        log.mkdir()
    elif kind == "device":
        log.symlink_to("/dev/zero")
    elif kind == "long":
        log.write_bytes(b"x" * 10_000_000 + b" Exited with exit code 98")
    said = _srun_said(tmp_path, log)
    assert said.endswith("Exited with exit code 98") if kind == "long" else said == ""
    assert len(said) < 1_000_000
    told = capsys.readouterr().err
    assert told.startswith("warning: logs/7-srun.out: is ") if kind not in ("none", "long") else told == ""


@pytest.mark.parametrize(
    ("arguments", "array_task", "message"),
    [
        (["@runs.txt"], 2, "@runs.txt: this is element 2; must be submitted with --array=0-1"),
        (["@runs.txt"], None, "@runs.txt: this is no element of an array; must be submitted with --array=0-1"),
        (["@none.txt"], 0, "@none.txt: cannot read none.txt"),
        (["quickstart", "--fresh"], None, "--fresh: options of launch do not belong here"),
    ],
)
def test_arguments_that_a_job_cannot_take(
    arguments: list[str], array_task: int | None, message: str, workdir: Path
) -> None:
    (workdir / "runs.txt").write_text("quickstart\nquickstart\n")
    with pytest.raises(UserError, match=message):
        expand_arguments(arguments, array_task)


@pytest.mark.parametrize(("text", "cpus"), [("8", 8), ("8(x2)", 8), ("8(x2),4", 4), ("16,8(x3)", 8), ("", 1)])
def test_cpus_of_the_one_task_on_each_node(text: str, cpus: int) -> None:
    environment = {"SLURM_JOB_CPUS_PER_NODE": text, "SLURM_CPUS_PER_TASK": "1"}
    assert cpus_on_each(environment) == cpus


def test_the_batch_script_reads_what_it_is_told() -> None:
    """As bash itself evaluates it, words with blanks and quotes included."""
    config = resolved({"name": "a", "slurm.gpus_per_node": 0, "slurm.processes_per_node": 2})
    words = ["my config.yaml", "name=a", "optimizer={name: SGD, lr: 0.1}", "x=it's"]
    environment = {"SLURM_JOB_CPUS_PER_NODE": "8(x2)", "SLURM_JOB_NUM_NODES": "2"}
    text = assignments(JobStart("12", 3, 1), words, config, "n0", [10001, 17920, 25839], 1000.0, environment)
    show = (
        'printf "%s|" "$run" "$log" "${arguments[@]}" "$processes" "$cpus" "$head" "${ports[@]}" "${policy[@]}"; '
        'env | grep -E "^TRAINLAUNCH_(RENDEZVOUS|END)|^ACCELERATE_USE_CPU" | sort'
    )
    done = subprocess.run(
        ["bash", "-uc", f"{text}\n{show}"], capture_output=True, text=True, check=True, env={"PATH": "/usr/bin:/bin"}
    )
    assert done.stdout == (
        "runs/a|runs/a/logs/job-12_3-restart-1|my config.yaml|name=a|optimizer={name: SGD, lr: 0.1}|x=it's|2|8|n0|"
        "10001|17920|25839|--max-failures|3|--signal-seconds|120|--fewest-nodes|2|ACCELERATE_USE_CPU=true\n"
        "TRAINLAUNCH_END_TIME=1000\n"
        "TRAINLAUNCH_RENDEZVOUS_ID=job-12_3-restart-1\n"
    )


@pytest.mark.parametrize(
    ("nodes", "given", "fewest", "of_launch_run"),
    [(1, 3, 3, ""), ("2-4", 3, 2, "2:3"), ("2:4", 2, 2, "2:2"), ("2-4", 1, 2, "1:1"), ("1-4", 4, 1, "1:4")],
)
def test_a_job_of_a_range_of_nodes_goes_on_with_the_fewest(
    nodes: int | str, given: int, fewest: int, of_launch_run: str
) -> None:
    """A fixed number is that of the job, whatever the configuration says: options of sbatch win over it."""
    config = resolved({"name": "a", "train.reproducibility": "elastic", "slurm.nodes": nodes})
    environment = {"SLURM_JOB_NUM_NODES": str(given)}
    lines = assignments(JobStart("12", 4, 0), [], config, "n0", [10001], None, environment).splitlines()
    assert {f"range={of_launch_run}", "job=12_4"} <= set(lines)
    assert f"--fewest-nodes {fewest})" in "\n".join(lines)


def test_a_mistake_is_told_before_anything_is_made(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["begin", "quickstart", "optimizer.lrr=1"]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert "optimizer.lrr: unknown key; did you mean optimizer.lr?" in told.err
    assert list(workdir.iterdir()) == []


def test_outside_a_job_it_says_so(
    workdir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_JOB_NODELIST", raising=False)
    assert main(["begin", "quickstart"]) == 1
    assert "error: SLURM_JOB_NODELIST is not set" in capsys.readouterr().err
    assert list(workdir.iterdir()) == []


def test_the_batch_script_is_sound() -> None:
    """Shellcheck has nothing to say."""
    need("shellcheck")
    subprocess.run(["shellcheck", str(SCRIPT)], check=True)
