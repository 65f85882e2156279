"""What machines write about themselves and about a run, as plain values that become JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

from trainlib.runs.attempt.step_file import Steps

T = TypeVar("T")


@dataclass(frozen=True)
class End:
    """How one machine's ranks ended.

    number     of the entry by which they were started
    code       exit code of this machine's launcher, if the run ends with it
    fault      the fault of the machine that ended them, as a code; None where another start would not help
    what       who failed and how; `place`: host and log; `words`: the same as an error message
    steps      [step that a rank began from, last step that it finished], of the rank that failed or came furthest
    begun      whether the attempt had begun
    is_wrong   whether a device of this machine computes wrongly
    """

    number: int
    code: int
    fault: str | None = None
    what: str = ""
    place: str = ""
    words: str = ""
    steps: tuple[int, int] | None = None
    begun: bool = False
    is_wrong: bool = False


@dataclass(frozen=True)
class Member:
    """A machine that takes part, or wants to, as its own file says.

    id          no other start of any launcher has it
    since       when its launcher was started, by its own clock: only for an order
    addresses   at which it may be reached, and `port` its beacon's there
    processes   ranks on it
    kind        what must be the same on all: code and configuration, as a digest
    beat        grows as long as it lives
    end         how its ranks ended most recently; None where none have
    reaches     other machines that have answered it lately, by id, each with the address that did
    """

    id: str
    host: str
    since: float
    addresses: tuple[str, ...]
    port: int
    processes: int
    kind: str
    beat: int = 0
    end: End | None = None
    reaches: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class BoardEntry:
    """What all machines are to do from now on. Entries are numbered; of each number there is one, and the newest holds.

    members    ids of the machines that train, the first one the head; empty where the run is over
    hosts      their names
    address    of the head, as most others reach it, and a port there that is free
    processes  on each machine
    begun      whether an attempt has begun: then the run directory's own configuration is trained on
    left_out   ids of machines that are not to take part any more: a device computes wrongly, or nothing starts there
    history    how far each start has come that a fault has ended, oldest first
    restart    what the next attempt's start line says of the end before; empty for a first start
    tell       what people are told of it
    code       exit code, where the run is over
    """

    number: int
    members: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    address: str = ""
    port: int = 0
    processes: int = 1
    begun: bool = False
    left_out: tuple[str, ...] = ()
    history: tuple[tuple[int, int] | None, ...] = ()
    restart: Mapping[str, Any] = field(default_factory=dict)
    tell: str = ""
    code: int = 0

    @property
    def is_over(self) -> bool:
        """Return True where nobody trains any more."""
        return not self.members

    def steps(self) -> list[Steps | None]:
        """Return how far each start came that a fault has ended."""
        return [Steps(*pair) if pair else None for pair in self.history]


def to_text(value: Member | BoardEntry) -> str:
    """Return a member or an entry as JSON."""
    return json.dumps(asdict(value)) + "\n"


def member_from(text: str) -> Member | None:
    """Return the member that a text describes; None for any other text, as of another version."""
    values = _values(Member, text)
    try:
        if values.get("end") is not None:
            end = dict(values["end"])
            values["end"] = End(**end | {"steps": _pair(end.get("steps"))})
        values["addresses"] = tuple(map(str, values["addresses"]))
        return Member(**values)
    except (KeyError, TypeError, ValueError):
        return None


def entry_from(text: str) -> BoardEntry | None:
    """Return the entry that a text describes; None for any other text."""
    values = _values(BoardEntry, text)
    try:
        values["members"], values["hosts"] = tuple(values["members"]), tuple(values["hosts"])
        values["left_out"] = tuple(values["left_out"])
        values["history"] = tuple(map(_pair, values["history"]))
        return BoardEntry(**values)
    except (KeyError, TypeError, ValueError):
        return None


def _values(kind: type[Any], text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    names = {each.name for each in fields(kind)}
    return {name: found[name] for name in names & found.keys()} if isinstance(found, dict) else {}


def _pair(value: Sequence[int] | None) -> tuple[int, int] | None:
    return None if value is None else (int(value[0]), int(value[1]))
