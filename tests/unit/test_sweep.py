"""`launch sweep`: what a file stands for, its mistakes, the results, and a sweep that runs here and is interrupted."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import ranks
import tiny
import yaml
from paths import REPOSITORY

from launch.cli import main
from launch.sweep.grid import element_names, read_sweep, short_keys
from launch.sweep.results import results_table
from trainlib.config import load_config
from trainlib.errors import ConfigError

GRID = """\
name: s
configs: [quickstart]
overrides: {train.epochs: 5, data: {name: synthetic, image_size: 16}}
grid:
  optimizer.lr: [0.01, 1e-5]
  seed: [0, 1]
runs:
  - {model: {name: resnet18}}
  - {model: {name: vgg16, width: 0.25}, train.precision: "no"}
throttle: 2
"""


def written(text: str) -> Path:
    path = Path("s.yaml")
    path.write_text(text)
    return path


@pytest.mark.usefixtures("workdir")
def test_a_sweep_stands_for_these_runs() -> None:
    """Each of the list with every combination of the grid; every value arrives, as yaml itself reads it."""
    sweep = read_sweep(written(GRID), ["train.epochs=7"])
    content = yaml.safe_load(GRID.replace("1e-5", "0.00001"))
    expected = list(product(content["runs"], content["grid"]["optimizer.lr"], content["grid"]["seed"]))
    assert (sweep.name, sweep.throttle, len(sweep.elements)) == ("s", 2, 8)
    for element, (run, lr, seed) in zip(sweep.elements, expected, strict=True):
        config = element.config
        assert (config.name, config.tracking.wandb.group) == (element.name, "s")
        assert (config.optimizer.args["lr"], config.seed) == (lr, seed)
        assert (config.model.name, config.model.args) == (
            run["model"]["name"],
            {key: value for key, value in run["model"].items() if key != "name"},
        )
        assert (config.train.epochs, config.train.precision, config.data.image_size) == (7, "no", 16)
        assert load_config(element.arguments) == config
    assert [element.name for element in sweep.elements] == [
        "s-resnet18-lr0.01-seed0",
        "s-resnet18-lr0.01-seed1",
        "s-resnet18-lr1e-05-seed0",
        "s-resnet18-lr1e-05-seed1",
        "s-vgg16-width0.25-precision-no-lr0.01-seed0",
        "s-vgg16-width0.25-precision-no-lr0.01-seed1",
        "s-vgg16-width0.25-precision-no-lr1e-05-seed0",
        "s-vgg16-width0.25-precision-no-lr1e-05-seed1",
    ]
    assert sweep.varied == ["model", "optimizer.lr", "seed", "train.precision"]


@pytest.mark.usefixtures("workdir")
def test_the_name_is_the_files_own_and_a_grid_of_one_is_enough() -> None:
    sweep = read_sweep(
        written("configs: [quickstart]\ngrid: {optimizer.name: [SGD, AdamW], train.clip_grad_norm: [null]}\n")
    )
    assert [element.name for element in sweep.elements] == ["s-SGD-clip_grad_norm-null", "s-AdamW-clip_grad_norm-null"]
    assert sweep.throttle is None


@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs/sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_sweeps_and_the_commands_in_their_headers(
    path: Path, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = re.findall(r"^# +launch (.*?)(?:  |$)", path.read_text(), re.MULTILINE)
    assert commands
    shutil.copytree(REPOSITORY / "configs/sweeps", workdir / "configs/sweeps")
    for command in commands:
        assert shlex.split(command)[1] == f"configs/sweeps/{path.name}"
        assert main([*shlex.split(command), "--dry-run"]) == 0
        assert read_sweep(path).elements[0].name in capsys.readouterr().out


@pytest.mark.usefixtures("workdir")
def test_names_that_the_documentation_gives() -> None:
    """The second block of docs/sweep.md, in a file of the name that the text says."""
    blocks = re.findall(r"^```yaml\n(.*?)^```", (REPOSITORY / "docs/sweep.md").read_text(), re.MULTILINE | re.DOTALL)
    Path("optimizers.yaml").write_text(blocks[1])
    names = [element.name for element in read_sweep(Path("optimizers.yaml")).elements]
    assert len(names) == 6
    assert names[0] == "optimizers-SGD-lr0.1-momentum0.9-seed0"


@pytest.mark.parametrize(
    ("combinations", "expected"),
    [
        ([{"seed": 0}, {"seed": 1}], ["s-seed0", "s-seed1"]),
        ([{"model.freeze": None}, {"model.freeze": "backbone"}], ["s-freeze-null", "s-freeze-backbone"]),
        ([{"data.root": "/a/b c"}, {"data.root": "é"}], ["s-root-a-b-c", "s-root"]),
        ([{"data.root": "/a/b"}, {"data.root": "a:b"}], ["s-000", "s-001"]),  # the same letters
        ([{"data.root": "x" * 100}, {"data.root": "y"}], ["s-000", "s-001"]),  # longer than a name may be
        ([{"scheduler": None}, {"scheduler": {"name": "StepLR", "gamma": 1}}], ["s-scheduler-null", "s-StepLR-gamma1"]),
        ([{"data.augment": {"flip": True}}, {"data.augment": {}}], ["s-augment-flip-true", "s-augment"]),
    ],
)  # fmt: skip
def test_names_of_runs(combinations: list[dict[str, Any]], expected: list[str]) -> None:
    assert element_names("s", combinations) == expected


def test_keys_as_short_as_tells_them_apart() -> None:
    keys = ["optimizer.lr", "seed", "optimizer.name", "model.name", "a.b.c", "x.b.c"]
    assert list(short_keys(keys).values()) == ["lr", "seed", "optimizer", "model", "a.b.c", "x.b.c"]


@pytest.mark.parametrize(
    ("text", "mistakes"),
    [
        (
            "confgs: [x]\nthrottle: 0\ngrid: {optimizer/lr: [1], name: [a], seed: 3}\nruns: [3, {seed: 1}, {}]\n",
            [
                "confgs: unknown key; did you mean configs? (s.yaml line 1)",
                "configs: is missing, must be a list of configurations, such as [quickstart]",
                "throttle: got 0, must be a whole number >= 1, or null (s.yaml line 2)",
                "grid.optimizer/lr: must be a dotted key, such as optimizer.lr (s.yaml line 3)",
                "grid.name: must not be set here: it is made from the sweep's own name (s.yaml line 3)",
                "runs.0: got 3, must be keys with values, such as {optimizer.lr: 0.1} (s.yaml line 4)",
                "runs.1.seed: is in the grid, too: take it out of one of them (s.yaml line 4)",
                "runs.2: got {}, must be keys with values, such as {optimizer.lr: 0.1} (s.yaml line 4)",
                "grid.seed: got 3, must be a list of values, such as [0.01, 0.1] (s.yaml line 3)",
            ],
        ),
        (
            "configs: [quickstart]\nname: a b\n",
            [
                "name: got \"a b\", must be letters, digits, '.', '_' or '-', at most 100 of them",
                "has neither grid nor runs: must have one of them, such as grid: {seed: [0, 1]}",
            ],
        ),
        (
            "configs: [quickstart]\ngrid:\n  seed: [0, -1]\n  optimizer.lr: [1,\n    -1]\nruns: [{train.epochs: 0}]\n",
            [
                "train.epochs: got 0, must be >= 1 (s.yaml line 6)",
                "optimizer.lr: got -1, must be > 0 (s.yaml line 4)",
                "seed: got -1, must be >= 0 (s.yaml line 3)",
            ],
        ),
        (
            "configs: [quickstart]\ngrid: {seed: [0, 1, 0]}\n",
            ["the runs s-000 and s-002 are the same: must differ in something; remove one (s.yaml line 2)"],
        ),
        ("configs: [quickstat]\nruns: [{seed: 1}]\n", ["quickstat: no such file; did you mean quickstart?"]),
        (
            "configs: [quickstart]\ngrid: {seed: [" + "0, " * 1001 + "]}\n",
            ["got 1001 runs, must be at most 1000: cut the grid, or make several sweeps (s.yaml)"],
        ),
        (
            "configs: [quickstart]\ngrid: {train.steps: [1], train.steps: [2]}\n",
            ["grid.train.steps: appears twice, first on line 2: remove one (s.yaml line 2)"],
        ),
    ],
    ids=["form", "name", "configurations", "twice the same", "no such config", "too many", "duplicate key"],
)
@pytest.mark.usefixtures("workdir")
def test_all_mistakes_at_once_each_with_its_place(
    text: str, mistakes: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Each is told once, however many runs have it; exit code 2 and nothing begun."""
    with pytest.raises(ConfigError) as raised:
        read_sweep(written(text))
    found = [str(mistake) for mistake in raised.value.mistakes]
    assert len(found) == len(mistakes)
    assert all(said.startswith(expected) for said, expected in zip(found, mistakes, strict=True)), found
    for how in ([], ["--local"]):
        assert main(["sweep", "s.yaml", *how]) == 2
        assert capsys.readouterr().err == f"error: {raised.value}\n"
    assert [path.name for path in Path().iterdir()] == ["s.yaml"]


@pytest.mark.usefixtures("workdir")
def test_more_mistakes_of_the_command_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    written("configs: [quickstart]\ngrid: {seed: [0, 1], slurm.nodes: [1, 2]}\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    for words, message in [
        (["s.yaml", "seed=3"], "seed: is varied by s.yaml: take it out there, or here (command line)"),
        (["s.yaml", "--fresh", "--resume"], "--fresh and --resume: one starts over"),
        (["s.yaml"], "slurm.nodes: must be the same in all runs of a sweep on SLURM, which starts them as one array"),
        (["none.yaml"], "none.yaml: cannot be read: No such file or directory"),
    ]:
        assert main(["sweep", *words]) == 2
        assert message in capsys.readouterr().err
    written("configs: [quickstart]\ngrid: {seed: [0, 1]}\n")
    assert main(["sweep", "s.yaml"]) == 2
    assert "no sbatch on this machine" in (said := capsys.readouterr().err)
    assert "--local" in said
    assert [path.name for path in Path().iterdir()] == ["s.yaml"]


@pytest.mark.usefixtures("workdir")
def test_dry_run_here_prints_commands_that_do_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    sweep = read_sweep(written(GRID))
    assert main(["sweep", "s.yaml", "--local", "--dry-run", "--processes", "2"]) == 0
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert [line[:2] + line[-2:] for line in lines] == [["launch", "run", "--processes", "2"]] * 8
    assert [load_config(line[2:-2]) for line in lines] == [element.config for element in sweep.elements]
    assert not Path("runs").exists()


def fabricated(name: str, summary: dict[str, Any], *rows: dict[str, Any]) -> None:
    directory = Path("runs") / name
    directory.mkdir(parents=True)
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (directory / "attempts.jsonl").write_text(
        json.dumps({"event": "start", "attempt": 1}) + "\n"
        + (json.dumps({"event": "end", "attempt": 1, "status": summary["status"]}) + "\n" if summary else "")
    )  # fmt: skip
    if summary:
        (directory / "summary.json").write_text(json.dumps(summary))


@pytest.mark.parametrize(("metric", "order"), [("val/accuracy", [1, 0, 2]), ("val/loss", [0, 1, 2])])
@pytest.mark.usefixtures("workdir")
def test_results_best_first(metric: str, order: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    """Whole text. One run is complete, one was cut off after an evaluation, one has not begun."""
    written(
        f"configs: [quickstart]\noverrides: {{checkpoint.best: {{metric: {metric}}}}}\ngrid: {{seed: [0, 1, 22]}}\n"
    )
    best = {"val/accuracy": 0.5, "val/loss": 0.1}[metric]
    val = {"split": "val", "loss": 0.2, "accuracy": 0.6, "step": 9}
    fabricated(
        "s-seed0",
        {"status": "completed", "step": 20, "best": {"metric": metric, "value": best}, "test": {"accuracy": 0.75}},
    )
    fabricated("s-seed1", {}, val | {"step": 4, "loss": 3.0}, val)
    rows = [
        f"   0  completed          {best:>{len(metric)}.4f}         0.7500  s-seed0",
        f"   1  interrupted     9  {val[metric.split('/')[1]]:>{len(metric)}.4f}                 s-seed1",
        f"  22  new                {'':{len(metric)}}                 s-seed22",
    ]
    header = f"seed  STATUS       STEP  {metric}  test/accuracy  RUN"
    assert results_table(read_sweep(Path("s.yaml"))).splitlines() == [header, *(rows[index] for index in order)]
    assert main(["sweep", "s.yaml", "--results"]) == 0
    assert capsys.readouterr().out == "\n".join([header, *(rows[index] for index in order)]) + "\n"


def sweep_here(*more: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": ""}
    words = [sys.executable, "-m", "launch", "sweep", "s.yaml", "--local", *more]
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def attempts(name: str) -> list[dict[str, Any]]:
    path = Path("runs") / name / "attempts.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_sweep_here_is_interrupted_and_continued(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C stops the run under way with a checkpoint and begins no other. The second start continues it, runs the
    rest, and ends with the bits of undisturbed runs; the third finds nothing to do."""
    tiny.make_images(workdir / "images")
    common = [word for word in tiny.arguments(workdir / "images", 12, 4) if not word.startswith("name=")]
    written(f"configs: [{common[0]}]\ngrid: {{seed: [3, 4]}}\n")
    first = sweep_here(*common[1:])
    rows = workdir / "runs/s-seed3/metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (rows.exists() and rows.read_text().count("\n") > 5):
        assert first.poll() is None, first.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    first.send_signal(signal.SIGINT)
    out, err = first.communicate(timeout=60)
    assert first.returncode == 75, err
    assert [line.get("status") for line in attempts("s-seed3")] == [None, "stopped"]
    assert attempts("s-seed4") == []
    assert "stopped" in out.splitlines()[-2]

    second = sweep_here(*common[1:])
    out, err = second.communicate(timeout=120)
    assert second.returncode == 0, err
    assert [line.get("status") for line in attempts("s-seed3")] == [None, "stopped", None, "completed"]
    assert attempts("s-seed3")[2]["from_step"] > 0
    assert [line.get("status") for line in attempts("s-seed4")] == [None, "completed"]
    assert "[1/2] s-seed3: seed=3\n" in err

    assert main(["sweep", "s.yaml", "--local", *common[1:]]) == 0
    captured = capsys.readouterr()
    assert captured.err == "nothing to start: all 2 runs are finished or in the queue\n"
    assert captured.out.splitlines() == out.splitlines()[-3:]
    assert (len(attempts("s-seed3")), len(attempts("s-seed4"))) == (4, 2)

    whole = tiny.in_folder(workdir, "whole")
    for seed in (3, 4):
        assert ranks.train([*common, f"seed={seed}", f"name=s-seed{seed}"], cwd=whole) == [0]
        shas = [
            json.loads((cwd / f"runs/s-seed{seed}/summary.json").read_text())["weights_sha256"]
            for cwd in (workdir, whole)
        ]
        assert shas[0] == shas[1]


def test_a_run_that_fails_does_not_keep_the_others_from_running(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The code is the first failing run's own. What is prepared is what is run: runs/<name>/config.yaml."""
    from launch.sweep import local

    program = (
        "import sys; open('ran', 'a').write(sys.argv[1] + ' '); sys.exit({1: 7, 2: 75, 3: 0}[int(sys.argv[1][-1])])"
    )
    command = local.run_command
    sweep = read_sweep(written("configs: [quickstart]\ngrid: {seed: [1, 2, 3]}\n"))
    assert command(sweep.elements[0], ["--processes", "2"])[1:] == [
        *("-m", "launch", "run", "runs/s-seed1/config.yaml", "--processes", "2")
    ]
    monkeypatch.setattr(local, "run_command", lambda element, more: [sys.executable, "-c", program, element.name])
    assert local.run_here(sweep.elements, []) == 7
    assert Path("ran").read_text().split() == ["s-seed1", "s-seed2", "s-seed3"]
    assert "error: s-seed1 ended with exit code 7: launch status s-seed1\n" in capsys.readouterr().err
    assert local.run_here(sweep.elements[1:], []) == 75
    assert local.run_here(sweep.elements[2:], []) == 0


# A run that is asked to stop by its first Ctrl-C, and ends at once at the second one.
STUBBORN = """
import pathlib, signal, sys, time
asked = []
def handle(number, frame):
    asked.append(number)
    pathlib.Path("asked").touch()
    if len(asked) == 2:
        sys.exit(130)
signal.signal(signal.SIGINT, handle)
pathlib.Path("ready").touch()
time.sleep(60)
"""


@pytest.mark.usefixtures("workdir")
def test_a_second_ctrl_c_ends_the_run_and_the_sweep_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from launch.sweep import local

    def press_twice() -> None:
        for file in ("ready", "asked"):
            while not Path(file).exists():
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)

    sweep = read_sweep(written("configs: [quickstart]\ngrid: {seed: [1, 2]}\n"))
    commands: list[str] = []
    monkeypatch.setattr(
        local, "run_command", lambda element, more: commands.append(element.name) or [sys.executable, "-c", STUBBORN]
    )
    before = signal.getsignal(signal.SIGINT)
    threading.Thread(target=press_twice, daemon=True).start()
    assert local.run_here(sweep.elements, []) == 130
    assert commands == ["s-seed1"]
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.usefixtures("workdir")
def test_where_one_run_is_refused_none_is_begun_and_nothing_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    """The second run's directory holds another configuration: the first one's is made, and removed again."""
    written("configs: [quickstart]\ngrid: {seed: [0, 1]}\n")
    other = Path("runs/s-seed1")
    (other / "logs").mkdir(parents=True)
    other_config = "name: s-seed1\nseed: 5\n"
    (other / "config.yaml").write_text(other_config)
    assert main(["sweep", "s.yaml", "--local"]) == 2
    assert "holds a run of a different configuration" in capsys.readouterr().err
    assert [path.name for path in Path("runs").iterdir()] == ["s-seed1"]
    assert (other / "config.yaml").read_text() == other_config
    assert not (other / "attempts.jsonl").exists()
