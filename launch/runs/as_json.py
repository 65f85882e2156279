"""What `launch list --json` and `launch status --json` say of a run."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from launch.runs.show import Jobs, job_of, last_error, status_word
from trainlib.runs.attempt.status import Run


def run_facts(run: Run, now: datetime, jobs: Jobs = None) -> dict[str, Any]:
    """Return what a list of runs says of one; null stands for what is not known.

    now   the moment of asking
    jobs  the jobs that the queue knows, by id; None where the queue was not asked
    """
    job = job_of(run, jobs)
    tested = run.last.get(("test", None)) or run.summary.get("test")
    return {
        "name": run.name,
        "directory": str(run.directory),
        "status": status_word(run, jobs).partition(" ")[0],
        "step": run.step,
        "epoch": run.newest_metrics.get("epoch"),
        "started": run.started.isoformat() if run.started else None,
        "seconds": run.seconds(now),
        "val": run.last.get(("val", None)),
        "test": tested,
        "now": run.pulse or None,
        "job": {"id": job.job_id, "state": job.state, "reason": job.reason} if job else None,
        "problems": list(run.problems),
    }


def whole_run_facts(run: Run, now: datetime, jobs: Jobs = None) -> dict[str, Any]:
    """Return everything that the files of a run and the queue tell about it, as `run_facts` and more."""
    return run_facts(run, now, jobs) | {
        "planned": run.planned,
        "train": run.last.get(("train", "epoch")) or run.last.get(("train", "step")),
        "summary": run.summary or None,
        "last_error": last_error(run, jobs) or None,
        "checkpoints": [str(path) for path in run.checkpoints.values()],
        "attempts": run.attempts,
        "jobs": run.jobs,
    }
