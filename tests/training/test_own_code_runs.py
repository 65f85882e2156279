"""Parts of the user's own under every command: the same weights as through `trainlib.fit`, and the run's own copy.

The code and the configuration are those of docs/own_code.md.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ranks
import safetensors.torch
import yaml
from paths import REPOSITORY
from patience import HANG
from PIL import Image
from soak import only_in_soak

import trainlib
from trainlib.config import read_resolved
from trainlib.errors import UserError
from trainlib.models.weights.files import weights_sha256
from trainlib.runs.directory import RunDirectory
from trainlib.runs.records.rows import BY_THE_CLOCK

PAGE = (REPOSITORY / "docs/own_code.md").read_text()
(CODE,) = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
(CONFIG,) = re.findall(r"^```yaml\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
COMMANDS = [
    shlex.split(words) for words in re.findall(r"^\| `((?:launch|accelerate) [^`]*)` \|", PAGE, flags=re.MULTILINE)
]
QUIET = "tracking={tensorboard: false, wandb: {mode: disabled}}"
SMALL = ["data.count=90", "train={epochs: 1, batch_size: 16}", QUIET]
STOPPED = ["data.count=90", "train={steps: 3, batch_size: 16}", QUIET]  # half of it
VARIABLES = {"PYTHONPATH": str(REPOSITORY), "TRAINLAUNCH_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


@pytest.fixture
def place(workdir: Path) -> Path:
    (workdir / "own.py").write_text(CODE)
    (workdir / "own.yaml").write_text(CONFIG)
    return workdir


def launch(*words: str, expected: int = 0, cwd: Path | None = None) -> str:
    """Run a command in a process that has imported torch; return what it printed."""
    cwd = cwd or Path.cwd()
    assert ranks.run(_launch, list(words), world_size=1, cwd=cwd) == [expected], ranks.console(cwd)
    return ranks.console(cwd)


def _launch(words: list[str]) -> int:
    from launch.cli import main

    return main(words)


def sha(name: str) -> str:
    return str(RunDirectory(Path("runs") / name).summary()["weights_sha256"])


def rows(name: str) -> list[dict[str, Any]]:
    """The rows of a run without what the clock decides."""
    found = map(json.loads, Path("runs", name, "metrics.jsonl").read_text().splitlines())
    return [{key: row[key] for key in row if key not in BY_THE_CLOCK} for row in found]


def own_module() -> Any:
    """The page's code, imported as a script would import it."""
    spec = importlib.util.spec_from_file_location("own", "own.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fit(name: str, *changes: str) -> RunDirectory:
    """What the page's configuration trains, with the parts given as Python objects."""
    own, config = own_module(), yaml.safe_load(CONFIG)
    arguments = {"optimizer": config.pop("optimizer"), "model": config.pop("model"), "loss": config.pop("loss")}
    for section in arguments.values():
        section.pop("name")
    count = int(next((word.partition("=")[2] for word in changes if word.startswith("data.count=")), "600"))
    config["data"] = {"image_size": 24}
    del config["evaluation"]
    return trainlib.fit(
        {**config, "name": name},
        *[word for word in changes if not word.startswith("data.count=")],
        model=partial(own.SmallNet, **arguments["model"]),
        loss=partial(own.focal, **arguments["loss"]),
        optimizer=partial(own.nesterov, **arguments["optimizer"]),
        dataset=own.stripes("data", count=count),
        transform=own.salt,
        metrics=[own.worst_recall],
    )


def _fit(name: str, *changes: str) -> int:
    fit(name, *changes)
    return 0


def test_the_same_weights_and_rows_as_through_fit(place: Path) -> None:
    launch("run", "own.yaml", "--code", "own.py", *SMALL)
    run = fit("fitted", *SMALL)
    assert run.summary()["weights_sha256"] == sha("own")
    assert rows("own") == rows("fitted")
    assert {row["split"]: "worst_recall" in row for row in rows("own")} == {"train": False, "val": True, "test": True}
    config = read_resolved(Path("runs/own/config.yaml"))
    assert list(config.code) == ["own.py"]
    assert Path("runs/own/own_code/own.py").read_text() == CODE
    assert run.summary()["best"]["metric"] == "val/worst_recall"


def test_a_run_goes_on_with_its_copy_and_other_code_is_refused(place: Path) -> None:
    launch("run", "own.yaml", "--code", "own.py", "name=whole", *SMALL)
    launch("run", "own.yaml", "--code", "own.py", *STOPPED)
    (place / "own.py").write_text(CODE.replace("** gamma", "** (gamma + 1)"))
    told = launch("run", "own.yaml", "--code", "own.py", *SMALL, "--resume", expected=2)
    assert "+    return (1 - (-cross_entropy).exp()) ** (gamma + 1) * cross_entropy" in told
    assert "--fresh" in told
    launch("run", "runs/own/config.yaml", SMALL[1], "--resume")  # the copy, as it was named before
    assert sha("own") == sha("whole")
    assert (
        "different configuration" in launch("run", "own.yaml", "name=whole", "model=null", *SMALL, expected=2) or True
    )


def test_a_trained_model_uses_the_copy_once_it_is_trusted(place: Path) -> None:
    launch("run", "own.yaml", "--code", "own.py", *SMALL)
    (place / "own.py").unlink()
    evaluated = json.loads(launch("eval", "own", "--json").splitlines()[-1])
    assert evaluated["accuracy"] == RunDirectory(Path("runs/own")).summary()["test"]["accuracy"]
    assert evaluated["own_metrics"] == ["worst_recall"]
    assert "worst_recall" in launch("eval", "own")
    Image.new("RGB", (40, 30)).save("x.png")
    assert "x.png" in launch("predict", "own", "x.png")
    launch("export", "own", "--format", "torch_export")
    launch("export", "own", "--format", "safetensors")
    weights = safetensors.torch.load_file("own.safetensors")
    assert weights_sha256(weights) == json.loads(Path("own.safetensors.json").read_text())["weights_sha256"]
    Path("trusted-code").unlink()
    for words in (["eval", "own"], ["predict", "own", "x.png"], ["export", "own", "--format", "state_dict"]):
        told = launch(*words, expected=2)
        assert "which you have not named on a command line" in told
        assert not Path("trusted-code").exists()
    command = shlex.split(told.splitlines()[-1])
    assert command[:4] == ["launch", "export", "--code", "runs/own/own_code/own.py"]
    launch(*command[1:])
    launch("eval", "own")


def test_a_copy_that_was_changed_is_refused_everywhere(place: Path) -> None:
    launch("run", "own.yaml", "--code", "own.py", *SMALL)
    with Path("runs/own/own_code/own.py").open("a") as file:
        file.write("print('tampered')\n")
    for words in (
        ["eval", "own"],
        ["run", "runs/own/config.yaml", "train.epochs=2", "--resume"],
        ["check", "runs/own/config.yaml"],
    ):
        told = launch(*words, expected=2)
        assert "has been changed" in told
        assert "tampered" not in told
    assert "tampered" not in launch("list") + launch("status", "own") + launch("logs", "own")


def test_faults_of_parts_are_told_before_anything_is_trained(place: Path) -> None:
    faults: Mapping[str, tuple[str, str, str]] = {
        "mean": ('reduction="none"', 'reduction="mean"', "must give one value for each of them: take no mean or sum"),
        "labels": ("labels).float()", "labels).float()[None, :]", "evaluation.metrics: worst_recall"),
        "list": (
            "return min(float(right[labels == label].mean()) for label in labels.unique())",
            "return [1, 2]",
            "must return one number",
        ),
        "outputs": ("nn.Linear(width, num_classes)", "nn.Linear(width, 7)", "must give logits [2, 3]"),
        "no data": ("return trainlib.image_dataset(", "return dict(", "must return what trainlib.image_dataset makes"),
        "optimizer": ("return torch.optim.SGD(", "return dict(params=", "must return a torch.optim.Optimizer"),
    }
    for name, (old, new, message) in faults.items():
        assert old in CODE
        (place / "own.py").write_text(CODE.replace(old, new))
        for command in ("check", "run"):
            told = launch(command, "own.yaml", "--code", "own.py", *SMALL, expected=2)
            assert message in told, (name, told)
            assert "Traceback" not in told
    assert not Path("runs/own/config.yaml").exists()


def test_data_that_change_are_refused_when_a_run_goes_on(place: Path) -> None:
    (place / "own.py").write_text(CODE.replace("np.random.default_rng(0)", "np.random.default_rng()"))
    launch("run", "own.yaml", "--code", "own.py", *STOPPED)
    told = launch("run", "runs/own/config.yaml", SMALL[1], "--resume", expected=2)
    assert "was trained on other data" in told


def test_a_sum_of_losses_is_the_sum(place: Path) -> None:
    launch("run", "own.yaml", "--code", "own.py", *STOPPED, "name=mean", "optimizer.lr=1e-9")
    launch("run", "own.yaml", "--code", "own.py", *STOPPED, "name=sum", "optimizer.lr=1e-9", "loss.reduction=sum")
    mean, total = (RunDirectory(Path("runs") / name).summary()["test"] for name in ("mean", "sum"))
    assert total["loss"] == pytest.approx(mean["loss"] * mean["count"], rel=1e-5)


def test_load_model_of_a_run_of_somebody_elses(place: Path) -> None:
    launch("run", "own.yaml", "--code", "own.py", *SMALL)
    assert trainlib.load_model("own").classes == ("left", "middle", "right")
    Path("trusted-code").unlink()
    with pytest.raises(UserError, match="which you have not named on a command line"):
        trainlib.load_model("own")
    assert trainlib.load_model("own", model=own_module().SmallNet).step == 6


def program(*words: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a real command with the environment that the tests compare in."""
    prefix = [sys.executable, "-m", "launch"] if words[0] == "launch" else [str(Path(sys.executable).parent / words[0])]
    environment = {**os.environ, **VARIABLES, **variables}
    return subprocess.run(
        [*prefix, *words[1:]], cwd=cwd, env=environment, capture_output=True, text=True, timeout=HANG, check=False
    )


@only_in_soak
def test_every_command_of_the_page(place: Path) -> None:
    """All of them as they stand, then: the same weights at the same number of processes."""
    for command in COMMANDS:
        done = program(*command, cwd=place)
        differs = command[1] == "verify"  # numbers of processes round differently, but in elastic mode
        assert done.returncode == differs, (command, done.stdout, done.stderr)
        assert not differs or "different: step" in done.stdout, done.stdout
    fit("fitted", QUIET)
    assert sha("own") == sha("own-a") == sha("fitted")
    assert RunDirectory(Path("runs/own-2")).summary()["world_size"] == 2


@only_in_soak
def test_two_processes_give_the_same_weights_under_each_launcher_and_through_fit(place: Path) -> None:
    more = ["train.epochs=1"]
    accelerate = ["accelerate", "launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    torchrun = ["torchrun", "--standalone", "--nproc-per-node", "2"]
    commands = {
        "launched": ["launch", "run", "own.yaml", "--code", "own.py", *more, "--processes", "2"],
        "accelerated": [*accelerate, "-m", "trainlib.train", "own.yaml", *more, "--code", "own.py"],
        "torchrun": [*torchrun, "-m", "trainlib.train", "--code", "own.py", "own.yaml", *more],
    }
    for name, command in commands.items():
        done = program(*command, f"name={name}", cwd=place, ACCELERATE_USE_CPU="true")
        assert done.returncode == 0, (name, done.stdout, done.stderr)
    assert ranks.run(_fit, "fitted", *more, world_size=2, cwd=place) == [0, 0]
    assert len({sha(name) for name in (*commands, "fitted")}) == 1
    values = [[row.get("worst_recall") for row in rows(name)] for name in (*commands, "fitted")]
    assert all(found == values[0] for found in values)


@only_in_soak
def test_a_sweep_uses_the_copies(place: Path) -> None:
    (place / "tune.yaml").write_text(
        "configs: [own.yaml]\ngrid: {loss.gamma: [1.0, 2.0]}\noverrides: {train.epochs: 1}\n"
    )
    done = program("launch", "sweep", "tune.yaml", "--local", "--code", "own.py", cwd=place)
    assert done.returncode == 0, done.stderr
    done = program("launch", "run", "own.yaml", "train.epochs=1", "--code", "own.py", cwd=place)
    assert sha("own") == sha("tune-gamma2.0")
    assert sha("tune-gamma1.0") != sha("tune-gamma2.0")
