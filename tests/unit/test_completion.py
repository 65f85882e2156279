"""What a shell completes, and the schema with which editors do."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from paths import REPOSITORY

from launch.cli import cli
from launch.cli.command_line.completion import complete_config, complete_run
from trainlib.config import shipped_configs
from trainlib.config.docs.descriptions import DESCRIPTIONS
from trainlib.config.docs.json_schema import FILE, config_schema, schema_text
from trainlib.config.load import configs_folder


def completed(complete: Any, begun: str) -> list[str]:
    command = cli.commands["run"]
    return [item.value for item in complete(click.Context(command), command.params[0], begun)]


@pytest.mark.parametrize(
    ("begun", "expected"),
    [
        ("quick", ["quickstart"]),
        ("train.ep", ["train.epochs="]),
        ("optimizer.l", ["optimizer.layer_decay=", "optimizer.lr="]),
        ("se", ["seed="]),
        ("mi", ["mine.yaml", "mirror="]),
        ("more/", ["more/deep/", "more/other.yml"]),
        ("nothing/", []),
    ],
)
def test_configurations_files_and_keys_are_completed(begun: str, expected: list[str], workdir: Path) -> None:
    (workdir / "more/deep").mkdir(parents=True)
    for name in ("mine.yaml", "more/other.yml", "more/photo.jpg", "mine.txt"):
        (workdir / name).touch()
    assert completed(complete_config, begun) == expected


def test_runs_are_completed(workdir: Path) -> None:
    for name in ("first", "fine", "second"):
        (workdir / "runs" / name).mkdir(parents=True)
    assert completed(complete_run, "fi") == ["fine", "first"]


def test_every_command_that_takes_a_run_or_a_configuration_completes_it() -> None:
    named = {"run": "RUN", "names": "RUN...", "model": "RUN|CHECKPOINT", "arguments": "CONFIG... [key=value ...]"}
    for name, command in cli.commands.items():
        for parameter in command.params:
            if (
                isinstance(parameter, click.Argument)
                and parameter.make_metavar(click.Context(command)) in named.values()
            ):
                assert parameter._custom_shell_complete is not None, name


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_scripts_of_the_shells_are_right(shell: str, tmp_path: Path) -> None:
    environment = {"_LAUNCH_COMPLETE": f"{shell}_source", "PATH": "/usr/bin:/bin", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-m", "launch"], env=environment, capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert "_LAUNCH_COMPLETE" in done.stdout
    assert shell != "bash" or "compopt -o nospace" in done.stdout
    if shutil.which(shell):
        script = tmp_path / "script"
        script.write_text(done.stdout)
        subprocess.run([shell, "-n", str(script)], check=True)


def test_the_schema_is_up_to_date() -> None:
    assert (configs_folder() / FILE).read_text() == schema_text(), "`make docs` brings it up to date"


def test_the_schema_knows_every_key_and_what_it_means() -> None:
    schema = config_schema()
    assert "required" not in schema
    assert set(schema["properties"]) >= {"name", "seed", "data", "model", "train"}
    assert schema["additionalProperties"] is False
    assert schema["properties"]["seed"]["description"] == DESCRIPTIONS["seed"].meaning
    assert schema["$defs"]["TrainConfig"]["properties"]["epochs"]["description"] == DESCRIPTIONS["train.epochs"].meaning
    assert schema["$defs"]["DataConfig"]["properties"]["name"]["enum"][:2] == ["cifar10", "image_folder"]
    for name, section in schema["$defs"].items():
        assert "additionalProperties" in section, name


@pytest.mark.parametrize("file", [*shipped_configs().values()], ids=lambda file: file.stem)
def test_a_shipped_configuration_names_the_schema_and_fits_it(file: Path) -> None:
    schema_file = f"../{FILE}" if file.parent.name == "recipes" else FILE
    first = file.read_text().splitlines()[0]
    assert first == f"# yaml-language-server: $schema={schema_file}"
    schema = json.loads((file.parent / schema_file).read_text())
    assert set(yaml.safe_load(file.read_text())) <= set(schema["properties"])
