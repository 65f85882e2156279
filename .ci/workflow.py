"""Run the `run:` lines of a job in .github/workflows on this machine: `workflow.py JOB [KEY=VALUE ...]`.

KEY=VALUE chooses a value of the job's matrix; the defaults are `python=3.11 torch=newest`. Steps that use an action
(checkout, set-up of Python) are left out, and so are those whose `if:` names another value. The interpreter is the one
in .venv, whatever version the matrix asks for.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).parent.parent
DEFAULTS = {"python": "3.11", "torch": "newest"}


def find_job(name: str) -> dict[str, Any]:
    """Return the job of this name, from whichever workflow has it."""
    for file in sorted((REPOSITORY / ".github/workflows").glob("*.yml")):
        job = yaml.safe_load(file.read_text())["jobs"].get(name)
        if job is not None:
            return dict(job)
    raise SystemExit(f"error: no workflow has a job {name!r}")


def run_lines(job: dict[str, Any], values: dict[str, str]) -> list[tuple[str, str]]:
    """Return name and shell lines of each step that runs something with these values of the matrix."""
    chosen = []
    for step in job["steps"]:
        condition = re.fullmatch(r"matrix\.(\w+) == '(.*)'", step.get("if", ""))
        if "run" not in step or (condition and values[condition[1]] != condition[2]):
            continue
        lines = re.sub(r"\$\{\{ matrix\.(\w+) \}\}", lambda match: values[match[1]], step["run"])
        chosen.append((step.get("name", lines), lines))
    return chosen


def main(arguments: list[str]) -> int:
    """Run the steps in order, as GitHub does, and stop at the first that fails; return its exit code."""
    job, *pairs = arguments
    for name, lines in run_lines(find_job(job), DEFAULTS | dict(pair.split("=", 1) for pair in pairs)):
        print(f"== {name}", flush=True)
        code = subprocess.run(["bash", "-eo", "pipefail", "-c", lines], cwd=REPOSITORY).returncode
        if code:
            print(f"== failed with exit code {code}: {name}")
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
