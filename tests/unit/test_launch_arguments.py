"""The words of a command line mean the same to `launch run` and to the training program."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from paths import REPOSITORY

from launch.cli import main as launch
from trainlib.config import mark_bare_resume
from trainlib.train import main as train

PROGRAMS = {"launch run": lambda words: launch(["run", *words]), "trainlib.train": train}


def run(program: str, words: str) -> int:
    """The exit code, given back or raised."""
    try:
        return PROGRAMS[program](words.split())
    except SystemExit as end:
        return int(end.code or 0)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("x.yaml --resume", "x.yaml --resume="),
        ("--resume x.yaml", "--resume= x.yaml"),
        ("--resume dir/x.yml", "--resume= dir/x.yml"),
        ("--resume quickstart", "--resume= quickstart"),
        ("x.yaml --resume train.epochs=30", "x.yaml --resume= train.epochs=30"),
        ("x.yaml --resume data.root=/images", "x.yaml --resume= data.root=/images"),
        ("x.yaml --resume --dry-run", "x.yaml --resume= --dry-run"),
        ("x.yaml --resume step-00000123", "x.yaml --resume step-00000123"),
        ("--resume runs/x/checkpoints/step-00000123 x.yaml", "--resume runs/x/checkpoints/step-00000123 x.yaml"),
        ("--resume runs/lr=0.1/checkpoints/step-00000123 x.yaml",) * 2,
        ("--resume=copy x.yaml", "--resume=copy x.yaml"),
        ("x.yaml --fresh", "x.yaml --fresh"),
    ],
)
def test_resume_takes_only_a_checkpoint(words: str, expected: str) -> None:
    assert mark_bare_resume(words.split()) == expected.split()


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("quickstart --fresh data.limit=0", "data.limit: got 0"),
        ("--fresh quickstart data.limit=0", "data.limit: got 0"),
        ("data.limit=0 --resume quickstart", "data.limit: got 0"),
        ("--resume train.epochs=0 quickstart", "train.epochs: got 0"),
        ("quickstart --resume step-00000003 train.epochs=0", "train.epochs: got 0"),
        ("quickstart --fresh --resume", "--fresh"),
        ("quickstart --resume step-00000003 --fresh", "--resume"),
        ("quickstart --fre", "--fre"),
        ("--fresh", "CONFIG"),
    ],
)
@pytest.mark.usefixtures("workdir")
def test_both_programs_find_the_same_mistake(
    program: str, words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(program, words) == 2
    assert message in capsys.readouterr().err
    assert not Path("runs").exists()


@pytest.mark.parametrize("name", ["2024", "null", "1e-3", "yes", "a: b", "[x]", 'say "x"', "no\\such", "naïve"])
@pytest.mark.usefixtures("workdir")
def test_a_name_is_text_whatever_it_looks_like(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A good name reaches the training program as the configuration reads it; a bad one is refused by its own rule."""
    from trainlib.config import load_config

    code = launch(["run", "quickstart", "--dry-run", "--name", name])
    captured = capsys.readouterr()
    if name in {"2024", "null", "1e-3", "yes"}:
        words = shlex.split(captured.out)
        assert code == 0
        assert load_config(words[words.index("trainlib.train") + 1 :]).name == name
    else:
        assert code == 2
        assert captured.err.startswith("error: name: ")
        assert "letters, digits" in captured.err


def test_the_configuration_is_imported_only_where_resume_is_asked_for() -> None:
    program = (
        "import sys; from launch.cli import main\n"
        "main(['run', '--help'])\n"
        "before = 'trainlib.config' in sys.modules\n"
        "main(['run', '--resume', '--help'])\n"
        "print(before, 'trainlib.config' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert result.stdout.endswith("\nFalse True\n")
