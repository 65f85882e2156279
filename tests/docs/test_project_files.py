"""What stands around the code: the lock file, the hooks before a commit and the workflows of GitHub."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from needs import need
from packaging.requirements import Requirement
from packaging.version import Version
from paths import REPOSITORY

LOCK = (REPOSITORY / "requirements-dev.lock").read_text()
WORKFLOWS = sorted((REPOSITORY / ".github/workflows").glob("*.yml"))


def required() -> list[Requirement]:
    """Return what pyproject.toml asks for, the extras of development and export included."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    names = [*project["dependencies"], *extras["dev"], *extras["export"]]
    return [Requirement(name) for name in names if not name.startswith("trainlaunch")]


@pytest.mark.parametrize("requirement", required(), ids=str)
def test_the_lock_file_has_an_allowed_version_of_each_requirement(requirement: Requirement) -> None:
    locked = re.search(rf"(?mi)^{re.escape(requirement.name)}==(\S+)", LOCK)
    assert locked, f"{requirement.name} is not in requirements-dev.lock: make lock"
    assert Version(locked[1]) in requirement.specifier, "make lock"


def test_the_lock_file_holds_versions_only() -> None:
    """No index, no address, no path: a version, and for some platforms a marker."""
    lines = [line for line in LOCK.splitlines() if not line.startswith("#")]
    assert len(lines) > 50
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.+!-]+( ; [\w .<>=!'()]+)?", line)] == []


def test_hooks_before_a_commit_are_those_of_make_lint() -> None:
    hooks = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    lint = subprocess.run(["make", "-n", "lint"], cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout
    programs = {hook["entry"].split()[0] for hook in hooks} - {"shellcheck"}
    assert programs <= set(re.findall(r"\.venv/bin/\S+", lint)), lint


def steps(workflow: Path) -> list[dict[str, Any]]:
    """Return every step of every job."""
    jobs = yaml.safe_load(workflow.read_text())["jobs"]
    return [step for job in jobs.values() for step in job["steps"]]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_shell_lines_of_a_workflow_pass_shellcheck(workflow: Path, tmp_path: Path) -> None:
    need("shellcheck")
    scripts = [step["run"] for step in steps(workflow) if "run" in step]
    assert scripts
    for number, script in enumerate(scripts):
        file = tmp_path / f"{number}.sh"
        file.write_text("#!/usr/bin/env bash\nset -eo pipefail\n" + re.sub(r"\$\{\{.*?\}\}", "value", script) + "\n")
        checked = subprocess.run(["shellcheck", str(file)], capture_output=True, text=True)
        assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_what_a_workflow_calls_is_there(workflow: Path) -> None:
    """Targets of the Makefile and files; actions are named with a version."""
    for step in steps(workflow):
        assert "uses" not in step or re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|release/v\d+)", step["uses"])
        for line in step.get("run", "").splitlines():
            words = line.split()
            if words[0] == "make":
                subprocess.run(["make", "-n", *words[1:]], cwd=REPOSITORY, check=True, capture_output=True)
            if words[0].startswith(".ci/"):
                assert shutil.which(REPOSITORY / words[0])


def test_the_oldest_torch_of_the_workflow_is_the_oldest_allowed() -> None:
    text = (REPOSITORY / ".github/workflows/tests.yml").read_text()
    oldest = dict(re.findall(r"'(torch|torchvision)==([\d.]+)\.\*'", text))
    allowed = {r.name: str(r.specifier).removeprefix(">=") for r in required() if r.name in ("torch", "torchvision")}
    assert oldest == allowed


def test_steps_of_a_workflow_run_here() -> None:
    """`.ci/workflow.py` finds the steps of a job for one combination of the matrix, with its values filled in."""
    specification = importlib.util.spec_from_file_location("workflow", REPOSITORY / ".ci/workflow.py")
    assert specification
    assert specification.loader
    workflow = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(workflow)
    job = workflow.find_job("test")
    newest = [lines for _, lines in workflow.run_lines(job, {"python": "3.12", "torch": "newest"})]
    oldest = [lines for _, lines in workflow.run_lines(job, {"python": "3.12", "torch": "oldest"})]
    assert len(oldest) == len(newest) + 1
    assert ".venv/bin/mypy --python-version 3.12" in newest
    assert not [lines for lines in oldest if "${{" in lines]
