"""Print a table of launches, copies and waits of a training step: `python tests/fakegpu/launches.py [PART OF A NAME]`.

It needs a CUDA build of torch and g++, and no GPU (see README.md).
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "support")]

import build_stand_in  # noqa: E402
from gpu_ranks import Gpus  # noqa: E402
from steps import LOOPS, table_cases  # noqa: E402


def main(part: str = "") -> None:
    """Count the steps of all cases whose name has this part, and print the table."""
    site = build_stand_in.installed_torch()
    if site is None:
        sys.exit("needs a CUDA build of torch, as PyPI has it for Linux")
    names = [name for name in table_cases() if part in name]
    gpus = Gpus(build_stand_in.build(site))
    print(f"| model | optimizer | precision | {' | '.join(LOOPS)} |")
    print("|---|---|---|" + "---|" * len(LOOPS))
    for name in names:
        with tempfile.TemporaryDirectory() as folder:  # a process for each: its memory is the host's
            output, cwd = Path(folder) / "counts.json", Path(folder)
            codes = gpus.run("steps:count", str(output), [name], list(LOOPS), world_size=1, cwd=cwd, emulate=False)
            if codes != [0]:
                sys.exit("".join(path.read_text() for path in sorted(cwd.glob("*.txt"))))
            by_loop = json.loads(output.read_text())[name]
        print(f"| {name} | {' | '.join(_cell(by_loop[loop]) for loop in LOOPS)} |", flush=True)
    gpus.close()


def _cell(counts: Mapping[str, float] | None) -> str:
    """Return `launches / copies / waits`."""
    if counts is None:
        return ""
    copies = sum(number for what, number in counts.items() if what.startswith("copy"))
    return " / ".join(f"{number:g}" for number in (counts["launch"] + counts["graph"], copies, counts["wait"]))


if __name__ == "__main__":
    main(*sys.argv[1:])
