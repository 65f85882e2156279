"""Findings of checks, and their text."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from trainlib.runs.terminal.tables import hang

WIDTH = 80
_VERDICT_WIDTH, _TOPIC_WIDTH = 9, 12


class Verdict(StrEnum):
    """The verdict of a check.

    ok: as it should be; note: works, with a limit worth knowing; problem: something will fail
    """

    OK = "ok"
    NOTE = "note"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    """One row of the output: topic, verdict, facts, and advice, which is empty where there is nothing to do."""

    topic: str
    verdict: Verdict
    text: str
    advice: str = ""

    def asdict(self) -> dict[str, str]:
        """Return the finding as plain text by field, for JSON."""
        return {"topic": self.topic, "verdict": str(self.verdict), "text": self.text, "advice": self.advice}


def ok(topic: str, text: str) -> Finding:
    """Return a finding that all is as it should be."""
    return Finding(topic, Verdict.OK, text)


def note(topic: str, text: str, advice: str = "") -> Finding:
    """Return a finding about a limit that is worth knowing."""
    return Finding(topic, Verdict.NOTE, text, advice)


def problem(topic: str, text: str, advice: str) -> Finding:
    """Return a finding about something that will fail."""
    return Finding(topic, Verdict.PROBLEM, text, advice)


def row(finding: Finding, width: int = WIDTH) -> str:
    """Return the finding in columns, wrapped to the width; advice stands below, behind an arrow."""
    indent = " " * (_VERDICT_WIDTH + _TOPIC_WIDTH)
    head = f"{finding.verdict:<{_VERDICT_WIDTH}}{finding.topic:<{_TOPIC_WIDTH}}"
    advice = [hang(f"{indent}-> ", finding.advice, width)] if finding.advice else []
    return "\n".join([hang(head, finding.text, width), *advice])


def summary(findings: list[Finding]) -> str:
    """Return the number of problems and notes in words: `1 problem, 2 notes`."""
    counts = [sum(finding.verdict is verdict for finding in findings) for verdict in (Verdict.PROBLEM, Verdict.NOTE)]
    words = ("problem", "note")
    said = [f"{n} {word}{'s' * (n > 1)}" for n, word in zip(counts, words, strict=True) if n]
    return ", ".join(said if counts[0] else ["no problems", *said])
