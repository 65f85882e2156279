"""Who trains next, and whether anybody does, as a pure function of what machines say of themselves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from launch.local.nodes.board_records import BoardEntry, End, Member
from launch.local.restarts.restart_policy import decide_restart
from trainlib.errors import EXIT_OK, EXIT_STOPPED, EXIT_USER_ERROR
from trainlib.runs.records.reasons import EndCode


@dataclass(frozen=True)
class Rules:
    """How many machines train, and how often they start again: `--nodes LEAST:MOST --restarts RESTARTS`."""

    least: int
    most: int
    restarts: int


def group(candidates: Sequence[Member], current: BoardEntry | None, most: int) -> list[Member]:
    """Return the machines that should train: the largest set in which all reach each other; the head comes first.

    Machines that train already come first, then those that have waited longest; of two sets of the same size, that of
    the first machine is taken. So all machines that see the same choose the same.
    """
    place = {} if current is None else {name: index for index, name in enumerate(current.members)}
    order = sorted(candidates, key=lambda member: (place.get(member.id, len(place)), member.since, member.id))
    best: list[Member] = []
    for seed in order:
        chosen = [seed]
        for member in order:
            fits = member is not seed and member.kind == seed.kind and len(chosen) < most
            if fits and all(are_linked(member, other) for other in chosen):
                chosen.append(member)
        if len(chosen) > len(best):
            best = chosen
    return [member for member in order if member in best]


def are_linked(a: Member, b: Member) -> bool:
    """Return True if two machines reach each other."""
    return b.id in a.reaches and a.id in b.reaches


def lost(me: str, alive: Sequence[Member], current: BoardEntry) -> list[str]:
    """Return the hosts of those that train with this machine and are dead, or out of its reach."""
    by_id = {member.id: member for member in alive}
    own = by_id.get(me)
    return [
        host
        for name, host in zip(current.members, current.hosts, strict=True)
        if name != me and (name not in by_id or (own is not None and not are_linked(own, by_id[name])))
    ]


def newcomers(alive: Sequence[Member], current: BoardEntry, most: int) -> list[Member]:
    """Return the machines that could join those that train now; empty where the group would not grow."""
    chosen = group([member for member in alive if member.id not in current.left_out], current, most)
    names = {member.id for member in chosen}
    if not names.issuperset(current.members):
        return []
    return [member for member in chosen if member.id not in current.members]


def next_entry(
    alive: Sequence[Member],
    current: BoardEntry | None,
    number: int,
    rules: Rules,
    *,
    settled: bool,
    regrouping: bool = False,
    is_complete: bool = False,
    unasked: bool = False,
) -> BoardEntry | None:
    """Return the entry that should follow; None where nothing is to change, or somebody is waited for.

    alive         machines that live
    current       the entry that holds for those that are alive; None where none does
    number        of the entry that follows
    settled       no machine has come lately: fewer than the most may begin
    regrouping    those that train were asked to stop, as a machine wants to join
    is_complete   the run directory says that the run is complete
    unasked       ranks have stopped as those do whose launcher, or its agent, has died: that is nobody's wish
    """
    if current is None or current.is_over:
        chosen = group(alive, None, rules.most)
        if len(chosen) < rules.least or not (settled or len(chosen) == rules.most):
            return None
        return _start_of(chosen, BoardEntry(number, tell="starting"))
    alive = [member for member in alive if member.id not in current.left_out]
    training = [member for member in alive if member.id in current.members]
    if not training:  # all of them are gone, and nobody knows why
        chosen = group(alive, None, rules.most)
        draft = BoardEntry(number, begun=current.begun, history=current.history, tell="going on")
        return _start_of(chosen, draft) if settled and len(chosen) >= rules.least else None
    found = {m.id: m.end for m in training if m.end is not None and m.end.number == current.number}
    if not found or len(found) < len(training):  # all go on, or the others end as well within seconds
        return None
    unfit = _unfit(found, current)
    ends = [replace(end, fault=end.fault or EndCode.ERROR) if name in unfit else end for name, end in found.items()]
    gone = [host for name, host in zip(current.members, current.hosts, strict=True) if name not in _ids(training)]
    regrouping = regrouping or (unasked and bool(gone or any(end.fault for end in ends)))
    after = _judge(current, ends, gone, rules, number, regrouping=regrouping, is_complete=is_complete)
    if after.is_over and after.code >= 0:
        return after
    chosen = group([member for member in alive if member.id not in unfit], current, rules.most)
    draft = replace(after, left_out=(*current.left_out, *unfit))
    return _start_of(chosen, draft) if len(chosen) >= rules.least else None


def _unfit(ends: Mapping[str, End], current: BoardEntry) -> list[str]:
    """Return the machines that are to be left out: one that computes wrongly, or on which alone nothing starts.

    Where a run has trained before and now fails before it begins, the reason is a machine that is new.
    """
    wrong = [name for name, end in ends.items() if end.is_wrong]
    if not current.begun or any(end.begun for end in ends.values()):
        return wrong
    failed = [name for name, end in ends.items() if end.fault is None and end.code not in (EXIT_OK, EXIT_STOPPED)]
    return [*wrong, *failed] if len(failed) < len(ends) else wrong


def _ids(members: Sequence[Member]) -> Collection[str]:
    return {member.id for member in members}


def _start_of(chosen: Sequence[Member], draft: BoardEntry) -> BoardEntry:
    """Return the entry with these machines; its port is still to be chosen by the head."""
    head = chosen[0]
    seen = Counter(other.reaches[head.id] for other in chosen[1:])
    return BoardEntry(
        number=draft.number,
        members=tuple(member.id for member in chosen),
        hosts=tuple(member.host for member in chosen),
        address=seen.most_common(1)[0][0] if seen else "127.0.0.1",
        processes=head.processes,
        begun=draft.begun,
        left_out=draft.left_out,
        history=draft.history,
        restart=draft.restart,
        tell=f"{draft.tell} on {len(chosen)} machine{'s' * (len(chosen) > 1)}: {', '.join(m.host for m in chosen)}",
    )


def _judge(
    current: BoardEntry,
    ends: Sequence[End],
    gone: Sequence[str],
    rules: Rules,
    number: int,
    *,
    regrouping: bool,
    is_complete: bool,
) -> BoardEntry:
    """Return an entry that is over, or the draft of one that goes on, whose code is -1."""
    begun = current.begun or any(end.begun for end in ends)
    if is_complete or all(end.code == EXIT_OK for end in ends):
        return BoardEntry(number, code=EXIT_OK, begun=begun)
    # Where a machine is gone, exceptions of others may be the network's; a program's own would come again.
    final = [end for end in ends if end.fault is None and end.code not in (EXIT_OK, EXIT_STOPPED)]
    final = [end for end in final if end.code == EXIT_USER_ERROR or not gone]
    if final:
        return BoardEntry(number, code=final[0].code, begun=begun, tell=final[0].words)
    if any(end.code == EXIT_STOPPED for end in ends) and not regrouping:
        return BoardEntry(number, code=EXIT_STOPPED, begun=begun)
    if not gone and not any(end.fault for end in ends):
        return BoardEntry(number, code=-1, begun=begun, history=current.history, tell="a machine has come: going on")
    steps = max((end.steps for end in ends if end.steps), key=lambda pair: pair[1], default=None)
    history = (*current.history, steps)
    what, place, fault, code, words = _cause(ends, gone)
    decision = decide_restart(BoardEntry(number, history=history).steps(), rules.restarts)
    if decision.number is None:
        why = f"not started again: {decision.why_not}" if decision.why_not else ""
        return BoardEntry(number, code=code, begun=begun, tell="\n".join(filter(None, [words, why])))
    return BoardEntry(
        number,
        code=-1,
        begun=begun,
        history=history,
        restart={"restart": decision.number, "cause": fault, "reason": f"{what} ({place})" if place else what},
        tell=f"{what}{f' ({place})' if place else ''}; restart {decision.number} of {rules.restarts}",
    )


def _cause(ends: Sequence[End], gone: Sequence[str]) -> tuple[str, str, str, int, str]:
    """Return what ended a start, where, its code, the exit code and an error message: the cause, not who noticed it."""
    found = sorted((end for end in ends if end.fault), key=lambda end: end.fault == EndCode.CONNECTION_LOST)
    if gone and (not found or found[0].fault == EndCode.CONNECTION_LOST):
        what = f"{', '.join(gone)} {'is' if len(gone) == 1 else 'are'} gone: killed, frozen or cut off"
        code = found[0].code if found else 1
        return what, "", EndCode.CONNECTION_LOST, code, f"error: {what}"
    first = found[0]
    what = first.what or f"ranks ended with exit code {first.code} before training began"
    return what, first.place, str(first.fault), first.code, first.words
