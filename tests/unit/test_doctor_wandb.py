"""`launch doctor` on W&B: the login, the server, and the clock beside the server's."""

from __future__ import annotations

import http.server
import re
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path

import pytest
import ranks
from doctor_checks import CANARY, verdicts

from launch.doctor import wandb_service
from launch.doctor.finding import Verdict


@pytest.fixture
def server() -> Iterator[Callable[[float], str]]:
    """Starts a server whose clock is off by so many seconds, and gives its address."""
    started: list[http.server.HTTPServer] = []

    def start(skew: float) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.send_response_only(404)
                self.send_header("Date", formatdate(time.time() + skew, usegmt=True))
                self.end_headers()

            def log_message(self, *arguments: object) -> None: ...

        started.append(http.server.HTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=started[0].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{started[0].server_port}"

    yield start
    for each in started:
        each.shutdown()
        each.server_close()


def test_wandb_login_and_server(
    server: Callable[[float], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", server(0.0))
    assert verdicts(wandb_service.check_wandb()) == [("W&B", "note"), ("W&B server", "ok")]
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1\n  login user\n  password {CANARY}\n")
    (tmp_path / "netrc").chmod(0o600)
    found = list(wandb_service.check_wandb())
    assert [finding.verdict for finding in found] == [Verdict.OK, Verdict.OK]
    assert f"key in {tmp_path}/netrc" in found[0].text
    monkeypatch.setenv("WANDB_API_KEY", CANARY)
    found += wandb_service.check_wandb()
    assert "key in WANDB_API_KEY" in found[2].text
    assert CANARY not in repr(found)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{ranks.free_port()}")
    dead = list(wandb_service.check_wandb())[1]
    assert dead.verdict is Verdict.NOTE
    assert "Connection refused" in dead.text
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert verdicts(wandb_service.check_wandb()) == [("W&B", "ok")]


def test_a_clock_that_is_an_hour_off(server: Callable[[float], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", server(3600.0))
    finding = list(wandb_service.check_wandb())[1]
    assert finding.verdict is Verdict.NOTE
    seconds = re.search(r"this machine's clock is (-\d+) s off", finding.text)
    assert seconds is not None
    assert abs(int(seconds[1]) + 3600) <= 30  # whole seconds, and however long the answer took
