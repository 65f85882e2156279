"""A place in a notebook's output that is written anew as often as one likes."""

from __future__ import annotations

import importlib
import sys
from typing import Any


def in_notebook() -> bool:
    """Return True inside a Jupyter kernel, which shows HTML; IPython in a terminal does not."""
    ipython = sys.modules.get("IPython")  # a kernel has imported it
    shell = ipython.get_ipython() if ipython is not None and hasattr(ipython, "get_ipython") else None
    return getattr(shell, "kernel", None) is not None


class Display:
    """One output of the running cell, with HTML that `show` replaces."""

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, html: str) -> None:
        """Show this in place of what was shown before."""
        ipython = importlib.import_module("IPython.display")
        shown = ipython.HTML(html)
        if self._handle is None:
            self._handle = ipython.display(shown, display_id=True)
        else:
            self._handle.update(shown)
