"""Rules on how a step is computed, that join several values."""

from __future__ import annotations

from collections.abc import Iterator

from trainlib.config.schema.sections import Config
from trainlib.errors import Mistake


def audit_needs_reproducible_kernels(config: Config) -> Iterator[Mistake]:
    """Check that a second computation can be compared with the first."""
    if config.train.audit is not None and config.train.reproducibility == "fast":
        rule = f"got {config.train.audit}, must be null: kernels of train.reproducibility fast do not repeat their bits"
        yield Mistake("train.audit", rule)
