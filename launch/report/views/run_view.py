"""Sentences about a run on its page, made from several values of its files."""

from __future__ import annotations

from dataclasses import dataclass

from launch.report.facts.overfitting import overfitting
from launch.report.facts.run_facts import RunFacts, is_number
from launch.runs.show import last_error

STATES = {
    "running": "This run is still going: the page shows what there was when it was made.",
    "interrupted": "The process of this run was killed or its machine went down: no reason was recorded. Start it "
    "again to continue.",
    "stopped": "This run was stopped with a checkpoint. Start it again to continue.",
    "failed": "This run failed. What it wrote before that is shown.",
    "new": "This run has not begun.",
}


@dataclass(frozen=True)
class RunView:
    """Text about one run; empty, or None, where there is nothing to say.

    subtitle       the model and the data
    state, error   why the run is not complete
    overfitting    where training and validation part
    steps, epochs  how far it is
    environment    machine, versions and command, by name
    """

    subtitle: str
    state: str
    error: str
    overfitting: str | None
    steps: str
    epochs: str
    images_per_second: str | None
    environment: dict[str, object]


def view_of(run: RunFacts) -> RunView:
    """Return the text about one run."""
    model, data = (run.config.get(key) for key in ("model", "data"))
    named = [part.get("name") for part in (model, data) if isinstance(part, dict)]
    speed = run.run.summary.get("images_per_second")
    steps, epochs = _progress(run)
    return RunView(
        subtitle=f"{named[0]} on {named[1]}" if len(named) == 2 else "",
        state=STATES.get(run.run.status, ""),
        error=last_error(run.run) if run.run.status in ("failed", "interrupted") else "",
        overfitting=overfitting(run),
        steps=steps,
        epochs=epochs,
        images_per_second=f"{speed:,.0f}" if is_number(speed) else None,
        environment=_environment(run),
    )


def _progress(run: RunFacts) -> tuple[str, str]:
    newest, planned = run.run.newest_metrics, run.run.planned
    if not newest:
        return "", ""
    steps = f"{newest['step']:,} steps" + (f" of {planned['steps']:,}" if planned.get("steps") else "")
    return steps, f"epoch {newest.get('epoch', '?')}" + (f" of {planned['epochs']}" if planned.get("epochs") else "")


def _environment(run: RunFacts) -> dict[str, object]:
    facts = run.environment
    versions, command = facts.get("versions"), facts.get("command")
    return {
        "device": f"{facts.get('device_name')} ({facts.get('device')})" if facts.get("device_name") else None,
        "host": facts.get("host"),
        "platform": facts.get("platform"),
        "processes": facts.get("world_size"),
        "threads each": facts.get("num_threads"),
        "commit": facts.get("git_commit"),
        "weights SHA-256": run.run.summary.get("weights_sha256"),
        "command": " ".join(map(str, command)) if isinstance(command, list) else None,
        **(versions if isinstance(versions, dict) else {}),
    }
