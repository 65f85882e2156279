"""A real Chromium without a window, driven through its own protocol over two pipes.

Protocol: https://chromedevtools.github.io/devtools-protocol/ (messages are JSON, each ended by a zero byte).
"""

from __future__ import annotations

import base64
import json
import os
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from patience import HANG

PATIENCE = HANG  # for one answer


class Page:
    """One tab. It notes all that the page asks for, and all that goes wrong in it."""

    def __init__(self, to_browser: int, from_browser: int):
        self._to_browser, self._from_browser = to_browser, from_browser
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        self._events: set[str] = set()
        self.requests: list[str] = []
        self.errors: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol; its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._to_browser, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next_message()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return dict(answer["result"])

    def open(self, path: Path | str, *, width: int = 1240, height: int = 900, dark: bool = False) -> None:
        """Load a file or an address, on a screen of this size, as somebody who prefers light or dark."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self._events.clear()
        self.call("Page.navigate", url=path if isinstance(path, str) else path.resolve().as_uri())
        while "Page.loadEventFired" not in self._events:
            self._next_message()

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def point_at(self, selector: str, across: float = 0.5) -> None:
        """Move the pointer over an element, this part of its width from its left."""
        self.evaluate(f"document.querySelector({selector!r}).scrollIntoView({{block: 'center'}})")
        box = f"document.querySelector({selector!r}).getBoundingClientRect().toJSON()"
        area = self.evaluate(box)
        x, y = area["x"] + across * area["width"], area["y"] + area["height"] / 2
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def press(self, key: str) -> None:
        """Press and release a key on what has the focus."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key)

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """A PNG of what is on the screen, or of the whole page."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))

    def _next_message(self) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE
        while b"\0" not in self._buffer:
            readable, _, _ = select.select([self._from_browser], [], [], max(0.0, deadline - time.monotonic()))
            assert readable, f"the browser said nothing for {PATIENCE} s"
            chunk = os.read(self._from_browser, 1 << 16)
            assert chunk, "the browser has ended"
            self._buffer += chunk
        text, self._buffer = self._buffer.split(b"\0", 1)
        message: dict[str, Any] = json.loads(text)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, event: str, details: dict[str, Any]) -> None:
        self._events.add(event)
        if event == "Network.requestWillBeSent":
            self.requests.append(details["request"]["url"])
        elif event == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(details["exceptionDetails"]))
        elif event == "Runtime.consoleAPICalled":
            self.errors.append(f"console: {details['args']}")
        elif event == "Log.entryAdded":
            self.errors.append(f"log: {details['entry']}")


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """A browser of its own for as long as the block lasts; `profile` is an empty folder for what it writes."""
    browser_reads, to_browser = os.pipe()
    from_browser, browser_writes = os.pipe()
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
    options += ["--disable-background-networking", "--disable-component-update", f"--user-data-dir={profile}"]
    shell = f'exec chromium "$@" 3<&{browser_reads} 4>&{browser_writes}'  # where it looks for its pipes
    process = subprocess.Popen(
        ["bash", "-c", shell, "chromium", *options, "--remote-debugging-pipe", "about:blank"],
        pass_fds=(browser_reads, browser_writes),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(browser_reads)
    os.close(browser_writes)
    try:
        yield Page(to_browser, from_browser)
    finally:
        os.close(to_browser)  # it ends when its pipe does
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(from_browser)
