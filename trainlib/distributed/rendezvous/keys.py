"""Keys of its own in torch's store for each run that one process trains, such as several calls of `trainlib.fit`."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from itertools import count
from typing import Any
from urllib.parse import urlparse

from torch.distributed import PrefixStore, Store, register_rendezvous_handler, rendezvous  # type: ignore[attr-defined]

_SCHEME = "trainlaunch"
_numbers = count()


def init_method() -> str | None:
    """Return the `init_method` of this process's next group: torch's own, None, for the first one.

    Ranks leave their addresses in the store, which torch's agent keeps as long as it lives, under the same names in
    every group. In a later group a rank could read where one of an earlier group listened.
    """
    number = next(_numbers)
    if number == 1:
        register_rendezvous_handler(_SCHEME, _with_prefix)
    return f"{_SCHEME}://{number}" if number else None


def _with_prefix(url: str, timeout: timedelta, **options: Any) -> Iterator[tuple[Store, int, int]]:
    """Find the ranks as torch does by environment variables, and give their group a part of the store."""
    for store, rank, world_size in rendezvous("env://", timeout=timeout):
        yield PrefixStore(f"group {urlparse(url).netloc}", store), rank, world_size
