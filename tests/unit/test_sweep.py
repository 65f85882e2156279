"""`launch sweep`: the runs that a file stands for, its mistakes, and the table of results."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from paths import REPOSITORY
from sweep_files import GRID, refused, written

from launch.cli import main
from launch.sweep.file.grid import read_sweep
from launch.sweep.file.names import element_names, short_keys
from launch.sweep.results import results_facts, results_table
from trainlib.config import load_config


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
        assert (config.train.epochs, config.train.precision, config.data.image_size) == (7, "fp32", 16)
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
        ([{"data.root": "A"}, {"data.root": "a"}], ["s-000", "s-001"]),  # to a Mac's disk
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
                "has neither grid, runs, space, folds nor seeds: must have one of them, such as grid: {seed: [0, 1]}",
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
    found = refused(text, [[], ["--local"]], capsys)
    assert len(found) == len(mistakes), found
    assert all(said.startswith(expected) for said, expected in zip(found, mistakes, strict=True)), found


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
    worse = {"step": 12, "loss": 3.0, "accuracy": 0.1}  # what counts is the best so far
    fabricated("s-seed1", {}, val, val | worse)
    rows = [
        f"   0  completed          {best:>{len(metric)}.4f}         0.7500  s-seed0",
        f"   1  interrupted    12  {val[metric.split('/')[1]]:>{len(metric)}.4f}                 s-seed1",
        f"  22  new                {'':{len(metric)}}                 s-seed22",
    ]
    header = f"seed  STATUS       STEP  {metric}  test/accuracy  RUN"
    assert str(results_table(read_sweep(Path("s.yaml")))).splitlines() == [header, *(rows[index] for index in order)]
    assert main(["sweep", "s.yaml", "--results"]) == 0
    assert capsys.readouterr().out == "\n".join([header, *(rows[index] for index in order)]) + "\n"


SETS = "data: {name: table, table: t.csv, labels: several}, loss: {name: BCEWithLogitsLoss}"


@pytest.mark.parametrize(
    ("overrides", "metric", "validation", "order"),
    [
        ("checkpoint.best: null", "val/accuracy", True, [2, 0, 1]),
        (f"checkpoint.best: null, {SETS}", "val/map", True, [1, 2, 0]),
        ("data.val_fraction: 0.0", None, False, [0, 1, 2]),
        ("checkpoint.best: {metric: val/loss}", "val/loss", True, [1, 2, 0]),
    ],
)
@pytest.mark.usefixtures("workdir")
def test_runs_are_never_ranked_by_the_test(
    overrides: str, metric: str | None, validation: bool, order: list[int]
) -> None:
    """The better on the test, the earlier the run in the file. Without a best checkpoint, the last weights count."""
    written(f"configs: [quickstart]\noverrides: {{{overrides}}}\ngrid: {{seed: [0, 1, 2]}}\n")
    rows = [(0.7, 0.5, 0.3), (0.9, 0.4, 0.1), (0.8, 0.6, 0.2)]  # accuracy before, and at the end with its loss
    for seed, (before, last, loss) in enumerate(rows):
        best = {"best": {"metric": metric, "value": loss}} if metric == "val/loss" else {"best": None}
        summary = {"status": "completed", "step": 2, **best, "test": {"accuracy": 0.9 - 0.1 * seed}}
        val = [
            {"split": "val", "step": 1, "loss": 1.0, "accuracy": before},
            {"split": "val", "step": 2, "loss": loss, "accuracy": last, "map": 1 - loss},
        ]
        fabricated(f"s-seed{seed}", summary, *(val if validation else []))
    facts = results_facts(read_sweep(Path("s.yaml")))
    assert [fact["name"] for fact in facts] == [f"s-seed{seed}" for seed in order]
    assert {fact["metric"] for fact in facts} == {metric}
