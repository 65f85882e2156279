"""The command `launch sweep`."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from launch.cli.command_line.arguments import WholeNumber, own_code, refuse_fresh_resume
from launch.cli.command_line.start_page import tell_next
from launch.cli.slurm import prepare
from launch.cli.sweeps.out_of_fold import collect, repeated_facts, show_repeats
from launch.local.start.command import RESUME_LATEST, training_arguments
from trainlib.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_USER_ERROR, UserError

if TYPE_CHECKING:
    from launch.sweep.file.grid import Element, Sweep
    from launch.sweep.shares import Shares


MOST_IN_A_LINE = 4  # runs


@dataclass(frozen=True)
class _Asked:
    """The options that say where and how the runs train; those behind `options` are for SLURM alone."""

    file: str
    local: bool
    parallel: int | None
    processes: int | None
    fresh: bool
    dry_run: bool
    throttle: int | None
    options: tuple[str, ...]
    site: str | None
    debug: bool
    wait: bool


@click.command()
@click.argument("file", metavar="SWEEP.yaml")
@click.argument("overrides", nargs=-1, metavar="[key=value ...]")
@own_code
@click.option("--local", is_flag=True, help="Run them here, one after another.")
@click.option("--parallel", type=WholeNumber(min=1), metavar="N", help="With --local: so many at a time.")
@click.option("--processes", type=WholeNumber(min=1), metavar="N", help="With --local: as for launch run.")
@click.option("--throttle", type=WholeNumber(min=1), metavar="N", help="At most so many at the same time on SLURM.")
@click.option("--sbatch", "options", multiple=True, metavar="KEY=VALUE", help="Anything else that sbatch takes.")
@click.option("--site", metavar="NAME|FILE", envvar="TRAINLAUNCH_SITE", help="A preset of what this cluster wants.")
@click.option("--fresh", is_flag=True, help="Begin all runs again; earlier ones are kept aside.")
@click.option("--resume", is_flag=True, help="Go on even if the config changed where that is harmless.")
@click.option("--debug", is_flag=True, help="Have the jobs say more: of the script, NCCL and torch.distributed.")
@click.option("--wait", is_flag=True, help="Follow the jobs to their end, and show the results.")
@click.option("--results", is_flag=True, help="Only show the results so far, the best first.")
@click.option("--json", "as_json", is_flag=True, help="With --results: one JSON object a line.")
@click.option("--dry-run", is_flag=True, help="Only print what would run.")
def sweep(
    file: str,
    overrides: tuple[str, ...],
    code: tuple[str, ...],
    resume: bool,
    results: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Train many runs from one file, on SLURM or here.

    SWEEP.yaml is a file, or the name of a shipped sweep, like lr_and_seed. It holds a grid, a list, or a space that
    trials are sampled from, which are stopped early where others are better. The runs are a SLURM job array, or run
    here with --local. Every configuration is checked before the first run starts.
    Given again, the command leaves out what is finished or in the queue, and continues the rest.
    """
    from launch.sweep.file.grid import read_sweep
    from trainlib.runs.own_code.sources import read_named

    asked = _Asked(file, **options)
    digests = read_named(code).digests or None
    latest = RESUME_LATEST if resume else None
    refuse_fresh_resume(asked.fresh, latest)
    if not asked.local and (asked.parallel or asked.processes):
        raise UserError("--parallel and --processes: only with --local; on SLURM: --throttle, slurm.processes_per_node")
    plan = read_sweep(Path(file), overrides, digests)
    if plan.search and plan.search.sampler == "tpe" and not (asked.local or results):
        raise UserError("sampler: got tpe, which samples one trial after the other: add --local, or take random")
    if asked.site and not asked.local and (of_site := _of_site(asked.site, plan)):
        plan = read_sweep(Path(file), [*overrides, *of_site], digests)
    if as_json and not results:
        raise UserError("--json: shows results as JSON, and needs --results")
    if results:
        _show_results(plan, as_json=as_json)
        return EXIT_OK
    flags = training_arguments([], fresh=asked.fresh, resume=latest, code=code)
    return _search_here(plan, flags, asked) if plan.search and asked.local else _train_all(plan, flags, asked)


def _train_all(plan: Sweep, flags: Sequence[str], asked: _Asked) -> int:
    """Train every run of a sweep that is not finished to its end; return the exit code."""
    from launch.slurm.submission.array import open_elements

    elements = open_elements(plan, fresh=asked.fresh)
    for name, job_id in _in_queue(elements).items():
        click.echo(f"{name} is in the queue already: job {job_id}", err=True)
        elements = [element for element in elements if element.name != name]
    if not elements:
        click.echo(f"nothing to start: all {len(plan.elements)} runs are finished or in the queue", err=True)
        _show_results(plan)
        return EXIT_OK
    exit_code = (_run_here if asked.local else _submit)(plan, elements, flags, asked)
    if (asked.local or asked.wait) and not asked.dry_run and exit_code != EXIT_INTERRUPTED:
        if plan.repeated:
            collect(plan)
        _show_results(plan)
        tell_next(shlex.join(["launch", "report", *(element.name for element in plan.elements[:MOST_IN_A_LINE])]))
    return exit_code


def _of_site(site: str, plan: Sweep) -> list[str]:
    """Return overrides with the partition and time of the site, where the runs name none."""
    from launch.slurm.submission import sites

    return sites.overrides(sites.load_site(site), plan.elements[0].config.slurm)


def _show_results(plan: Sweep, *, as_json: bool = False) -> None:
    from launch.sweep.results import best_command, importance_text, require_same_values, results_facts, results_table
    from trainlib.runs.files.json_records import to_json
    from trainlib.runs.terminal.tables import show

    require_same_values(plan)
    if as_json:
        facts = [*results_facts(plan), *(repeated_facts(plan) if plan.repeated else [])]
        show("\n".join(map(to_json, facts)))
        return
    show(results_table(plan))
    if plan.repeated:
        show_repeats(plan)
    if (text := importance_text(plan)) is not None:
        click.echo(f"importance, from 0 to 1: {text}", err=True)
    if (command := best_command(plan)) is not None:
        click.echo(f"best: {command}", err=True)


def _run_here(plan: Sweep, elements: Sequence[Element], flags: Sequence[str], asked: _Asked) -> int:
    from launch.sweep.local import run_here
    from trainlib.runs import RUNS

    if asked.dry_run:
        return _tell_commands(elements, flags, asked.processes)
    shares, parallel = _shares(plan, asked), asked.parallel or 1
    with _undone_on_failure([RUNS / element.name for element in elements]):
        _prepare(elements, flags)
    return run_here(elements, shares, parallel, RUNS / plan.name / "output" if parallel > 1 else None)


def _search_here(plan: Sweep, flags: Sequence[str], asked: _Asked) -> int:
    """Search, and show the trials and the best one; return the exit code."""
    from launch.sweep.file.grid import with_samples
    from launch.sweep.tuner import search_here
    from trainlib.runs import RUNS

    if asked.dry_run:
        return _tell_commands(plan.elements, flags, asked.processes)

    def prepare_all(elements: Sequence[Element]) -> int:
        try:
            with _undone_on_failure([RUNS / element.name for element in elements]):
                _prepare(elements, flags)
        except click.exceptions.Exit as refused:
            return refused.exit_code
        return EXIT_OK

    exit_code = search_here(plan, asked.parallel or 1, _shares(plan, asked), prepare_all, fresh=asked.fresh)
    if exit_code not in (EXIT_INTERRUPTED, EXIT_USER_ERROR):
        _show_results(with_samples(plan))
        tell_next(shlex.join(["launch", "report", asked.file]))
    return exit_code


def _tell_commands(elements: Sequence[Element], flags: Sequence[str], processes: int | None) -> int:
    """Print the command of each run; return the exit code."""
    more = ["--processes", str(processes)] if processes else []
    for element in elements:
        click.echo(shlex.join(["launch", "run", *element.arguments, *flags, *more]))
    return EXIT_OK


def _shares(plan: Sweep, asked: _Asked) -> Shares:
    """Return how this machine is shared out among the runs that train at the same time."""
    from launch.local.start.devices import gpus_for
    from launch.sweep.shares import Shares, visible_names
    from trainlib.runs.machine.limits import usable_cores

    devices = {element.config.train.device for element in plan.elements}
    gpus = min(gpus_for(device) for device in devices or {"auto"})
    return Shares(asked.parallel or 1, asked.processes, visible_names(gpus), usable_cores(physical=True))


def _submit(plan: Sweep, elements: Sequence[Element], flags: Sequence[str], asked: _Asked) -> int:
    """Queue the elements as one array; its job id alone goes to standard output."""
    from launch.slurm import queue
    from launch.slurm.options import parse_options
    from launch.slurm.submission import array, sbatch, sites, submit
    from launch.slurm.submission.snapshot import take_snapshot
    from trainlib.runs import RUNS

    plan = replace(plan, throttle=asked.throttle or plan.throttle)
    slurm = array.common_slurm(plan)
    known = submit.known_options()
    options, preset = parse_options(asked.options, known), sites.load_site(asked.site, known)
    job = array.array_job(plan, elements)
    command = sbatch.sbatch_command(
        job, slurm, preset, options=options, python=sys.executable, debug=asked.debug, inherited=os.environ
    )
    lines = array.elements_text(elements)
    if asked.dry_run:
        script = sites.shipped_files() / "train.sbatch"
        click.echo(f"{sbatch.call_text(command)}\n\n# {job.directory / array.ELEMENTS}\n{lines}")
        click.echo(f"# {script}\n{script.read_text()}", nl=False)
        return EXIT_OK
    if shutil.which("sbatch") is None:
        raise UserError(
            "no sbatch on this machine: submit on a login node of the cluster, or run them here with --local"
        )
    submit.check_limits(slurm, queue.partitions(), {**preset.options, **options})
    with _undone_on_failure([job.directory.parent, job.directory, *(RUNS / element.name for element in elements)]):
        array.begin_search(plan, fresh=asked.fresh)
        _prepare(elements, flags)
        (job.directory / "logs").mkdir(parents=True)
        array.write_search(job.directory, plan)
        (job.directory / array.ELEMENTS).write_text(lines)
        take_snapshot(job.directory)
        job_id = submit.call_sbatch(command)
        for index, element in enumerate(elements):
            submit.record_submission(RUNS / element.name, job_id, command, index)
    click.echo(
        f"{plan.name} is job array {job_id} of {len(elements)} runs; launch list tells how far they are", err=True
    )
    click.echo(job_id)
    return _wait(job_id, elements) if asked.wait else EXIT_OK


def _in_queue(elements: Sequence[Element]) -> dict[str, str]:
    """Return the job id of each element that waits or runs already, by name; none where SLURM does not answer."""
    from launch.slurm.queue import QueueError, job_states
    from trainlib.runs import RUNS
    from trainlib.runs.records.jobs import job_lines, open_jobs

    jobs = {element.name: open_jobs(job_lines(RUNS / element.name)) for element in elements}
    try:
        states = job_states([job_id for ids in jobs.values() for job_id in ids])
    except QueueError:
        return {}
    active = {job_id for job_id, state in states.items() if state.active}
    return {name: ids[-1] for name, all_ids in jobs.items() if (ids := [i for i in all_ids if i in active])}


def _prepare(elements: Sequence[Element], flags: Sequence[str]) -> None:
    """Make each run's directory, or prepare to continue the run in it; end the command where that is refused."""
    for element in elements:
        prepare([*element.arguments, *flags], element.config)


@contextmanager
def _undone_on_failure(directories: Sequence[Path]) -> Iterator[None]:
    """Undo everything that the block did to these directories if it fails."""
    from launch.slurm.submission.undo import undone_on_failure

    with ExitStack() as stack:
        for directory in directories:
            stack.enter_context(undone_on_failure(directory))
        yield


def _wait(job_id: str, elements: Sequence[Element]) -> int:
    """Follow the elements, one after another, to the end of the last; return the exit code of the sweep."""
    from launch.slurm.follow import wait_for
    from launch.sweep.local import report
    from trainlib.runs import RUNS

    codes = {}
    try:
        for index, element in enumerate(elements):
            job = f"{job_id}_{index}"
            codes[element.name] = wait_for(job, RUNS / element.name, lambda text: click.echo(text, err=True))
    except KeyboardInterrupt:
        click.echo(f"\njob array {job_id} stays in the queue: launch list, scancel {job_id}", err=True)
        return EXIT_INTERRUPTED
    return report(codes)
