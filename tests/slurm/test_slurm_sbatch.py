"""The call of sbatch, compared whole; options, sites and time limits; what is kept from a job of another one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from paths import GOLDEN, REPOSITORY

from launch.slurm.options import broken_rule, long_options, minutes_of, parse_options
from launch.slurm.submission.sbatch import Job, call_text, of_another_job, sbatch_command
from launch.slurm.submission.sites import Site, load_site, overrides, shipped_files
from trainlib.config import SlurmConfig, load_config
from trainlib.errors import UserError

RUN = Job("cifar10-cnn", Path("runs/cifar10-cnn"), ("runs/cifar10-cnn/config.yaml",))
SWEEP = Job("lr", Path("runs/lr/submission-1"), ("@runs/lr/submission-1/elements",), array="0-7%2")
OUR_SITE = """\
partition: gpu
account: vision
modules: [gcc/12, cuda/12.4]
sbatch: {mem: 64G, exclusive: true, cpus-per-task: 16, requeue: null}
environment: {NCCL_SOCKET_IFNAME: "ib0,ib1", NCCL_IB_TIMEOUT: 22}
"""
KEYS = {
    "cpus_per_gpu": 8,
    "mem": "120G",
    "account": "mine",
    "qos": "high",
    "mail": "me@example.org",
    "setup": ["module load cuda", "conda activate 'my env'"],
}
IN_AN_ALLOCATION = {
    "HOME": "/home/ada",
    "SLURM_CONF": "/etc/slurm.conf",
    "SLURM_JOB_ID": "7",
    "SLURM_CPUS_PER_TASK": "1",
    "SLURM_CPU_BIND": "mask_cpu:0x1",
    "SBATCH_PARTITION": "debug",
    "PMI_RANK": "0",
    "PMIX_NAMESPACE": "x",
    "RANK": "3",
    "SLURMISH": "no",
}

# name: job, slurm section, site, words of --sbatch, whether to debug, environment
CALLS: dict[str, tuple[Job, dict[str, object], str | None, list[str], bool, dict[str, str]]] = {
    "one_gpu": (RUN, {}, None, [], False, {}),
    "nodes": (RUN, {"nodes": 4, "gpus_per_node": 8, "time": "1-12:00:00", "partition": "a100"}, None, [], False, {}),
    "range_of_nodes": (RUN, {"nodes": "1-4", "gpus_per_node": 2}, None, [], False, {}),
    "cpus_at_a_site": (RUN, {"gpus_per_node": 0, "partition": "gpu"}, OUR_SITE, [], False, {}),
    "container": (RUN, {"nodes": 2, "gpus_per_node": 4}, "pyxis", [], True, {}),
    "keys": (RUN, {"gpus_per_node": 2, **KEYS}, OUR_SITE, [], False, {}),
    "keys_and_options": (RUN, KEYS, None, ["cpus-per-task=4", "qos=null", "mem-per-gpu=8G"], False, {}),
    "apptainer": (RUN, {"nodes": 2}, "apptainer", [], False, {}),
    "own_options": (
        RUN,
        {"signal_seconds": 60},
        OUR_SITE,
        ["gres=gpu:a100:2", "no-requeue", "signal=B:USR1@300", "mem=null", "comment=it's mine", "time=90"],
        False,
        {},
    ),
    "array_in_an_allocation": (SWEEP, {"gpus_per_node": 2}, None, ["hold"], False, IN_AN_ALLOCATION),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_call_of_sbatch(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole text, and that a shell reads it as the words and variables that are run."""
    job, section, site_text, words, debug, inherited = CALLS[name]
    if site_text == OUR_SITE:
        (tmp_path / "ours.yaml").write_text(OUR_SITE)
        site_text = str(tmp_path / "ours.yaml")
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("PWD", "/work")
    monkeypatch.chdir("/")
    command = sbatch_command(
        job,
        SlurmConfig.model_validate(section),
        load_site(site_text),
        options=parse_options(words),
        python="/opt/my env/bin/python",
        debug=debug,
        inherited=inherited,
    )
    assert call_text(command) + "\n" == (GOLDEN / f"sbatch_{name}.txt").read_text()
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (bin_folder / "sbatch").write_text(
        f"#!{sys.executable}\nimport json, os, sys\nprint(json.dumps([sys.argv, dict(os.environ)]))"
    )
    (bin_folder / "sbatch").chmod(0o755)
    path = {"PATH": f"{bin_folder}:{os.environ['PATH']}"}
    script = f"exec {call_text(command)}" if command.without else call_text(command)
    shell = subprocess.run(["bash", "-c", script], env=inherited | path, capture_output=True, text=True, check=True)
    words_run, variables = json.loads(shell.stdout)
    assert words_run[1:] == list(command.words[1:])
    of_bash = ("_", "PWD", "SHLVL", "LC_CTYPE")
    assert {key: variables[key] for key in variables if key not in of_bash} == command.variables(inherited) | path


def test_what_belongs_to_another_job_is_kept_from_this_one() -> None:
    """A person's own SBATCH_* outside a job are meant; inside one they are that job's."""
    gone = ["PMIX_NAMESPACE", "PMI_RANK", "RANK", "SLURM_CPUS_PER_TASK", "SLURM_CPU_BIND"]
    assert of_another_job(IN_AN_ALLOCATION) == sorted([*gone, "SBATCH_PARTITION", "SLURM_JOB_ID"])
    outside = {name: value for name, value in IN_AN_ALLOCATION.items() if name != "SLURM_JOB_ID"}
    assert of_another_job(outside) == gone


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("qos=", "--sbatch qos=: has no value; qos alone is an option without one, qos=null omits it"),
        ("q=high", "--sbatch q=high: must be an option's long name, as in qos=high"),
        ("array=0-3", "--sbatch array=0-3: cannot be set: launch sweep starts several runs as one array"),
        ("wait", "--sbatch wait: cannot be set: --wait of launch submit follows the job, across requeues too"),
        ("acount=x", "--sbatch acount=x: sbatch has no option --acount; did you mean account?"),
        ("zzz=1", "--sbatch zzz=1: sbatch has no option --zzz; sbatch --help lists those that it has"),
        (
            "export=NONE",
            "--sbatch export=NONE: must begin with ALL, as in ALL,NAME=VALUE: the job's settings are in the",
        ),
    ],
)
def test_an_option_that_cannot_be_is_refused(word: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        parse_options([word], known=["account", "qos", "exclusive", "export"])
    assert str(error.value).startswith(message)


def test_options_are_taken_with_and_without_dashes_and_values() -> None:
    words = ["qos=high", "--exclusive", "comment=a=b", "mem=null", "export=ALL,A=1"]
    taken = {"qos": "high", "exclusive": "", "comment": "a=b", "mem": None, "export": "ALL,A=1"}
    assert parse_options(words) == taken
    assert broken_rule("anything", "1", known=[]) is None


def test_long_options_are_read_from_the_help() -> None:
    help_text = """
  -A, --account=name          charge job to specified account
      --bb=<spec>             burst buffer specifications
  -k, --no-kill               do not kill job on node failure
      --get-user-env          load environment from local cluster
                              --mem >= --mem-per-cpu if --mem is specified.
"""
    assert long_options(help_text) == ["account", "bb", "get-user-env", "mem", "mem-per-cpu", "no-kill"]


@pytest.mark.parametrize(
    ("time", "minutes"),
    [
        ("90", 90),
        ("90:30", 90.5),
        ("1:30:00", 90),
        ("01:00:00", 60),
        ("1-12", 36 * 60),
        ("1-12:30", 36 * 60 + 30),
        ("2-00:00:30", 48 * 60 + 0.5),
        ("UNLIMITED", None),
        ("infinite", None),
    ],
)
def test_time_limits_as_slurm_writes_them(time: str, minutes: float | None) -> None:
    assert minutes_of(time) == minutes


@pytest.mark.parametrize("time", ["soon", "", "1h", "-5", "0", "0:00:00", "1:2:3:4", "1.5", "2-"])
def test_a_time_that_is_none_is_refused(time: str) -> None:
    with pytest.raises(UserError, match="must be a time limit as SLURM writes it"):
        minutes_of(time)


@pytest.mark.parametrize(("time", "signal"), [("2", 120), ("1:30", 120), ("1:00:00", 3600)])
def test_a_warning_as_long_as_the_job_is_refused(time: str, signal: int) -> None:
    slurm = SlurmConfig(time=time, signal_seconds=signal)
    with pytest.raises(UserError, match=f"must be longer than slurm.signal_seconds, {signal}"):
        sbatch_command(RUN, slurm, Site(), options={}, python="python", inherited={})


def test_every_mistake_of_a_site_is_told_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "ours.yaml"
    path.write_text("acount: x\nmodules: gcc\nsbatch:\n  wrap: ls\n  mem: [1]\nenvironment: {A: true}\nqos: 3\n")
    with pytest.raises(UserError) as error:
        load_site(str(path))
    assert str(error.value).splitlines() == [
        "5 mistakes in the configuration:",
        f"  acount: unknown key; did you mean account? ({path} line 1)",
        f'  modules: got "gcc", must be a list of texts ({path} line 2)',
        '  sbatch: got {"wrap": "ls", "mem": [1]}, must be sbatch\'s long options, each with text, a number, true (an '
        f"option without a value) or null (left out) ({path} line 3)",
        f'  environment: got {{"A": true}}, must be names of variables, each with text or a number ({path} line 6)',
        f"  qos: got 3, must be text or null ({path} line 7)",
    ]
    path.write_text("sbatch: {mem: 1, wrap: ls, memm: 2}\n")
    with pytest.raises(UserError) as error:
        load_site(str(path), known=["mem"])
    assert str(error.value).splitlines()[1:] == [
        f"  sbatch.wrap: cannot be set: the batch script is slurm/train.sbatch ({path} line 1)",
        f"  sbatch.memm: sbatch has no option --memm; did you mean mem? ({path} line 1)",
    ]


def test_a_site_that_is_not_there() -> None:
    with pytest.raises(
        UserError,
        match=r"--site plane: no such file; did you mean plain\? \(shipped sites: apptainer, enroot, plain, pyxis\)",
    ):
        load_site("plane")


def test_a_site_says_what_the_run_does_not(workdir: Path) -> None:
    site = Site(partition="gpu", time="4:00:00")
    (workdir / "x.yaml").write_text("seed: 1\n")
    assert overrides(site, load_config(["x.yaml"]).slurm) == ['slurm.partition="gpu"', 'slurm.time="4:00:00"']
    said = load_config(["x.yaml", "slurm.partition=cpu", 'slurm.time="1:00"']).slurm
    assert overrides(site, said) == []
    assert overrides(site, load_config(["x.yaml", "slurm.partition=null"]).slurm)[0] == 'slurm.partition="gpu"'
    assert overrides(Site(), load_config(["x.yaml"]).slurm) == []


@pytest.mark.parametrize("path", sorted(shipped_files().glob("sites/*.yaml")), ids=lambda path: path.stem)
def test_shipped_sites_load(path: Path) -> None:
    """By name and by path, with every key that they show one that there is."""
    assert load_site(path.stem) == load_site(str(path))
    assert set(yaml.safe_load(path.read_text())) <= {
        *Site.__dataclass_fields__,
        "account",
        "qos",
        "constraint",
        "sbatch",
    }


def test_the_files_of_slurm_go_into_the_wheel() -> None:
    """They lie beside the package in a clone and inside it where it is installed."""
    import tomllib

    root = REPOSITORY
    project = tomllib.loads((root / "pyproject.toml").read_text())
    included = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert included["slurm"] == "launch/slurm/files"
    assert shipped_files() == root / "slurm"
