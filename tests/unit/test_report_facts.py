"""The facts that the report tells of runs: how attempts ended, which run is best, and where configurations differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from report_runs import end, evaluation, moment, start, training_rows, write_run

from launch.report.facts.history import attempts_of, events_of, jobs_of
from launch.report.facts.overfitting import overfitting, parting
from launch.report.facts.run_facts import read_facts
from launch.report.views.comparison import Score, config_differences, ranking, results

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
    """By the best validation, whatever the test says; those without one at the end, and as given where none has one."""
    worse = write_run(tmp_path / "worse", rows=training_rows(100, level=1.5))
    better = write_run(tmp_path / "better", rows=training_rows(60, level=0.5))
    untested = write_run(tmp_path / "untested", rows=training_rows(60, level=0.1, tested=False))
    empty = write_run(tmp_path / "empty")
    facts = {each.name: each for each in map(read_facts, (worse, better, untested, empty))}
    both = ranking([facts["worse"], facts["better"]])
    assert ([run.name for run in both.runs], both.by) == (["better", "worse"], "best accuracy on the validation split")
    all_four = ranking(list(facts.values()))
    assert [run.name for run in all_four.runs] == ["untested", "better", "worse", "empty"]
    assert all_four.by == "best accuracy on the validation split"
    assert ranking([facts["empty"]]).by == "the order given, as no run has a validation split"


@pytest.mark.parametrize(
    ("data", "best", "order", "by"),
    [
        ({}, {"metric": "val/macro_f1", "mode": "max"}, "cba", "best macro_f1 on the validation split"),
        ({}, {"metric": "val/loss", "mode": "min"}, "bca", "lowest loss on the validation split"),
        ({}, {"metric": "train/loss", "mode": "min"}, "abc", "lowest loss in training"),
        ({}, None, "abc", "best accuracy on the validation split"),
        ({"labels": "several"}, None, "bac", "best map on the validation split"),
    ],
)
def test_runs_are_ranked_by_the_metric_that_chose_their_checkpoints(
    tmp_path: Path, data: dict[str, Any], best: dict[str, str] | None, order: str, by: str
) -> None:
    """Its best value stands beside the other figures; runs that chose by several metrics are ranked by accuracy."""
    values = {"a": (0.9, 0.3, 0.2, 0.5, 0.1), "b": (0.8, 0.4, 0.9, 0.3, 0.2), "c": (0.7, 0.5, 0.1, 0.4, 0.3)}
    facts = []
    for name, (accuracy, macro_f1, mean_precision, loss, of_training) in values.items():
        val = {"split": "val", "epoch": 1, "step": 9, "accuracy": accuracy, "macro_f1": macro_f1}
        rows = [
            {"split": "train", "scope": "epoch", "epoch": 1, "step": 9, "loss": of_training},
            val | {"map": mean_precision, "loss": loss},
            val | {"epoch": 2, "step": 18, "macro_f1": macro_f1 - 0.2, "loss": loss + 1, "accuracy": 0.1, "map": 0.01},
        ]
        config = {"data": data, "checkpoint": {"best": best}}
        facts.append(read_facts(write_run(tmp_path / name, config=config, rows=rows)))
    ranked = ranking(facts)
    assert ("".join(run.name for run in ranked.runs), ranked.by) == (order, by)
    titles, figures = results(ranked)
    if by.startswith("best macro_f1"):
        assert titles[-1] == "best val macro_f1"
        assert [scores[-1] for scores in figures] == [Score(0.5, True), Score(0.4, False), Score(0.3, False)]
    other = write_run(
        tmp_path / "d", config={"data": data, "checkpoint": {"best": {"metric": "val/top5", "mode": "max"}}}
    )
    assert ranking([*facts, read_facts(other)]).by == "best accuracy on the validation split"


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


def curve(losses: list[float]) -> list[tuple[float, float]]:
    return [(10.0 * (index + 1), loss) for index, loss in enumerate(losses)]


@pytest.mark.parametrize(
    ("train", "val", "parted"),
    [
        ([2, 1.5, 1, 0.8, 0.6, 0.4], [2, 1.5, 1.2, 1.4, 1.6, 1.8], True),
        ([2, 1.5, 0.3, 0.2, 0.5, 0.4], [2, 1.5, 1.2, 1.4, 1.6, 1.8], True),  # low, though not lower
        ([2, 1.5, 1, 0.8, 0.6, 0.4], [2, 1.5, 1.2, 1.2, 1.21, 1.2], False),  # as good as level
        ([2, 1.5, 1, 0.8, 0.6, 0.4], [2, 1.5, 1.4, 1.2, 1.6, 1.8], False),  # too little to tell
        ([2, 1.5, 2, 3, 4, 5], [2, 1.5, 2, 3, 4, 5], False),  # both rise: it diverges
        ([], [2, 1.5, 1.2, 1.4, 1.6, 1.8], False),
        ([1, 0.5], [], False),
    ],
)
def test_overfitting_is_a_validation_loss_that_rises_alone(train: list[float], val: list[float], parted: bool) -> None:
    assert (parting(curve(train), curve(val)) is not None) == parted


def test_overfitting_is_told_in_words(tmp_path: Path) -> None:
    rows = []
    for index, (train, val) in enumerate(zip([2, 1.5, 1, 0.8, 0.6, 0.4], [2, 1.5, 1.2, 1.4, 1.6, 1.8], strict=True)):
        more = {"step": 10 * (index + 1), "epoch": index + 1, "accuracy": 0.5, "count": 9}
        rows += [{"split": "train", "scope": "epoch", "loss": train} | more, {"split": "val", "loss": val} | more]
    said = overfitting(read_facts(write_run(tmp_path / "run", rows=rows)))
    assert said is not None
    assert "since step 30 (epoch 3) the validation loss has risen from 1.2 to 1.6, while" in said
    assert "the training loss fell from 1 to 0.4" in said


def test_the_test_stands_at_the_step_of_the_weights_that_were_tested(tmp_path: Path) -> None:
    """At that of the evaluation, at the best step where that is not there, at its own for an evaluation by hand."""
    best = {"test": {"loss": 1.0}, "best": {"step": 40}}
    rows = training_rows(100)
    tested = evaluation([[3, 1], [0, 4]], ["a", "b"])
    for name, weights, summary, step in [
        ("a", "best", None, 60),
        ("b", None, best, 40),
        ("c", "checkpoint", None, 100),
    ]:
        evaluations = [tested | {"weights": weights}] if weights else []
        run = read_facts(write_run(tmp_path / name, rows=rows, summary=summary, evaluations=evaluations))
        assert [point[0] for point in run.points("loss", "test")] == [step]


def test_attempts_that_failed_before_a_step_leave_no_sign_on_the_curves() -> None:
    lines = [start(1, 0), end(1, 10, "stopped", 40, "SIGTERM")]
    lines += [start(2, 20, from_step=40), end(2, 21, "failed", 40, "UserError: no"), start(3, 30, from_step=40)]
    attempts = attempts_of(lines, [], running=True)
    assert [attempt.is_false_start for attempt in attempts] == [False, True, False]
