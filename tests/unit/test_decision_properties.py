"""SLURM's requeue decision for any evidence and any history: drawn by hypothesis."""

from __future__ import annotations

from typing import Any, get_args

from hypothesis import example, given
from hypothesis import strategies as some

from launch.slurm.ending.requeue import Cause, Evidence, QueueSays, Refusal, decide_requeue, error_of, find_end_cause
from trainlib.errors import EXIT_FAILURE, EXIT_STOPPED, EXIT_USER_ERROR
from trainlib.runs.records.failure_record import FailureRecord
from trainlib.runs.records.reasons import EndCode

exit_codes = some.sampled_from([0, 1, EXIT_USER_ERROR, EXIT_STOPPED, 76, 128, 129, 137, 139, 143, 255])
errors = some.sampled_from(["RuntimeError: no memory", "OSError: no space", ""])
steps = some.one_of(some.none(), some.integers(0, 9))
failures = some.builds(
    FailureRecord,
    time=some.just("2026-01-01T00:00:00Z"),
    rank=some.just(1),
    host=some.just("n1"),
    exit_code=exit_codes.filter(bool),
    signal=some.none(),
    log=some.just("rank-1.log"),
    error=errors,
)
evidences = some.builds(
    Evidence,
    exit_code=exit_codes,
    code=some.one_of(some.none(), some.sampled_from(EndCode)),
    reason=some.one_of(some.none(), errors),
    step=steps,
    failure=some.one_of(some.none(), failures),
    refusal=some.one_of(some.none(), some.builds(Refusal, errors, some.just("launcher.log"))),
    signal=some.one_of(some.none(), some.sampled_from(["SIGTERM", "SIGUSR2"])),
    queue=some.sampled_from(get_args(QueueSays)),
    seconds_left=some.one_of(some.none(), some.floats(0, 7200)),
    signal_seconds=some.integers(1, 600),
    lost_nodes=some.sampled_from([(), ("n0",), ("n0", "n1")]),
)
lines = some.fixed_dictionaries(
    {"event": some.just("end"), "cause": some.sampled_from(get_args(Cause)), "step": steps, "exit_code": exit_codes},
    optional={"error": some.one_of(some.none(), errors)},
)
histories = some.lists(lines, max_size=6)
limits = some.integers(0, 5)


@given(evidences, histories, limits)
def test_every_evidence_is_decided(evidence: Evidence, earlier: list[dict[str, Any]], max_failures: int) -> None:
    decision = decide_requeue(evidence, earlier, max_failures)
    assert decision.cause in get_args(Cause)
    assert decision.why
    assert (decision.exit_code == 0) == (decision.cause == "completed")
    assert decision == decide_requeue(evidence, earlier, max_failures)


@given(evidences, histories, limits)
def test_only_what_is_worth_it_is_started_again(
    evidence: Evidence, earlier: list[dict[str, Any]], max_failures: int
) -> None:
    """Never what is complete, what a user has stopped or cancelled, or what SLURM starts again by itself."""
    decision = decide_requeue(evidence, earlier, max_failures)
    complete = evidence.exit_code == 0 and not evidence.stopped
    by_the_user = evidence.code is EndCode.STOP_FILE or evidence.queue == "cancelled"
    if complete or by_the_user or evidence.queue == "requeued":
        assert not decision.requeue
    if evidence.code is EndCode.STOP_FILE and evidence.queue in ("running", "unknown", "requeued"):
        assert (decision.cause, decision.exit_code) == ("stopped", EXIT_STOPPED)
    if decision.cause in ("preempted", "node_failure") and evidence.queue != "requeued":
        assert decision.requeue


@given(evidences, histories, limits)
def test_failures_alone_are_counted(evidence: Evidence, earlier: list[dict[str, Any]], max_failures: int) -> None:
    decision = decide_requeue(evidence, earlier, max_failures)
    if decision.cause != "failure":
        return
    before = [line for line in earlier if line["cause"] == "failure"]
    if decision.requeue:
        assert len(before) + 1 < max_failures
        assert decision.exit_code != EXIT_USER_ERROR
    elif max_failures > len(before) + 1 and decision.exit_code != EXIT_USER_ERROR:
        last = earlier[-1]  # the same failure again, before a step
        assert (evidence.step, last["step"], last["cause"]) == (None, None, "failure")
        assert (last["exit_code"], last.get("error")) == (decision.exit_code, error_of(evidence))


@given(evidences, histories, limits, some.data())
def test_what_is_no_failure_changes_no_count(
    evidence: Evidence, earlier: list[dict[str, Any]], max_failures: int, data: some.DataObject
) -> None:
    """Preemptions and the like before the last line of the history, as many as there may be, change nothing."""
    at = data.draw(some.integers(0, max(len(earlier) - 1, 0)))
    others = some.sampled_from(["preempted", "time_limit", "node_failure"])
    harmless = [{"event": "end", "cause": data.draw(others), "step": 3, "exit_code": EXIT_STOPPED}] * bool(earlier)
    longer = [*earlier[:at], *harmless, *earlier[at:]]
    assert decide_requeue(evidence, longer, max_failures) == decide_requeue(evidence, earlier, max_failures)


@given(evidences)
@example(Evidence(EXIT_FAILURE))
def test_a_known_failure_is_the_jobs_exit_code(evidence: Evidence) -> None:
    decision = decide_requeue(evidence, [], 3)
    if find_end_cause(evidence) in ("failure", "cancelled", "node_failure") and not evidence.stopped:
        expected = evidence.failure.exit_code if evidence.failure else evidence.exit_code or EXIT_FAILURE
        assert decision.exit_code == expected
