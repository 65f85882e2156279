"""Run directories: what is in them and who may write to it, shared by the trainer and the launcher. Never torch."""

from pathlib import Path

RUNS = Path("runs")  # the folder of all run directories, in the current folder
