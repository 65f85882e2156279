"""How busy this machine's GPUs are, asked on a thread of its own, so that neither a step nor a lease waits for it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from trainlib.runs.files.json_records import Record
from trainlib.runs.machine.gpus import gpu_loads
from trainlib.training.hooks import Hook

if TYPE_CHECKING:
    from trainlib.training.trainer import Trainer

EVERY = 10.0  # seconds between two questions


class GpuLoad(Hook):
    """Asks the driver's program every few seconds while a run trains; `newest` is what it said last."""

    def __init__(self) -> None:
        self.newest: list[Record] = []
        self._over = threading.Event()

    def on_start(self, trainer: Trainer) -> None:
        """Begin to ask."""
        threading.Thread(target=self._ask, name="GPU load", daemon=True).start()

    def close(self) -> None:
        """Ask no more; an answer that is under way is not waited for."""
        self._over.set()

    def _ask(self) -> None:
        while not self._over.is_set():
            self.newest = gpu_loads()
            if not self.newest:
                return  # there is no such program, or it does not work
            self._over.wait(EVERY)
