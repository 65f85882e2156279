"""The runs of a sweep as one SLURM job array: each element trains one run, and is requeued by itself."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from launch.slurm import search
from launch.slurm.submission.sbatch import Job
from launch.sweep.file.grid import Element, Sweep
from launch.sweep.results import is_finished
from launch.sweep.search import journal
from launch.sweep.standing import standing
from trainlib.config import SlurmConfig
from trainlib.errors import UserError
from trainlib.runs import RUNS

ELEMENTS = "elements"  # the file in a submission's folder that lists the elements' arguments


def common_slurm(sweep: Sweep) -> SlurmConfig:
    """Return the section `slurm` that all runs of a sweep share, as one array needs. UserError where they differ."""
    slurm = sweep.elements[0].config.slurm
    if any(element.config.slurm != slurm for element in sweep.elements):
        keys = [key for key in sweep.varied if key.split(".")[0] == "slurm"]
        raise UserError(
            f"{', '.join(keys)}: must be the same in all runs of a sweep on SLURM, which starts them as one array; "
            "make a sweep for each, or run this one with --local"
        )
    return slurm


def array_job(sweep: Sweep, elements: Sequence[Element]) -> Job:
    """Return the array job for some of a sweep's runs, with a new folder, as earlier submissions may still wait."""
    folder = _next_folder(RUNS / sweep.name)
    array = f"0-{len(elements) - 1}" + (f"%{sweep.throttle}" if sweep.throttle else "")
    return Job(sweep.name, folder, (f"@{folder / ELEMENTS}",), array)


def open_elements(sweep: Sweep, *, fresh: bool) -> list[Element]:
    """Return the runs that are still to be trained: not finished, and in a search neither failed nor out for good."""
    if sweep.search is not None and not fresh:
        now = standing(sweep)
        waiting = [number for number, is_final in enumerate(now.decided.final) if not is_final]
        numbers = sorted({*waiting, *(number for _, number in now.open)})
        left = [sweep.elements[n] for n in numbers if now.trials[n].why_failed is None]
        return [element for element in left if not is_finished(element)]
    return [element for element in sweep.elements if fresh or not is_finished(element)]


def begin_search(sweep: Sweep, *, fresh: bool) -> None:
    """Open the journal of a search, if the sweep is one. Raises UserError where it is that of another one."""
    if sweep.search is None:
        return
    folder = RUNS / sweep.name
    if fresh:
        journal.set_aside(folder)
    journal.require_same_search(folder, sweep.search.settings)


def write_search(folder: Path, sweep: Sweep) -> None:
    """Write the search that the elements in a submission's folder belong to, if the sweep is one."""
    if sweep.search is not None:
        search.write_search(folder / search.SEARCH, sweep)


def elements_text(elements: Sequence[Element]) -> str:
    """Return the file that the batch script reads: line k holds the arguments of element k, as shell words."""
    return "".join(f"{shlex.quote(str(RUNS / element.name / 'config.yaml'))}\n" for element in elements)


def _next_folder(sweep: Path) -> Path:
    number = 1
    while (folder := sweep / f"submission-{number}").exists():
        number += 1
    return folder
