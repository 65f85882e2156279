"""`trainlib.fit` in a real Jupyter kernel: live progress, an interrupt that leaves a checkpoint, settings, the card."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from patience import HANG

pytestmark = pytest.mark.slow

FUNCTIONS = ("default_dtype", "num_threads", "deterministic_debug_mode", "rng_state().sum")
SETTINGS = ", ".join(f"torch.get_{function}()" for function in FUNCTIONS)
LONG = (
    "{'name': 'long', 'train': {'epochs': 10_000}, 'data': {'limit': 640}, 'tracking': {'wandb': {'mode': 'disabled'}}}"
)
SHORT = LONG.replace("'long'", "'short'").replace("'epochs': 10_000", "'epochs': 2")


class Kernel:
    """A kernel, and what it published of the cell that ran last."""

    def __init__(self, manager: Any, client: Any) -> None:
        self._manager, self._client = manager, client

    def run(self, code: str, on_message: Callable[[str], bool] = lambda kind: False) -> dict[str, list[Any]]:
        """What a cell publishes, by the kind of message; it is interrupted where the function says so, once."""
        number, found = self._client.execute(code), dict[str, list[Any]]()
        deadline = time.monotonic() + HANG
        is_interrupted = False
        while True:
            try:
                message = self._client.get_iopub_msg(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"the kernel said nothing more after {found}") from None
            if message["parent_header"].get("msg_id") != number:
                continue
            kind, content = message["msg_type"], message["content"]
            found.setdefault(kind, []).append(content)
            if not is_interrupted and on_message(kind):
                is_interrupted = True
                self._manager.interrupt_kernel()
            if kind == "status" and content["execution_state"] == "idle":
                return found


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    from jupyter_client.manager import start_new_kernel

    folder = tmp_path_factory.mktemp("notebook")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR"):
            patch.setenv(name, str(folder / name))
        manager, client = start_new_kernel(startup_timeout=HANG, cwd=str(folder))
    try:
        yield Kernel(manager, client)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def printed(found: dict[str, list[Any]]) -> str:
    return "".join(content["text"] for content in found.get("stream", []))


def test_an_interrupt_leaves_a_checkpoint_the_run_and_the_settings(kernel: Kernel) -> None:
    prepared = kernel.run(f"import torch, trainlib; torch.set_default_dtype(torch.float64); before = {SETTINGS}")
    assert "error" not in prepared
    found = kernel.run(f"run = trainlib.fit('quickstart', {LONG})", lambda kind: kind == "update_display_data")
    (error,) = found["error"]
    assert error["ename"] == "KeyboardInterrupt"
    assert "long has stopped; the same call goes on" in error["evalue"]
    assert "Warning" not in printed(found)
    assert "loss" in found["update_display_data"][-1]["data"]["text/html"]
    assert 'role="progressbar"' in found["display_data"][0]["data"]["text/html"]
    after = kernel.run(f"print(before == ({SETTINGS})); import sys; run = trainlib.open_run('long')\nrun")
    assert printed(after) == "True\n"
    (result,) = after["execute_result"]
    assert "stopped" in result["data"]["text/html"]
    kernel_folder = kernel.run("print(len(list(run.checkpoints.iterdir())), run.path.absolute())")
    number, path = printed(kernel_folder).split()
    assert int(number) >= 1
    assert Path(path).name == "long"


def test_a_finished_run_is_a_card_and_a_table(kernel: Kernel) -> None:
    """The curves stand in the one output that was written anew; no lines of progress are printed beside it."""
    found = kernel.run(f"run = trainlib.fit('quickstart', {SHORT})\nrun")
    assert "error" not in found
    assert "epoch 2/2  val" not in printed(found)
    assert "test accuracy" in printed(found)
    updates = found["display_data"] + found.get("update_display_data", [])
    assert updates[-1]["data"]["text/html"].count("<svg") == 2
    (card,) = found["execute_result"]
    assert "completed" in card["data"]["text/html"]
    assert card["data"]["text/html"].count("<svg") == 2
    assert printed(kernel.run("print(type(run.history()).__name__, len(run.history()) > 4)")) == "DataFrame True\n"
    again = kernel.run(f"trainlib.fit('quickstart', {SHORT}, 'seed=7')")
    assert "`fresh=True` to begin again" in again["error"][0]["evalue"]
