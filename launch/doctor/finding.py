"""What a check found, and how that is shown."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from trainlib.runs.tables import hang

WIDTH = 80
_VERDICT_WIDTH, _TOPIC_WIDTH = 9, 12


class Verdict(StrEnum):
    """ok: as it should be; note: works, with a limit worth knowing; problem: something will fail."""

    OK = "ok"
    NOTE = "note"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    """One row: about what, the verdict, the facts, and what to do; advice is empty where there is nothing to do."""

    topic: str
    verdict: Verdict
    text: str
    advice: str = ""

    def asdict(self) -> dict[str, str]:
        return {"topic": self.topic, "verdict": str(self.verdict), "text": self.text, "advice": self.advice}


def ok(topic: str, text: str) -> Finding:
    return Finding(topic, Verdict.OK, text)


def note(topic: str, text: str, advice: str = "") -> Finding:
    return Finding(topic, Verdict.NOTE, text, advice)


def problem(topic: str, text: str, advice: str) -> Finding:
    return Finding(topic, Verdict.PROBLEM, text, advice)


def row(finding: Finding, width: int = WIDTH) -> str:
    """The finding in columns, its words wrapped to the width; what to do stands below, behind an arrow."""
    indent = " " * (_VERDICT_WIDTH + _TOPIC_WIDTH)
    head = f"{finding.verdict:<{_VERDICT_WIDTH}}{finding.topic:<{_TOPIC_WIDTH}}"
    advice = [hang(f"{indent}-> ", finding.advice, width)] if finding.advice else []
    return "\n".join([hang(head, finding.text, width), *advice])


def closing(findings: list[Finding]) -> str:
    """How many there are of what matters: `1 problem, 2 notes`."""
    counts = [sum(finding.verdict is verdict for finding in findings) for verdict in (Verdict.PROBLEM, Verdict.NOTE)]
    words = ("problem", "note")
    said = [f"{n} {word}{'s' * (n > 1)}" for n, word in zip(counts, words, strict=True) if n]
    return ", ".join(said if counts[0] else ["no problems", *said])
