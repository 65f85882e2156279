"""docs/other-tools.md: what other tools start trains, as far as they run here without a network."""

from __future__ import annotations

import functools
import os
import re
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ranks
import yaml
from paths import REPOSITORY
from soak import only_in_soak
from wandb_files import history

import trainlib.data
from launch.cli import cli
from trainlib.config import load_config, read_resolved
from trainlib.data.sources.arrays.synthetic import make_synthetic
from trainlib.runs.directory import RunDirectory
from trainlib.runs.files.json_records import read_lines

PAGE = (REPOSITORY / "docs/other-tools.md").read_text()
SCRIPTS = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
FILES = [yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)]
OPTUNA, WANDB, RAY = SCRIPTS
SWEEP, SKY = FILES
SAMPLED = {"optimizer.lr": 0.02, "train.batch_size": 64}


def validations(run: Path) -> list[dict[str, Any]]:
    return [row for row in read_lines(run / "metrics.jsonl") if row["split"] == "val"]


def execute(script: str) -> None:
    """A script, as `python script.py` would run it, on few drawings. The second trial of Optuna is pruned."""
    import optuna

    ranks.replace(trainlib.data, "make_synthetic", functools.partial(make_synthetic, 200, 50))
    ranks.replace(optuna.trial.Trial, "should_prune", lambda trial: trial.number == 1)
    exec(compile(script, "script.py", "exec"), {"__name__": "__main__"})


@only_in_soak
def test_optuna_samples_and_prunes(tmp_path: Path) -> None:
    """What it knows of a trial is what the trial's run has; a pruned one ends after its first validation."""
    import optuna

    assert ranks.run(execute, OPTUNA.replace("n_trials=4", "n_trials=2"), world_size=1, cwd=tmp_path) == [0]
    whole, pruned = optuna.load_study(storage=f"sqlite:///{tmp_path}/study.db", study_name="s").trials
    assert (whole.state.name, pruned.state.name) == ("COMPLETE", "PRUNED")
    runs = [RunDirectory(tmp_path / f"runs/optuna-{number}") for number in (0, 1)]
    assert whole.value == runs[0].summary()["best"]["value"]
    for trial, run, epochs in ((whole, runs[0], 3), (pruned, runs[1], 1)):
        config = read_resolved(run.config_file)
        assert {key: config.optimizer.args[key] for key in ("lr", "momentum")} == trial.params
        known = {row["epoch"]: row["accuracy"] for row in validations(run.path)}
        assert trial.intermediate_values == known
        assert len(known) == epochs


def work_as_agent(script: str) -> None:
    """The real agent of W&B, which starts the script. Its server, of which there is none here, asks for one run."""
    import wandb
    from wandb import wandb_agent
    from wandb.apis.public import sweeps

    Path(SWEEP["program"]).write_text(script)
    run = {"type": "run", "run_id": "abc123", "program": SWEEP["program"]}
    run["args"] = {key: {"value": value} for key, value in SAMPLED.items()}
    asked = iter([[run]])
    ranks.replace(wandb, "Api", SimpleNamespace)
    ranks.replace(sweeps, "_sweep_with_runs", lambda *_: {"config": yaml.safe_dump(SWEEP)})
    ranks.replace(sweeps, "_register_agent", lambda *_, **__: {"id": "agent"})
    ranks.replace(sweeps, "_agent_heartbeat", lambda *_: next(asked, []))
    ranks.replace(wandb_agent.Agent, "POLL_INTERVAL", 0.1)
    path = [str(Path(sys.executable).parent), os.environ["PATH"]]
    os.environ.update(WANDB_MODE="offline", PATH=os.pathsep.join(path), PYTHONPATH=str(REPOSITORY), WANDB_SILENT="true")
    wandb_agent.run_agent("you/project/sweep1", count=1)


@only_in_soak
def test_wandbs_agent_starts_the_script(tmp_path: Path) -> None:
    """With the values that the sweep has sampled; the agent's run gets each validation."""
    assert SWEEP["parameters"].keys() == SAMPLED.keys()
    script = WANDB.replace('fit("quickstart"', 'fit("quickstart", "data.limit=200", "train.epochs=2"')
    assert ranks.run(work_as_agent, script, world_size=1, cwd=tmp_path) == [0], ranks.console(tmp_path)
    run = tmp_path / "runs/wandb-abc123"
    config = read_resolved(run / "config.yaml")
    assert (config.optimizer.args["lr"], config.train.batch_size) == (0.02, 64)
    rows = [{"epoch": r["epoch"], "val/loss": r["loss"], "val/accuracy": r["accuracy"]} for r in validations(run)]
    assert len(rows) == 2
    assert [{name: logged[name] for name in rows[0]} for logged in history(tmp_path)] == rows


def test_the_words_that_others_start_are_taken() -> None:
    """Ray's script, SkyPilot's file and torchx's command: none of the three is installed here."""
    compile(RAY, "ray.py", "exec")
    words = re.search(r"subprocess.run\(\[(.*?), \*words\]", RAY)
    assert words is not None
    shown = [*re.findall(r'"([^"]*)"', words[1]), "optimizer.lr=0.01", "train.batch_size=64"]
    for command in (shown, shlex.split(SKY["run"])):
        assert command[:2] == ["launch", "run"]
        options = cli.commands["run"].make_context("run", command[2:]).params
        load_config(options["arguments"])
    torchx = next(line.split() for line in PAGE.splitlines() if line.startswith("    torchx run"))
    assert torchx[torchx.index("-m") + 1] == "trainlib.train"
    load_config(torchx[torchx.index("--") + 1 :])
