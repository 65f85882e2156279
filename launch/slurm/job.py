"""The program that a SLURM job runs before and after training: `python -m launch.slurm.job begin|end ...`.

The batch script train.sbatch calls it. `begin` validates the run's configuration, records the start, and prints the
values that the batch script needs as assignments of bash. `end` finds out why the ranks ended, records it, requeues the
job where that makes sense, and exits with the code that the batch job is to have. Neither imports torch.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from launch.slurm import queue
from launch.slurm.ending.closing import closing_words, end_record, is_dead, put_on_hold, report_orphaned_job, requeue
from launch.slurm.ending.evidence import gather
from launch.slurm.ending.requeue import decide_requeue
from launch.slurm.head import free_ports, node_names
from launch.slurm.queue import QueueError
from launch.slurm.search import of_trial, one_at_a_time, read_search, search_of, settle
from trainlib.config import Config, SlurmConfig, load_config
from trainlib.errors import EXIT_FAILURE, EXIT_USER_ERROR, TrainlaunchError, UserError, not_permitted
from trainlib.runs import RUNS
from trainlib.runs.attempt.owner import stop_token_of
from trainlib.runs.attempt.secret import make_secret
from trainlib.runs.attempt.stop_request import is_meant_for, read_stop_file
from trainlib.runs.files.run_files import RunFiles
from trainlib.runs.machine.launch_variables import STOP_AT
from trainlib.runs.records import failure_record, jobs
from trainlib.runs.records.jobs import JobStart, job_lines
from trainlib.runs.records.reasons import EndCode
from trainlib.runs.terminal.printable import print_error

NUM_PORTS = 3  # ports to try, as one may be taken between the probe and its use
_RESUME = "--resume"  # the one option of `launch run` that means the same at every restart
_CPUS_OF_NODES = re.compile(r"(\d+)(?:\(x\d+\))?")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m launch.slurm.job", allow_abbrev=False)
    verbs = parser.add_subparsers(dest="verb", required=True)
    begin_parser = verbs.add_parser("begin")
    begin_parser.add_argument("arguments", nargs=argparse.REMAINDER)
    end_parser = verbs.add_parser("end")
    end_parser.add_argument("--run", type=Path, required=True)
    end_parser.add_argument("--code", type=int, required=True, help="of srun")
    end_parser.add_argument("--max-failures", type=int, required=True)
    end_parser.add_argument("--signal-seconds", type=int, required=True)
    end_parser.add_argument("--fewest-nodes", type=int, required=True, help="that it can go on with")
    end_parser.add_argument("--search", type=Path, help="of which the run is a trial")
    end_parser.add_argument("--signal", default="", help="that the batch shell got")
    end_parser.add_argument("--srun-log", type=Path, required=True, help="what srun itself said")
    end_parser.add_argument("--slurmstepd", type=int, required=True, help="the daemon that serves the batch script")
    options = parser.parse_args(arguments)
    try:
        if options.verb == "begin":
            print(begin(options.arguments, os.environ))
            return 0
        return end(options, os.environ)
    except TrainlaunchError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except PermissionError as error:
        print_error(not_permitted(error))
        return EXIT_USER_ERROR
    except OSError as error:  # a disk that is full
        print(f"error: {error}", file=sys.stderr)
        return EXIT_FAILURE


def begin(arguments: Sequence[str], environment: Mapping[str, str]) -> str:
    """Record that a job begins, and return the assignments for the batch script. Raises TrainlaunchError."""
    job = JobStart.of(environment)
    words = expand_arguments(arguments, job.array_task)
    config = load_config([word for word in words if word != _RESUME])
    directory = RUNS / config.name
    if job.restart and _is_complete(directory, job):
        print(f"job {job.queue_id}, restart {job.restart}: {directory} is complete already", file=sys.stderr)
        return "exit 0"
    nodes = node_names(environment.get("SLURM_JOB_NODELIST"))
    ports = free_ports(job.rendezvous_id, NUM_PORTS)
    end_time = _end_time(job, environment)
    (directory / "logs").mkdir(parents=True, exist_ok=True)
    if len(nodes) > 1:
        make_secret(directory)  # now, for all nodes to see it by the time they start
    _close_earlier(directory, job)
    _withdraw_stop(directory, job)
    failure_record.clear_all(directory)
    search = search_of(arguments)
    iso_end = datetime.fromtimestamp(end_time, UTC).isoformat(timespec="seconds") if end_time else None
    where = {"nodes": nodes, "head": nodes[0], "port": ports[0], "end_time": iso_end}
    jobs.append(directory, job.as_record("begin") | where)
    print(f"job {job.queue_id}, restart {job.restart}: {directory} on {', '.join(nodes)}", file=sys.stderr)
    text = assignments(job, words, config, nodes[0], ports, end_time, environment)
    return text if search is None else f"{text}\n{_until_rung(search, config.name)}"


def end(options: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Record how a job ended and requeue it where that makes sense; return the exit code of the batch job."""
    job = JobStart.of(environment)
    directory: Path = options.run
    lines = job_lines(directory)
    srun_said = _srun_said(directory, options.srun_log)
    evidence = gather(directory, job, lines, exit_code=options.code, signal=options.signal or None, srun_said=srun_said)
    evidence = replace(evidence, signal_seconds=options.signal_seconds)
    earlier = [line for line in lines if line.get("event") == "end" and job.of_same_job(line)]
    decision = decide_requeue(evidence, earlier, options.max_failures)
    search = read_search(options.search) if options.search else None
    requeued, excluded, is_held = evidence.queue == "requeued", list[str](), False
    with one_at_a_time(search) if search else nullcontext():
        if search is not None:
            decision, is_held = of_trial(search, directory.name, evidence, decision)
        if is_held and not requeued:
            requeued = put_on_hold(job)
        elif decision.requeue:
            requeued, excluded = requeue(job, evidence.lost_nodes, options.fewest_nodes)
    _withdraw_stop(directory, job, heeded=decision.cause == "stopped")
    print(closing_words(job, evidence, decision, excluded), file=sys.stderr)
    try:
        jobs.append(directory, end_record(job, evidence, decision) | {"requeued": requeued, "excluded": excluded})
    except OSError as error:
        print(f"warning: {directory / jobs.JOBS_FILE} does not tell so: {error}", file=sys.stderr)
    if not requeued and is_dead(options.slurmstepd):
        report_orphaned_job(job, decision)
    return decision.exit_code


def _until_rung(file: Path, name: str) -> str:
    """Return the lines of bash that have a trial of a search stop at its next rung."""
    search = read_search(file)
    assert search is not None, "the caller has looked"
    settle(search, name)  # an element that was killed may not have done so
    return f"export {STOP_AT}={search.until(name)}\npolicy+=(--search {shlex.quote(str(file))})"


def _srun_said(directory: Path, log: Path) -> str:
    """Return the end of what srun printed, nothing where its log cannot be read, which is told."""
    files = RunFiles(directory)
    said = files.end_of_text(os.path.relpath(log, directory))
    for problem in files.problems:
        print(f"warning: {problem}: what srun said is not known", file=sys.stderr)
    return said


def expand_arguments(arguments: Sequence[str], array_task: int | None) -> list[str]:
    """Return the arguments with `@FILE` replaced by the words of one line of FILE, an element of the array.

    array_task   the number of the element, and of its line, from 0; None outside an array
    Raises UserError where there is no such line, and for options, which a restart would repeat.
    """
    words = []
    for argument in arguments:
        if not argument.startswith("@"):
            words.append(argument)
            continue
        try:
            lines = Path(argument[1:]).read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise UserError(f"{argument}: cannot read {argument[1:]} ({error.strerror})") from error
        if array_task is None or array_task >= len(lines):
            which = "no element of an array" if array_task is None else f"element {array_task}"
            raise UserError(f"{argument}: this is {which}; must be submitted with --array=0-{len(lines) - 1}")
        words.extend(shlex.split(lines[array_task]))
    options = [word for word in words if word.startswith("--") and word != _RESUME]
    if options:
        raise UserError(
            f"{options[0]}: options of launch do not belong here, as a job may start several times; give CONFIG... "
            "[key=value ...], a name as name=NAME"
        )
    return words


def assignments(
    job: JobStart,
    words: Sequence[str],
    config: Config,
    head: str,
    ports: Sequence[int],
    end_time: float | None,
    environment: Mapping[str, str],
) -> str:
    """Return the values that the batch script needs, as lines of bash."""
    slurm = config.slurm
    directory = RUNS / config.name
    policy = {
        "--max-failures": slurm.max_failures,
        "--signal-seconds": slurm.signal_seconds,
        "--fewest-nodes": _fewest_nodes(slurm, environment),
    }
    variables = {
        "run": shlex.quote(str(directory)),
        "log": shlex.quote(str(directory / "logs" / job.rendezvous_id)),
        "job": job.queue_id,
        "arguments": f"({shlex.join(words)})",
        "range": _range(slurm, environment),
        "processes": str(slurm.processes_per_node or "auto"),
        "cpus": str(cpus_on_each(environment)),
        "head": shlex.quote(head),
        "ports": f"({' '.join(map(str, ports))})",
        "policy": f"({' '.join(f'{option} {value}' for option, value in policy.items())})",
        "export TRAINLAUNCH_RENDEZVOUS_ID": job.rendezvous_id,
        "export TRAINLAUNCH_END_TIME": f"{end_time:.0f}" if end_time else "",
    }
    if slurm.gpus_per_node == 0:
        variables["export ACCELERATE_USE_CPU"] = "true"
    return "\n".join(f"{name}={value}" for name, value in variables.items())


def cpus_on_each(environment: Mapping[str, str]) -> int:
    """Return the number of CPUs that this job has on each of its nodes, the lowest of all nodes.

    SLURM sets it for each job, as in `8(x2),4`; SLURM_CPUS_PER_TASK may be left over from where the job was submitted.
    """
    return min(
        (int(count) for count in _CPUS_OF_NODES.findall(environment.get("SLURM_JOB_CPUS_PER_NODE", ""))), default=1
    )


def _fewest_nodes(slurm: SlurmConfig, environment: Mapping[str, str]) -> int:
    """Return the number of nodes that this job needs; without a range, those it has, as sbatch's options may say."""
    return slurm.fewest_nodes if isinstance(slurm.nodes, str) else int(environment.get("SLURM_JOB_NUM_NODES") or 1)


def _range(slurm: SlurmConfig, environment: Mapping[str, str]) -> str:
    """Return `MIN:MAX` for a job with a range of nodes: its fewest, and those that it has; empty for any other job."""
    given = int(environment.get("SLURM_JOB_NUM_NODES") or 1)
    return f"{min(slurm.fewest_nodes, given)}:{given}" if isinstance(slurm.nodes, str) else ""


def _end_time(job: JobStart, environment: Mapping[str, str]) -> float | None:
    """Return when the job's time is over, in unix seconds; None where that cannot be found out."""
    if environment.get("SLURM_JOB_END_TIME", "").isdecimal():  # from SLURM 23.02 on
        return float(environment["SLURM_JOB_END_TIME"])
    with suppress(QueueError):
        state = queue.job_states([job.queue_id]).get(job.queue_id)
        return state.end if state else None
    return None


def _is_complete(directory: Path, job: JobStart) -> bool:
    """Return True if this job has completed its run: SLURM restarts a job whose end it did not learn of."""
    ends = [line for line in job_lines(directory) if line.get("event") == "end" and job.of_same_job(line)]
    return bool(ends) and ends[-1].get("cause") == "completed"


def _close_earlier(directory: Path, job: JobStart) -> None:
    """Write the end lines of earlier starts that were killed before they could write them."""
    lines = job_lines(directory)
    for line in jobs.unfinished(lines):
        earlier = JobStart(line["job_id"], line.get("array_task"), line.get("restart") or 0)
        if not job.of_same_job(line):
            with suppress(QueueError):
                state = queue.job_states([earlier.queue_id]).get(earlier.queue_id)
                if state is not None and state.active:
                    continue  # it still runs; one of the two will be refused
        evidence = gather(directory, earlier, lines, exit_code=1, signal=None, srun_said="", over=True)
        earlier_ends = [end for end in lines if end.get("event") == "end" and earlier.of_same_job(end)]
        decision = decide_requeue(evidence, earlier_ends, max_failures=sys.maxsize)
        requeued = job.of_same_job(line)  # for here it is again
        jobs.append(directory, end_record(earlier, evidence, decision) | {"requeued": requeued, "excluded": []})


def _withdraw_stop(directory: Path, job: JobStart, *, heeded: bool = False) -> None:
    """Remove a STOP file that passes on a signal, or is meant for another job; what a person asks of this job stays.

    heeded   this job ends, as a person asked
    """
    stop_file = directory / "STOP"
    with suppress(OSError):
        asks = is_meant_for(stop_file, stop_token_of(job.queue_id))
        if heeded or not asks or read_stop_file(stop_file).code is EndCode.SIGNAL:
            stop_file.unlink()


if __name__ == "__main__":
    sys.exit(main())
