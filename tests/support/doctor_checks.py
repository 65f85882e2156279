"""The verdicts of `launch doctor`'s checks, and a key that must never be shown."""

from __future__ import annotations

from collections.abc import Iterator

from launch.doctor.finding import Finding

CANARY = "canary-0123456789abcdef0123456789abcdef0123"


def verdicts(findings: Iterator[Finding]) -> list[tuple[str, str]]:
    return [(finding.topic, str(finding.verdict)) for finding in findings]
