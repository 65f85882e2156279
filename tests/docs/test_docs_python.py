"""docs/python.md: every script of the page trains, and every block of it is run."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import ranks
from paths import REPOSITORY
from tiers import slow_but

import trainlib.data
from trainlib.config import read_resolved
from trainlib.data.sources.arrays.synthetic import make_synthetic
from trainlib.runs.directory import RunDirectory

PAGE = (REPOSITORY / "docs/python.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
SCRIPTS = {match[1]: block for block in BLOCKS if (match := re.search(r'"name": "([\w-]+)"', block))}
AFTER = {"small-net": next(block for block in BLOCKS if "load_model" in block)}  # goes on where that script ends


def execute(script: str) -> None:
    """A script, as `python script.py` would run it; a tenth of the drawings is enough to see that it does."""
    ranks.replace(trainlib.data, "make_synthetic", functools.partial(make_synthetic, 800, 200))
    exec(compile(script, "script.py", "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("name", slow_but(["stripes"], list(SCRIPTS)))
def test_every_script_of_the_page_trains(name: str, tmp_path: Path) -> None:
    """As it stands, alone; and where it has a class or function of its own, the run says so."""
    assert len(SCRIPTS[name].splitlines()) < 35, "about 20 lines each, and the run"
    assert ranks.run(execute, SCRIPTS[name] + AFTER.get(name, ""), world_size=1, cwd=tmp_path) == [0]
    run = RunDirectory(tmp_path / "runs" / name)
    assert run.summary()["status"] == "completed"
    config = read_resolved(run.config_file)
    custom = {"small-net": ("model", "custom:SmallNet"), "focal": ("loss", "custom:focal")}
    if name in custom:
        section, expected = custom[name]
        assert getattr(config, section).name == expected
    if name in ("stripes", "rings"):
        assert re.fullmatch("custom:[0-9a-f]{12}", config.data.name)
        assert run.summary()["test"]["accuracy"] > 0.9, "these are easy"


def test_all_blocks_of_the_page_are_run() -> None:
    assert set(SCRIPTS) == {"from-python", "small-net", "stripes", "rings", "focal", "salt", "with-hook"}
    assert len(BLOCKS) == len(SCRIPTS) + len(AFTER)


@pytest.mark.soak
def test_torchrun_starts_a_script(tmp_path: Path) -> None:
    """The page's own script under the real launcher, as two ranks."""
    (tmp_path / "train.py").write_text(SCRIPTS["stripes"])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train.py"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test accuracy") == 1
    assert RunDirectory(tmp_path / "runs/stripes").summary()["world_size"] == 2
