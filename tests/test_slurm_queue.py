"""What SLURM's commands print, as facts. The samples are SLURM 22.05's own."""

import pytest

from launch.slurm.queue import JobState, enough_others, parse_states

SQUEUE = """\
1_2|PENDING|JobArrayTaskLimit|0|N/A|N/A||0|
1_0|RUNNING|None|0|1795291975|1795299175|n0|0|
5|FAILED|NonZeroExitCode|0|1795291996|1795291996|n0|1792|
6|FAILED|JobLaunchFailure|2|1795291996|1795291996|n[0-1]|9|
7|COMPLETED|None|0|1795291996|1795291996|n0|0:0|
8|CANCELLED|None|0|1795291996|1795291996|n0|0:15|
"""


def test_states_of_jobs() -> None:
    """Exit codes as wait() gives them, and as newer versions write them."""
    states = parse_states(SQUEUE)
    assert states["1_2"] == JobState("1_2", "PENDING", "JobArrayTaskLimit", 0, None, None, "", 0)
    assert states["1_0"] == JobState("1_0", "RUNNING", "", 0, 1795291975.0, 1795299175.0, "n0", 0)
    assert (states["6"].restarts, states["6"].nodes) == (2, "n[0-1]")
    assert {job_id: state.exit_code for job_id, state in states.items() if state.exit_code} == {
        "5": 7,
        "6": 137,
        "8": 143,
    }
    assert [job_id for job_id, state in states.items() if state.active] == ["1_2", "1_0"]
    assert [job_id for job_id, state in states.items() if state.waiting] == ["1_2"]


NODES = "n0 mixed\nn1 idle\nn2 down*\nn3 allocated\nn4 drained\nn5 idle*\n"


@pytest.mark.parametrize(
    ("unwanted", "num_nodes", "enough"),
    [([], 3, True), ([], 4, False), (["n1"], 2, True), (["n1"], 3, False), (["n2"], 3, True), (["n0", "n1"], 1, True)],
)
def test_a_node_is_excluded_only_where_enough_others_are_up(unwanted: list[str], num_nodes: int, enough: bool) -> None:
    assert enough_others(NODES, unwanted, num_nodes) is enough
