"""What the page tells of one run beside its curves: headline figures, attempts, checkpoints, configuration, machine."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from launch.report.evaluation_view import evaluation_section
from launch.report.facts import RunFacts, is_number
from launch.report.history import Attempt
from launch.report.markup import Content, Markup, element
from launch.report.tables import NONE, Cell, bytes_text, duration, facts_list, number, table
from launch.runs.show import last_error, local_time

STATES = {
    "running": "This run is still going: the page shows what there was when it was made.",
    "interrupted": "This run ended without a word. Start it again to continue.",
    "stopped": "This run was stopped with a checkpoint. Start it again to continue.",
    "failed": "This run failed. What it wrote before that is shown.",
    "new": "This run has not begun.",
}


def headline(run: RunFacts, now: datetime) -> Markup:
    """The figures that one looks for first."""
    summary, best, best_loss = run.run.summary, run.best_val(), run.best_val("loss")
    speed = summary.get("images_per_second")
    figures = {
        "test accuracy": number(run.test()),
        "test loss": number(run.test("loss")),
        "best validation accuracy": _at(best),
        "best validation loss": _at(best_loss),
        "progress": _progress(run),
        "training time": duration(run.seconds(now)),
        "images per second": f"{speed:,.0f}" if is_number(speed) else NONE,
        "processes": run.attempts[-1].ranks if run.attempts else None,
    }
    return facts_list(figures, "headline")


def state(run: RunFacts) -> Markup | None:
    """What has to be known of a run that is not complete."""
    text = STATES.get(run.run.status)
    error = last_error(run.run) if run.run.status in ("failed", "interrupted") else ""
    said = [" ", element("code", error)] if error else None
    return element("p", text, said, class_=f"state {run.run.status}") if text else None


def evaluations(run: RunFacts) -> list[Content]:
    """Each split's evaluation; how to get one where there is none."""
    name = run.name
    if not run.evaluations:
        damaged = f"{', '.join(run.damaged_evaluations)} cannot be read. " if run.damaged_evaluations else ""
        how = element("code", f"launch eval {name}")
        text = f"{damaged}For the table of classes, the confusion matrix and the most confident mistakes: "
        return [element("section", element("h2", "Evaluation"), element("p", text, how, class_="note"))]
    titles = {"test": "test split", "val": "validation split", "train": "training split"}
    return [
        element(
            "section",
            element("h2", f"Evaluation: {titles.get(evaluation.split, evaluation.split)}"),
            evaluation_section(evaluation),
        )
        for evaluation in run.evaluations
    ]


def subtitle(run: RunFacts) -> str:
    """What was trained on what."""
    model, data = (run.config.get(key) for key in ("model", "data"))
    named = [part.get("name") for part in (model, data) if isinstance(part, dict)]
    return f"{named[0]} on {named[1]}" if len(named) == 2 else ""


def attempts(run: RunFacts) -> Content:
    """The section of the attempts."""
    return element("section", element("h2", "Attempts"), attempts_table([run])) if run.attempts else None


def attempts_table(runs: Sequence[RunFacts]) -> Markup:
    """A line for each attempt; whose it is stands before it where there are several runs."""
    jobs = any(attempt.job for run in runs for attempt in run.attempts)
    headings = ["attempt", "started", "took", "from step", "to step", "processes", "where"]
    headings = ["run"] * (len(runs) > 1) + headings + ["SLURM job"] * jobs + ["how it ended"]
    rows = [
        [*([Cell(run.name)] if len(runs) > 1 else []), *_attempt(attempt, jobs)]
        for run in runs
        for attempt in run.attempts
    ]
    return table(headings, rows)


def checkpoints(run: RunFacts) -> Content:
    """The table of checkpoints."""
    if not run.checkpoints:
        return None
    rows = [
        [
            Cell(element("code", checkpoint["name"])),
            f"{checkpoint['step']:,}",
            bytes_text(checkpoint["bytes"]) if checkpoint["bytes"] else None,
            Cell(f"best: {checkpoint['best']}" if checkpoint["best"] else ""),
        ]
        for checkpoint in run.checkpoints
    ]
    return element("section", element("h2", "Checkpoints"), table(["name", "step", "size", ""], rows))


def configuration(run: RunFacts) -> Content:
    """config.yaml as it is."""
    if not run.config_text:
        return None
    text = element("pre", run.config_text, tabindex=0)
    return element("section", element("h2", "Configuration"), text)


def environment(run: RunFacts) -> Content:
    """environment.json: machine, versions, command."""
    facts = run.environment
    if not facts:
        return None
    versions = facts.get("versions") if isinstance(facts.get("versions"), dict) else {}
    command = facts.get("command")
    shown = {
        "device": f"{facts.get('device_name')} ({facts.get('device')})" if facts.get("device_name") else None,
        "host": facts.get("host"),
        "platform": facts.get("platform"),
        "processes": facts.get("world_size"),
        "threads each": facts.get("num_threads"),
        "commit": facts.get("git_commit"),
        "weights SHA-256": run.run.summary.get("weights_sha256"),
        "command": element("code", " ".join(map(str, command))) if isinstance(command, list) else None,
        **{str(name): version for name, version in (versions or {}).items()},
    }
    listed = {name: value if isinstance(value, str | int | None) else str(value) for name, value in shown.items()}
    return element("section", element("h2", "Environment"), facts_list(listed, "environment"))


def _attempt(attempt: Attempt, jobs: bool) -> list[Cell | Content]:
    seconds = (attempt.ended - attempt.started).total_seconds() if attempt.ended and attempt.started else None
    job = [Cell(_job(attempt))] if jobs else []
    return [
        attempt.number,
        Cell(local_time(attempt.started)),
        duration(seconds),
        f"{attempt.from_step:,}",
        NONE if attempt.end_step is None else f"{attempt.end_step:,}",
        attempt.ranks,
        Cell(attempt.host),
        *job,
        Cell([element("span", attempt.outcome, class_=f"badge {attempt.outcome}"), " ", attempt.reason]),
    ]


def _job(attempt: Attempt) -> str:
    if attempt.job is None:
        return NONE
    nodes = attempt.job.begin.get("nodes")
    return attempt.job.name + (f", on {' '.join(map(str, nodes))}" if isinstance(nodes, list) else "")


def _at(point: tuple[float, float] | None) -> Content:
    """A value and the step it was reached at."""
    return [number(point[1]), element("small", f"step {point[0]:,}")] if point else None


def _progress(run: RunFacts) -> Content:
    newest = run.run.newest_metrics
    if not newest:
        return None
    planned = run.run.planned
    epoch = f"epoch {newest.get('epoch')}" + (f" of {planned['epochs']}" if planned.get("epochs") else "")
    steps = f"{newest.get('step'):,} steps" + (f" of {planned['steps']:,}" if planned.get("steps") else "")
    return [steps, element("small", epoch)]
