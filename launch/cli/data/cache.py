"""The commands `launch cache list` and `launch cache remove`."""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING

import click

from trainlib.errors import DataError, UserError

if TYPE_CHECKING:
    from trainlib.runs.machine.cache_folder import CachedData
    from trainlib.runs.terminal.tables import Table

DAY = 86_400  # seconds


@click.group()
def cache() -> None:
    """List and remove decoded data sets that are kept on this machine."""


@cache.command("list")
def list_cache() -> int:
    """List what is kept of which data sets, least recently used first, and the room it takes."""
    from trainlib.runs.machine.cache_folder import cache_folder, cached_data
    from trainlib.runs.terminal.tables import show

    folder = cache_folder()
    cached = cached_data(folder)
    if not cached:
        show(f"nothing in {folder}")
        return 0
    total = sum(one.size for one in cached)
    what = "1 data set" if len(cached) == 1 else f"{len(cached)} data sets"
    show(_table(cached), f"{what}, {amount(total)} in {folder}")
    return 0


@cache.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--older-than", type=click.FloatRange(min=0), metavar="DAYS", help="What was not used for so many days.")
@click.option("--all", "everything", is_flag=True, help="Whatever is there.")
def remove(names: tuple[str, ...], older_than: float | None, everything: bool) -> int:
    """Remove decoded data sets: by NAME, of which the beginning is enough, by --older-than, or all.

    Nothing is lost: what a later run needs it decodes again. A run that uses one of them goes on.
    """
    from trainlib.runs.machine.cache_folder import cache_folder, cached_data, chosen
    from trainlib.runs.machine.cache_folder import remove as remove_one

    if (bool(names) + (older_than is not None) + everything) != 1:
        raise UserError("launch cache remove: give names, --older-than DAYS or --all; one of the three")
    folder = cache_folder()
    cached = cached_data(folder)
    if names:
        cached = chosen(cached, names)
    elif older_than is not None:
        limit = time.time() - older_than * DAY
        cached = [one for one in cached if one.used < limit]
    freed, busy = 0, []
    for one in cached:
        try:
            removed = remove_one(one)
        except OSError as error:
            raise DataError(f"{one.name} cannot be removed: {error}") from error
        if removed:
            freed += one.size
        else:
            busy.append(one.name)
    click.echo(f"removed {len(cached) - len(busy)} of {len(cached)}, {amount(freed)}, from {folder}")
    if busy:
        raise UserError(f"{', '.join(busy)}: being prepared by a process, so it stays; stop that run first")
    return 0


def amount(num_bytes: int) -> str:
    """Return a number of bytes for people."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes / 1e3:.0f} kB"


def _table(cached: list[CachedData]) -> Table:
    from trainlib.runs.terminal.tables import Column, Table

    return Table(
        [
            Column("NAME", [one.name for one in cached]),
            Column("SIZE", [amount(one.size) for one in cached], on_right=True),
            Column("LAST USED", [f"{datetime.fromtimestamp(one.used):%Y-%m-%d %H:%M}" for one in cached]),
            Column("KEPT", [one.kept for one in cached]),
            Column("DATA", [one.data or "" for one in cached]),
        ]
    )
