"""The port at which the nodes of a job meet, and the names of its nodes."""

import socket

import pytest

from launch.slurm import head
from launch.slurm.head import FIRST_PORT, NUM_PORTS, candidate_ports, free_ports, node_names, port_is_free
from launch.slurm.queue import QueueError


def test_candidates_are_every_port_below_the_ephemeral_ones_once() -> None:
    ports = list(candidate_ports("job-12-restart-0"))
    assert sorted(ports) == list(range(10_000, 30_000))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("job-12-restart-0", "job-12-restart-1"),
        ("job-12-restart-0", "job-13-restart-0"),
        ("job-12_1-restart-0", "job-12_2-restart-0"),
    ],
)
def test_starts_that_may_meet_on_a_node_begin_elsewhere(one: str, other: str) -> None:
    """Also their further tries differ: whoever loses the first port does not follow the other one around."""
    first, second = (list(candidate_ports(name))[:3] for name in (one, other))
    assert not set(first) & set(second)
    assert list(candidate_ports(one))[:3] == first


def test_ports_that_are_taken_are_passed_over() -> None:
    expected = list(candidate_ports("job-7-restart-0"))
    with socket.socket() as taken:
        taken.bind(("", expected[0]))
        taken.listen()
        assert not port_is_free(expected[0])
        assert free_ports("job-7-restart-0", 3) == expected[1:4]
    assert free_ports("job-7-restart-0", 3) == expected[:3]


def test_a_port_that_is_taken_on_one_address_alone_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert not port_is_free(taken.getsockname()[1])


def test_a_node_without_free_ports_says_so() -> None:
    with pytest.raises(QueueError, match=f"between {FIRST_PORT} and {FIRST_PORT + NUM_PORTS - 1} are free"):
        free_ports("job-7-restart-0", 3, is_free=lambda port: False)


@pytest.mark.parametrize("node_list", [None, ""])
def test_outside_a_job_there_is_no_head(node_list: str | None) -> None:
    with pytest.raises(QueueError, match="SLURM_JOB_NODELIST is not set"):
        node_names(node_list)


def test_a_list_that_slurm_cannot_tell_is_an_error_and_not_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(node_list: str) -> list[str]:
        raise QueueError("scontrol show hostnames failed")

    monkeypatch.setattr(head, "hostnames", fail)
    with pytest.raises(QueueError, match="scontrol show hostnames failed"):
        node_names("n[0-1]")
