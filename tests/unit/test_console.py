"""What a person sees: a live bar in a terminal, plain lines without control codes in a file, nothing when quiet."""

from __future__ import annotations

import logging
import os
import pty
import re
import select
import sys
import time
from typing import Any

import pytest
import rich

from trainlib.runs.attempt.logs import logging_to_console
from trainlib.training.hooks.tracking import console as console_module
from trainlib.training.hooks.tracking.console import Console, fitting


def row(step: int, split: str = "train", **more: Any) -> dict[str, Any]:
    numbers = {"loss": 1.0 / step, "accuracy": 0.5, "count": 64, "lr": 0.1, "images_per_second": 1000.0}
    return {"time": "now", "step": step, "epoch": 1, "split": split, **numbers, **more}


def show(console: Console) -> None:
    """Two steps with a row between them, and the end of an epoch."""
    console.step(5)
    console.on_row(row(5, scope="step"))
    time.sleep(0.02)
    console.step(12)
    console.on_row(row(10, scope="epoch"))
    console.on_row(row(10, "val"))
    console.close()


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console_module, "BAR_INTERVAL", 0.01)
    monkeypatch.setattr(console_module, "LINE_INTERVAL", 0.01)


def test_plain_lines_where_there_is_no_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    with logging_to_console():
        show(Console(total_steps=20, steps_per_epoch=10, step=0))
    inside, *ends = capfd.readouterr().out.splitlines()
    numbers = r"loss 0\.2000  accuracy 0\.5000  lr 0\.1  1,000 images/s"
    assert re.fullmatch(rf"epoch 2/2  step 12/20  {numbers}(  0:00:0\d left)?", inside), inside
    assert ends == [
        "epoch 1/2  train  loss 0.1000  accuracy 0.5000  lr 0.1  1,000 images/s",
        "epoch 1/2  val    loss 0.1000  accuracy 0.5000",
    ]


def test_lines_come_every_few_seconds_and_no_more(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setattr(console_module, "LINE_INTERVAL", 5.0)
    now = 100.0
    monkeypatch.setattr("trainlib.training.hooks.tracking.console.time.monotonic", lambda: now)
    console = Console(total_steps=1000, steps_per_epoch=1000, step=0)
    with caplog.at_level(logging.INFO, "trainlib"):
        for step in range(1, 201):
            now += 0.125
            console.step(step)
    assert len(caplog.records) == 4  # in 25 seconds, the first five of which are silent
    assert caplog.records[-1].message == "epoch 1/1  step  161/1000  0:01:45 left"


class Minute:
    """What the last minute was like, as a pulse tells it."""

    def __init__(self, **live: float):
        self._live = live

    def now(self) -> dict[str, float]:
        return self._live


@pytest.mark.parametrize(
    ("age", "live", "told"),
    [
        (4, {"loss": 0.25, "images_per_second": 50}, "loss 0.2000  accuracy 0.5000  lr 0.1  1,000 images/s"),
        (6, {"loss": 0.25, "images_per_second": 50}, "loss 0.2500  50 images/s"),
        (59, {"images_per_second": 50}, "loss 0.2000  accuracy 0.5000  lr 0.1  1,000 images/s"),
        (61, {"images_per_second": 50}, "50 images/s"),
    ],
)
def test_numbers_of_an_old_row_are_not_those_of_the_moment(
    age: float, live: dict[str, float], told: str, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    now = 100.0
    monkeypatch.setattr("trainlib.training.hooks.tracking.console.time.monotonic", lambda: now)
    pulse: Any = Minute(**live)
    console = Console(total_steps=1000, steps_per_epoch=1000, step=0, pulse=pulse)
    console.step(4)
    console.on_row(row(5, scope="step"))
    now += age
    with caplog.at_level(logging.INFO, "trainlib"):
        console.step(6)
    assert re.fullmatch(rf"epoch 1/1  step    6/1000  {re.escape(told)}  \S+ left", caplog.records[-1].message)


def in_terminal(width: int, kind: str = "xterm", *, quiet: bool = False) -> str:
    """What a terminal of this width is sent."""
    master, slave = pty.openpty()
    stdout, environ = sys.stdout, dict(os.environ)
    os.environ |= {"TERM": kind}
    try:
        with open(slave, "w", closefd=True) as terminal, logging_to_console():
            sys.stdout = terminal
            rich.reconfigure(width=width)  # which looks at the terminal
            show(Console(total_steps=20, steps_per_epoch=10, step=0, quiet=quiet))
            terminal.flush()
            sent = b""
            while select.select([master], [], [], 0.1)[0]:
                sent += os.read(master, 100_000)
            return sent.decode()
    finally:
        sys.stdout = stdout
        os.environ.clear()
        os.environ.update(environ)
        rich.reconfigure()
        os.close(master)


def without_codes(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_a_bar_in_a_terminal() -> None:
    """It has all numbers, makes way for the lines of an epoch, and is gone at the end."""
    sent = in_terminal(120)
    plain = without_codes(sent)
    assert re.search(r"epoch 2/2 .* 12/20 .* left loss 0\.2000  accuracy 0\.5000  lr 0\.1  1,000 images/s", plain), (
        plain
    )
    assert "epoch 1/2  val    loss 0.1000  accuracy 0.5000" in plain
    assert sent.rstrip().endswith("\x1b[2K")  # the line of the bar is erased


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_the_bar_stays_on_one_line(width: int) -> None:
    lines = re.split(r"[\r\n]+", without_codes(in_terminal(width)))
    bars = [line for line in lines if line.startswith("epoch") and "20" in line and "left" in line]
    assert bars
    assert max(map(len, bars)) <= width
    assert all("…" not in line for line in bars)


def test_a_dumb_terminal_gets_plain_lines() -> None:
    sent = in_terminal(80, "dumb")
    assert "step 12/20" in sent
    assert "\x1b" not in sent


def test_numbers_that_do_not_fit_are_left_out() -> None:
    numbers = "loss 1.0000  accuracy 0.5000  lr 0.1"
    assert fitting(numbers, 100) == numbers
    assert fitting(numbers, 30) == "loss 1.0000  accuracy 0.5000"
    assert fitting(numbers, 5) == ""


def test_a_quiet_console_says_nothing(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    """But rank 0's log has it, on level DEBUG."""
    with caplog.at_level(logging.DEBUG, "trainlib"), logging_to_console():
        show(Console(total_steps=20, steps_per_epoch=10, step=0, quiet=True))
    assert capfd.readouterr().out == ""
    assert {record.levelname for record in caplog.records} == {"DEBUG"}
    assert len(caplog.records) == 2


def test_it_costs_less_than_a_percent_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a step of 1 ms, when nothing is to be shown, in CPU time: what is shown comes at most twice a second."""
    monkeypatch.setattr(console_module, "LINE_INTERVAL", 1000.0)
    console = Console(total_steps=10**6, steps_per_epoch=10, step=0)
    seconds = []
    for first in range(0, 20_000, 1000):  # the quickest thousand: a loaded machine slows others
        began = time.process_time()
        for step in range(first, first + 1000):
            console.step(step)
        seconds.append((time.process_time() - began) / 1000)
    assert min(seconds) < 0.01e-3
