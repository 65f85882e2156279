"""How often a test of faults repeats itself: a little by default, as often as it takes to be sure under `make soak`."""

from __future__ import annotations

import os

import pytest

SOAK = os.environ.get("SOAK") == "1"

only_in_soak = pytest.mark.soak  # takes minutes: see conftest.py


def rounds(short: int, soak: int) -> int:
    return soak if SOAK else short
