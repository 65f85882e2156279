"""Run directories: what is in them and who may write to it, shared by the trainer and the launcher. Never torch."""

import os
from pathlib import Path

RUNS_VARIABLE = "TRAINLAUNCH_RUNS"
RUNS = Path(os.environ.get(RUNS_VARIABLE) or "runs")  # the folder of all run directories; `launch --runs` sets both
