"""Who trains next among machines that come and go: decided from what they say of themselves, without any machine."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import pytest

from launch.local.nodes.board_records import BoardEntry, End, Member, entry_from, member_from, to_text
from launch.local.nodes.heart import DEAD_SECONDS, FORGET_SECONDS, Living
from launch.local.nodes.membership import Rules, group, lost, newcomers, next_entry

RULES = Rules(1, 3, 3)


def machines(names: str, *, apart: Collection[str] = (), ends: dict[str, End] | None = None) -> list[Member]:
    """Machines with names of one letter, which have come in alphabetical order; `apart`: pairs that do not reach."""
    cut = {frozenset(pair) for pair in apart}
    return [
        Member(
            name,
            f"host-{name}",
            float(ord(name)),
            (f"10.0.0.{ord(name)}",),
            1000,
            2,
            "same",
            end=(ends or {}).get(name),
            reaches={other: f"10.0.0.{ord(other)}" for other in names if frozenset((name, other)) not in cut},
        )
        for name in names
    ]


def entry(members: str, number: int = 5, **more: object) -> BoardEntry:
    return BoardEntry(number, tuple(members), tuple(f"host-{name}" for name in members), "10.0.0.97", 1, 2, **more)  # type: ignore[arg-type]


def killed(number: int = 5, finished: int = 16, begun_from: int = 0) -> End:
    what = "rank 1 was killed by SIGKILL"
    return End(number, 137, "killed", what, "host h", f"error: {what}", (begun_from, finished), begun=True)


def lost_peer(number: int = 5, finished: int = 16) -> End:
    return End(number, 76, "connection_lost", "rank 0 lost", "host a", "error: lost", (0, finished), begun=True)


@pytest.mark.parametrize(
    ("names", "apart", "current", "expected"),
    [
        ("abc", (), None, "abc"),
        ("abcd", (), None, "abc"),  # the most
        ("abc", (), "b", "bac"),  # the head stays
        ("abc", ("ab", "ac"), "abc", "bc"),  # the larger half, though the head is not in it
        ("ab", ("ab",), "ab", "a"),  # halves of the same size: the head's
        ("ab", ("ab",), "ba", "b"),
        ("abc", ("ac",), "abc", "ab"),  # one link is broken: nobody trains with a machine that it does not reach
        ("bc", (), "abc", "bc"),
        ("", (), "abc", ""),
    ],
)
def test_the_group_that_trains(names: str, apart: tuple[str, ...], current: str | None, expected: str) -> None:
    chosen = group(machines(names, apart=apart), None if current is None else entry(current), 3)
    assert "".join(member.id for member in chosen) == expected


def test_a_machine_with_other_code_is_in_no_group_with_others() -> None:
    a, b, c = machines("abc")
    assert [member.id for member in group([a, replace(b, kind="other"), c], None, 3)] == ["a", "c"]


def test_who_is_lost_to_a_machine_that_trains() -> None:
    assert lost("a", machines("abc"), entry("abc")) == []
    assert lost("a", machines("ab"), entry("abc")) == ["host-c"]
    assert lost("a", machines("abc", apart=["ab"]), entry("abc")) == ["host-b"]
    assert lost("c", machines("abc", apart=["ab"]), entry("abc")) == []


def test_who_can_join() -> None:
    assert [member.id for member in newcomers(machines("abc"), entry("a"), 2)] == ["b"]
    assert newcomers(machines("abc"), entry("abc"), 3) == []
    assert newcomers(machines("abc", apart=["bc"]), entry("ab"), 3) == []
    assert newcomers(machines("bc"), entry("ab"), 3) == []  # first the others must go on without a


@pytest.mark.parametrize(
    ("names", "least", "settled", "starts"),
    [("abc", 1, False, True), ("ab", 1, False, False), ("ab", 2, True, True), ("a", 2, True, False)],
)
def test_when_the_first_start_is_made(names: str, least: int, settled: bool, starts: bool) -> None:
    found = next_entry(machines(names), None, 1, Rules(least, 3, 3), settled=settled)
    assert (found is not None) == starts
    if found is not None:
        assert (found.number, found.members, found.begun, found.history) == (1, tuple(names), False, ())
        assert found.address == "10.0.0.97"


def test_nothing_follows_while_all_train_or_others_are_about_to_end() -> None:
    assert next_entry(machines("abc"), entry("abc"), 6, RULES, settled=True) is None
    assert next_entry(machines("ab"), entry("abc"), 6, RULES, settled=True) is None  # those two end soon
    ends = {"a": lost_peer()}
    assert next_entry(machines("ab", ends=ends), entry("abc"), 6, RULES, settled=True) is None
    assert next_entry(machines("abc", ends={"a": lost_peer(4)}), entry("abc"), 6, RULES, settled=True) is None


def test_those_who_are_left_go_on_and_it_is_said_who_is_gone() -> None:
    ends = {"b": lost_peer(), "c": lost_peer()}
    found = next_entry(machines("bc", ends=ends), entry("abc"), 6, RULES, settled=False)
    assert found is not None
    assert (found.members, found.begun, found.history) == (("b", "c"), True, ((0, 16),))
    assert found.restart["restart"] == 1
    assert found.restart["cause"] == "connection_lost"
    assert "host-a is gone" in found.tell
    assert "restart 1 of 3 on 2 machines: host-b, host-c" in found.tell


def test_a_killed_rank_is_the_cause_and_all_go_on_with_a_machine_that_waits() -> None:
    ends = {"a": lost_peer(), "b": killed()}
    found = next_entry(machines("abc", ends=ends), entry("ab"), 6, RULES, settled=False)
    assert found is not None
    assert found.members == ("a", "b", "c")
    assert found.restart["reason"] == "rank 1 was killed by SIGKILL (host h)"


def test_a_machine_that_computes_wrongly_is_left_out() -> None:
    wrong = End(5, 74, "wrong_device", "rank 1 computes wrongly", begun=True, is_wrong=True)
    ends = {"a": replace(wrong, is_wrong=False), "b": wrong}
    found = next_entry(machines("ab", ends=ends), entry("ab"), 6, RULES, settled=False)
    assert found is not None
    assert (found.members, found.left_out) == (("a",), ("b",))
    assert newcomers(machines("ab", ends=ends), found, 3) == []
    assert next_entry(machines("ab", ends=ends), entry("ab"), 6, Rules(2, 3, 3), settled=False) is None


@pytest.mark.parametrize("code", [1, 2])
def test_a_machine_that_joins_and_on_which_nothing_starts_is_left_out(code: int) -> None:
    ends = {"a": replace(lost_peer(), begun=False), "b": End(5, code, words="error: no such folder")}
    found = next_entry(machines("ab", ends=ends), entry("ab", begun=True), 6, RULES, settled=False)
    assert found is not None
    assert (found.members, found.left_out) == (("a",), ("b",))
    ends["a"] = End(5, code, words="error: no such folder")  # on all of them: then it is the run's
    found = next_entry(machines("ab", ends=ends), entry("ab", begun=True), 6, RULES, settled=False)
    assert found is not None
    assert (found.is_over, found.code) == (True, code)


@pytest.mark.parametrize(
    ("ends", "code"),
    [
        ({"a": End(5, 0), "b": End(5, 0)}, 0),
        ({"a": End(5, 2, words="error: a mistake"), "b": lost_peer()}, 2),
        ({"a": End(5, 1, words="error: an exception"), "b": lost_peer()}, 1),
        ({"a": End(5, 75), "b": End(5, 75)}, 75),
        ({"a": End(5, 75), "b": lost_peer()}, 75),
    ],
)
def test_what_ends_the_run(ends: dict[str, End], code: int) -> None:
    found = next_entry(machines("ab", ends=ends), entry("ab"), 6, RULES, settled=True)
    assert found is not None
    assert found.is_over
    assert found.code == code


def test_an_exception_where_a_machine_is_gone_may_be_the_networks() -> None:
    ends = {"a": End(5, 1, words="error: Broken", steps=(0, 9), begun=True)}
    found = next_entry(machines("a", ends=ends), entry("ab"), 6, RULES, settled=True)
    assert found is not None
    assert found.members == ("a",)


@pytest.mark.parametrize("unasked", [True, False])
@pytest.mark.parametrize("fault", [True, False])
def test_a_stop_that_a_dead_launcher_or_agent_brought_about_is_nobodys_wish(fault: bool, unasked: bool) -> None:
    """Its ranks stop together with those of other machines, which then end with 75."""
    stopped = End(5, 75, steps=(0, 16), begun=True)
    ends = {"a": stopped, "b": killed()} if fault else {"a": stopped}
    found = next_entry(machines("".join(ends), ends=ends), entry("ab"), 6, RULES, settled=True, unasked=unasked)
    assert found is not None
    assert (found.members, found.code) == ((tuple(ends), 0) if unasked else ((), 75))


def test_ranks_that_were_asked_one_by_one_stop_for_good() -> None:
    """A signal to a single rank, on a machine that lives, is a person's."""
    ends = dict.fromkeys("ab", End(5, 75, steps=(0, 16), begun=True))
    found = next_entry(machines("ab", ends=ends), entry("ab"), 6, RULES, settled=True, unasked=True)
    assert found is not None
    assert (found.members, found.code) == ((), 75)


def test_a_stop_to_let_a_machine_join_is_no_fault() -> None:
    ends = {"a": End(5, 75, begun=True), "b": End(5, 75, begun=True)}
    found = next_entry(machines("abc", ends=ends), entry("ab"), 6, RULES, settled=True, regrouping=True)
    assert found is not None
    assert (found.members, found.history, found.restart) == (("a", "b", "c"), (), {})


def test_what_repeats_ends_also_across_machines() -> None:
    current = entry("ab", history=((0, 16),))
    ends = {"a": lost_peer(), "b": killed(begun_from=15)}
    found = next_entry(machines("ab", ends=ends), current, 6, RULES, settled=True)
    assert found is not None
    assert found.is_over
    assert "it repeats, and is not chance" in found.tell
    assert found.code == 137


def test_a_run_that_is_complete_is_not_started_again() -> None:
    ends = {"b": lost_peer()}
    found = next_entry(machines("b", ends=ends), entry("ab"), 6, RULES, settled=True, is_complete=True)
    assert found is not None
    assert (found.is_over, found.code) == (True, 0)


def test_where_all_that_trained_are_gone_others_go_on() -> None:
    found = next_entry(machines("c"), entry("ab", begun=True), 6, RULES, settled=True)
    assert found is not None
    assert (found.members, found.begun) == (("c",), True)


def test_what_is_written_is_read_again() -> None:
    (member,) = machines("a", ends={"a": killed()})
    assert member_from(to_text(member)) == member
    written = entry("ab", history=((0, 3), None), restart={"restart": 1})
    assert entry_from(to_text(written)) == written
    for text in ("", "{", "[]", "{}", '{"number": 1}', '{"id": 1, "addresses": 2}'):
        assert member_from(text) is None
        assert entry_from(text) is None or text == '{"number": 1}'


def test_who_lives_is_seen_by_a_heart_that_beats() -> None:
    now = [0.0]
    living = Living(lambda: now[0])
    (member,) = machines("a")

    def alive(beat: int, after: float) -> bool:
        now[0] += after
        return bool(living.look([replace(member, beat=beat)])[0])

    assert not alive(1, 1)  # it may be a file that was left
    assert alive(2, 1)
    assert alive(2, 4)
    assert alive(2, 4)
    assert not alive(2, 4)
    assert alive(3, 1)
    assert alive(3, 1000)  # this machine was frozen itself: nothing is known
    assert not alive(3, DEAD_SECONDS / 2)
    now[0] += FORGET_SECONDS
    for _ in range(30):
        now[0] += 4
        forgotten = living.look([replace(member, beat=3)])[1]
    assert forgotten == ["a"]
