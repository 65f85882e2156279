"""Every command in the README and in docs/ does what it is shown to do.

A command is a line of an indented or fenced block that begins with one of PROGRAMS. One that trains does so on a few
drawings for two steps; one that looks at a run gets a finished one; what another test runs is only parsed here.
"""

from __future__ import annotations

import itertools
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ranks
from paths import PAGES, REPOSITORY
from PIL import Image
from shown_commands import Command, commands
from trained import checkpoint_of

from trainlib.config import load_config

# Begins of commands that are not run here: why, the test that runs them, and the word of that test that shows it.
EXCEPTIONS = {
    "launch wandb-sync": ("needs a W&B server", "tests/training/test_wandb.py", "wandb-sync"),
    "launch cache": ("removes what is kept on this machine", "tests/unit/test_cache_command.py", "cache"),
    "launch run resnet50_v2": ("trains for a minute", "tests/training/test_recipe_runs.py", "resnet50_v2"),
    "launch doctor": ("looks at the whole machine", "tests/unit/test_doctor.py", "doctor"),
    "launch labels": ("needs complete folds", "tests/unit/test_label_errors.py", "labels"),
    "launch report cv.yaml": ("needs runs of a sweep", "tests/unit/test_repeated_sweep.py", "report"),
    "launch find-lr": ("trains a hundred steps", "tests/unit/test_range_test.py", "find-lr"),
    "launch find-batch": ("measures for long", "tests/unit/test_batch_sizes.py", "find-batch"),
    "launch run quickstart mirror=": ("needs a bucket", "tests/faults/test_mirror.py", "mirror="),
    "launch verify": ("starts groups of processes", "tests/training/test_verify.py", "verify"),
}


COMMANDS = [command for page in PAGES for command in commands(page)]


def launch(words: list[str]) -> int:
    """The `launch` program, inside a process that has imported torch."""
    from launch.cli import main

    return main(words)


def succeeds(words: list[str], cwd: Path) -> None:
    codes = ranks.run(launch, words, world_size=1, cwd=cwd)
    assert codes == [0], ranks.console(cwd)


# What makes a command ready to run, and runs it: `words` are those behind `launch NAME`.


def trains(command: Command, words: list[str], cwd: Path) -> None:
    """Two steps of it. Several processes are only printed: test_launchers.py and test_multinode.py start them."""
    several = {"--processes", "--nodes"} & set(words)
    if several or "--dry-run" in words:
        succeeds(["run", *words, *([] if "--dry-run" in words else ["--dry-run"])], cwd)
        return
    succeeds(["run", *few_steps(words, cwd)], cwd)


def few_steps(words: list[str], cwd: Path) -> list[str]:
    """The same training over two small batches of few small pictures, with random weights, also in files."""
    kept = [word for word in words if not word.startswith(("train.epochs=", "train.steps="))]
    values = dict(word.split("=", 1) for word in kept if "=" in word)
    weights = cwd / values.get("model.weights", "none")
    if weights.suffix == ".pth":
        import timm
        import torch

        model = timm.create_model(values["model.name"].removeprefix("timm/"))
        torch.save(model.state_dict(), weights)
    else:
        kept.append("model.weights=null")
    data = load_config(parsed("run", kept)["arguments"]).data
    root = data.root if data.name in ("image_folder", "table") else "pictures"
    make_pictures(cwd / root)
    changes = [f"data.root={root}", "data.image_size=32", "data.limit=16"]
    if data.name == "table":
        write_table(cwd / str(data.table), cwd / root)
    else:
        changes.append("data.name=image_folder")
    return [*kept, *changes, "train.steps=2", "train.batch_size=8", "tracking.tensorboard=false"]


def parsed(name: str, words: Sequence[str]) -> dict[str, Any]:
    """What the command takes these words for; nothing is run."""
    from launch.cli import cli

    return cli.commands[name].make_context(name, list(words)).params


def make_pictures(root: Path) -> None:
    draw = np.random.default_rng(0).integers
    for split, name, index in itertools.product(("train", "test"), ("cats", "dogs"), range(12)):
        folder = root / split / name
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw(0, 256, (40, 40, 3), dtype=np.uint8)).save(folder / f"{index}.png")


def write_table(table: Path, root: Path) -> None:
    """The pictures with their folders for labels, of which the first of each folder has none."""
    pictures = [path.relative_to(root) for path in root.glob("train/*/*.png")]
    rows = [f"{path},{'' if path.stem == '0' else path.parent.name}" for path in pictures]
    table.write_text("\n".join(["path,label", *rows]))


def with_option(option: str) -> Callable[[Command, list[str], Path], None]:
    """Run it with one more option, which makes it say what it would do."""
    return lambda command, words, cwd: succeeds([command.words[1], *words, *({option} - set(words))], cwd)


def looks_at_data(command: Command, words: list[str], cwd: Path) -> None:
    make_pictures(cwd / "pictures")
    as_it_is(command, [*words, "data={name: image_folder, root: pictures, image_size: 32}"], cwd)


def sees_pictures(command: Command, words: list[str], cwd: Path) -> None:
    make_pictures(cwd / words[0])
    as_it_is(command, words, cwd)


def checks(command: Command, words: list[str], cwd: Path) -> None:
    for word in words:
        if word.startswith("data.root="):
            make_pictures(cwd / word.removeprefix("data.root="))
    as_it_is(command, words, cwd)


def as_it_is(command: Command, words: list[str], cwd: Path) -> None:
    succeeds([command.words[1], *words], cwd)


def predicts(command: Command, words: list[str], cwd: Path) -> None:
    for word in words[1:]:  # the pictures that it names are made: a file where the name has a suffix, else a folder
        if Path(word).suffix.lower() in (".jpg", ".jpeg", ".png"):
            (cwd / word).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (50, 40)).save(cwd / word)
        elif not word.startswith("-") and not word.isdigit():
            make_pictures(cwd / word)
    succeeds(["predict", *words], cwd)


def ends_a_run(command: Command, words: list[str], cwd: Path) -> None:
    """The run that it gets is over, and it says so; tests/unit/test_launch_cli.py ends runs that are under way."""
    codes = ranks.run(launch, [command.words[1], *words], world_size=1, cwd=cwd)
    assert codes == [2]
    assert f"{words[0]} is not running" in ranks.console(cwd)


AS_THEY_ARE = ("list", "status", "logs", "report", "eval", "export", "rm", "prune", "slurm-script")
RULES: dict[str, Callable[[Command, list[str], Path], None]] = {
    **dict.fromkeys(AS_THEY_ARE, as_it_is),
    "run": trains,
    "check": checks,
    "data": looks_at_data,
    **dict.fromkeys(("submit", "sweep"), with_option("--dry-run")),
    "init": sees_pictures,
    "predict": predicts,
    "stop": ends_a_run,
    "cancel": ends_a_run,
}
OF_A_RUN = ("rm", "prune", "status", "logs", "report", "eval", "export", "predict", "stop", "cancel")


@pytest.fixture
def place(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A working directory that has what the command names: finished runs, and files with the YAML shown before it."""
    command: Command = request.getfixturevalue("command")
    if command.words[0] == "launch" and command.words[1] in OF_A_RUN:
        trained: Path = request.getfixturevalue("trained")
        for word in command.words[2:]:
            name = word.removeprefix("runs/").split("/")[0]
            if re.fullmatch(r"[A-Za-z0-9][\w.-]*", name) and not (tmp_path / "runs" / name).exists():
                shutil.copytree(trained / "runs/run", tmp_path / "runs" / name)
    for option, word in itertools.pairwise(command.words):
        file = tmp_path / word.removeprefix("~/")
        if word.endswith((".yaml", ".yml")) and not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            site = (REPOSITORY / "slurm/sites/plain.yaml").read_text()  # docs/slurm.md: a site's file is a copy of it
            ours = REPOSITORY / word
            shown = ours.read_text() if ours.is_file() else command.yaml or "seed: 1\n"
            file.write_text(site if option == "--site" else shown)
    return tmp_path


LAUNCH = [command for command in COMMANDS if command.words[0] == "launch"]
# The README's are run in the quick tier, those of other pages that take long only looked at there.
LONG = [c for c in LAUNCH if c.page != "README.md" and c.words[1] in ("run", "eval", "export", "predict")]
LONG += [c for c in LAUNCH if c.page == "README.md" and c.words[-1] == "onnx"]
LONG = [c for c in LONG if c.expected_error is None]


@pytest.mark.parametrize("command", LONG, ids=str)
def test_the_words_of_a_command_are_taken(command: Command, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    found = parsed(command.words[1], command.words[2:])
    if command.words[1] == "run":
        load_config(found["arguments"])


@pytest.mark.parametrize(
    "command", [pytest.param(c, id=str(c), marks=pytest.mark.slow if c in LONG else ()) for c in LAUNCH]
)
def test_a_command_of_launch(command: Command, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    exception = next((e for begin, e in EXCEPTIONS.items() if shlex.join(command.words).startswith(begin)), None)
    if exception is not None:
        parsed(command.words[1], command.words[2:])
        _, file, word = exception
        assert f'"{word}' in (REPOSITORY / file).read_text(), f"{file} does not run it"
        return
    newest = checkpoint_of(place).name
    words = [re.sub(r"step-(\d+|…)", newest, word.replace("~/", f"{place}/")) for word in command.words[2:]]
    if command.expected_error is not None:
        assert ranks.run(launch, [command.words[1], *words], world_size=1, cwd=place) == [2]
        assert ranks.console(place).replace(str(place), "/home/you") == f"{command.expected_error}\n"
        return
    rule = RULES.get(command.words[1])
    assert rule is not None, f"{command}\nhas no rule: add to RULES in {Path(__file__).name} how it is run"
    rule(command, words, place)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.words[0] != "launch"], ids=str)
def test_a_command_of_another_program(command: Command, tmp_path: Path) -> None:
    """Taken by the program's own parser; what it names is there. tests/training/test_launchers.py and CI run them."""
    program, *words = command.words
    match program:
        case "make":
            subprocess.run(["make", "-n", *words], cwd=REPOSITORY, check=True, capture_output=True)
        case "torchrun":
            from torch.distributed.run import get_args_parser

            options = get_args_parser().parse_args(words)
            assert_script(options.training_script, options.training_script_args, options.module)
        case "accelerate":
            from accelerate.commands.launch import launch_command_parser

            assert words[0] == "launch"
            options = launch_command_parser().parse_args(words[1:])
            assert_script(options.training_script, options.training_script_args, options.module)
        case "python":
            is_module = words[0] == "-m"
            assert_script(words[is_module], words[1 + is_module :], is_module)


def assert_script(script: str, arguments: list[str], is_module: bool) -> None:
    """A program of this repository with arguments that it takes, or the script of docs/python.md."""
    if script == "trainlib.train":
        load_config(arguments)
    elif is_module:
        assert script == "pytest"
        files = [word for word in arguments if word.startswith("tests/")]
        assert files
        assert all((REPOSITORY / file.split("::")[0]).is_file() for file in files), arguments
    else:
        assert script == "train.py" or (REPOSITORY / script).is_file(), f"there is no {script}"


def test_commands_are_found() -> None:
    """Indented, fenced, with a prompt, with variables, continued, with a comment; and what is no command is not."""
    found = [shlex.join(command.words) for command in COMMANDS]
    assert "launch list" in found
    assert "make run" in found
    assert [c.expected_error is not None for c in COMMANDS if "optimizer.lrr=3" in c.words] == [True]
    page = REPOSITORY / "docs" / "reliability.md"
    text = "```\n$ SOAK=1 python -m pytest \\\n  tests/x.py   # long\nlaunched\n```\n\n    launch stop a\nlaunch no\n"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "read_text", lambda path: text)
        words = [(command.line, command.words) for command in commands(page)]
    assert words == [(2, ("python", "-m", "pytest", "tests/x.py")), (7, ("launch", "stop", "a"))]
