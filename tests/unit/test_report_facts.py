"""The facts that the report tells of runs: how attempts ended, which run is best, and where configurations differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from report_runs import end, evaluation, moment, start, training_rows, write_run

from launch.report.comparison import config_differences, ranking
from launch.report.facts.history import attempts_of, events_of, jobs_of
from launch.report.facts.run_facts import read_facts

# Attempts, jobs, events


def test_how_attempts_ended_and_why() -> None:
    """SLURM's causes reach the attempt that was the last in the job; a number of a job is not needed to find it."""
    job: dict[str, Any] = {"job_id": "7", "array_task": 2, "nodes": ["n0", "n1"]}
    jobs: list[dict[str, Any]] = [
        {"event": "submitted", "time": moment(0), "job_id": "7"},
        {"event": "begin", "time": moment(1), "restart": 0, **job},
        {
            "event": "end",
            "time": moment(30),
            "restart": 0,
            **job,
            "cause": "node_failure",
            "step": 40,
            "requeued": True,
        },
        {"event": "begin", "time": moment(40), "restart": 1, **job},
    ]
    lines = [
        start(1, 2, slurm_job_id="9"),
        end(1, 10, "failed", 20, "NonFiniteError: loss is nan"),
        start(2, 12, slurm_job_id="9", from_step=15),
        start(3, 41, slurm_job_id="9", from_step=30),
    ]
    attempts = attempts_of(lines, jobs_of(jobs), running=True)
    assert [(each.number, each.outcome, each.reason, each.end_step) for each in attempts] == [
        (1, "failed", "NonFiniteError: loss is nan", 20),
        (2, "interrupted", "node failure, requeued", 40),
        (3, "running", "", None),
    ]
    assert [each.job.name for each in attempts if each.job] == ["7_2", "7_2", "7_2, restart 1"]
    assert [(event.step, event.sign, event.text) for event in events_of(attempts, 35)] == [
        (
            15,
            "↻2",
            "attempt 2 goes on from step 15; attempt 1 failed: NonFiniteError: loss is nan; 5 steps were done again",
        ),
        (
            30,
            "↻3",
            "attempt 3 goes on from step 30; attempt 2 was interrupted: node failure, requeued; 10 steps "
            "were done again",
        ),
    ]


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        (end(1, 9, "completed", 50), []),
        (end(1, 9, "stopped", 50, "SIGTERM"), [(50, "■", "attempt 1 was stopped: SIGTERM")]),
        (end(1, 9, "failed", 50, "MemoryError"), [(50, "✕", "attempt 1 failed: MemoryError")]),
        (None, [(48, "✕", "attempt 1 was interrupted: killed, or its machine was lost")]),
    ],
)
def test_how_the_last_attempt_ended_is_marked(last: dict[str, Any] | None, expected: list[Any]) -> None:
    attempts = attempts_of([start(1, 0), *([last] if last else [])], [], running=False)
    assert [(event.step, event.sign, event.text) for event in events_of(attempts, 48)] == expected


# Several runs


def test_the_best_run_comes_first(tmp_path: Path) -> None:
    """By the test where all have one; by the best validation where one has none; those without either at the end."""
    worse = write_run(tmp_path / "worse", rows=training_rows(100, level=1.5))
    better = write_run(tmp_path / "better", rows=training_rows(60, level=0.5))
    untested = write_run(tmp_path / "untested", rows=training_rows(60, level=0.1, tested=False))
    empty = write_run(tmp_path / "empty")
    facts = {each.name: each for each in map(read_facts, (worse, better, untested, empty))}
    both = ranking([facts["worse"], facts["better"]])
    assert ([run.name for run in both.runs], both.by) == (["better", "worse"], "accuracy on the test split")
    all_four = ranking(list(facts.values()))
    assert [run.name for run in all_four.runs] == ["untested", "better", "worse", "empty"]
    assert all_four.by == "best accuracy on the validation split"


def test_config_differences(tmp_path: Path) -> None:
    schedules: list[Any] = [None, [{"name": "StepLR", "step_size": 5}], {"name": "StepLR", "step_size": 5}]
    facts = [
        read_facts(write_run(tmp_path / name, config={"optimizer": {"lr": lr, "fused": None}, "scheduler": scheduler}))
        for name, lr, scheduler in zip("abc", (0.1, 1e-5, 0.1), schedules, strict=True)
    ]
    old, new = (write_run(tmp_path / name, config={"train": {"precision": name}}) for name in ("no", "fp32"))
    assert config_differences([read_facts(old), read_facts(new)]) == []
    assert config_differences(facts) == [
        ("optimizer.lr", ["0.1", "1e-05", "0.1"]),
        ("scheduler", ["null", "[{name: StepLR, step_size: 5}]", "—"]),
        ("scheduler.name", ["—", "—", "StepLR"]),
        ("scheduler.step_size", ["—", "—", "5"]),
    ]


@pytest.mark.parametrize(
    "damage", [{"confusion": [[1]]}, {"classes": []}, {"mistakes": [{"label": 9}]}, {"per_class": None}, {"loss": "x"}]
)
def test_a_damaged_evaluation_is_named(damage: dict[str, Any], tmp_path: Path) -> None:
    whole = evaluation([[1, 2], [3, 4]], ["a", "b"])
    run = write_run(tmp_path / "x", evaluations=[whole | damage])
    facts = read_facts(run)
    assert (facts.evaluations, facts.damaged_evaluations) == ([], ["evaluation-test.json"])


def test_slow_ranks_are_told_with_the_steps_in_which_they_were(tmp_path: Path) -> None:
    rows = training_rows(6)
    for row in rows:
        if row.get("scope") == "step" and row["step"] in (3, 4):
            row["slow"] = "rank 1 on host a, CPU: 1.50 times the median's time per sample; rank 2 on host b, CPU: 1.2"
    facts = read_facts(write_run(tmp_path / "run", rows=rows))
    assert facts.slow_ranks() == {"rank 1 on host a, CPU": (3, 4), "rank 2 on host b, CPU": (3, 4)}
