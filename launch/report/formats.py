"""Numbers, sizes and durations as the page writes them. None stays None: the page shows a dash for it."""

from __future__ import annotations


def number(value: float | None, digits: int = 4) -> str | None:
    """Return `0.7408`."""
    return None if value is None else f"{value:.{digits}f}"


def count(value: int | None) -> str | None:
    """Return `12,345`."""
    return None if value is None else f"{value:,}"


def bytes_text(size: int) -> str | None:
    """Return `583 kB`, `1.2 GB`; None for 0, the size of a checkpoint whose files are not known."""
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= limit:
            return f"{size / limit:.3g} {unit}"
    return f"{size} B" if size else None


def duration(seconds: float | None) -> str | None:
    """Return `48 s`, `3 min 5 s`, `2 h 7 min`."""
    if seconds is None:
        return None
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
