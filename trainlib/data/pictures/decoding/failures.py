"""The error that names pictures that cannot be decoded."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from trainlib.errors import DataError
from trainlib.runs.terminal.printable import printable

NAMED_AT_MOST = 10

Failure = tuple[str, str]  # path, reason

package_logger = logging.getLogger("trainlib")  # to which the handlers of a run's log are added


def reason_of(error: Exception) -> str:
    """Return why a picture cannot be decoded."""
    return f"{error or type(error).__name__}"


def damaged_images(failures: Sequence[Failure]) -> DataError:
    """Return the error that names images that cannot be decoded, with the reasons.

    Of many, a message names the first ones, and the log all: of a refused start, logs/refused.log in the run directory.
    Where there is no log, the message names all.
    """
    lines = [f"  {printable(path)}: {printable(reason)}" for path, reason in failures]
    what = "1 image" if len(failures) == 1 else f"{len(failures)} images"
    if len(lines) > NAMED_AT_MOST and any(handler.level <= logging.DEBUG for handler in package_logger.handlers):
        package_logger.debug("all %s that cannot be decoded:\n%s", what, "\n".join(lines))
        lines[NAMED_AT_MOST:] = [f"  ... and {len(failures) - NAMED_AT_MOST} more: logs/ of the run names all"]
    return DataError("\n".join([f"{what} cannot be decoded; delete, move or export them again:", *lines]))
