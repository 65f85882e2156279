"""Exceptions that this software raises on purpose, and the exit code of each.

TrainlaunchError                exit 1
├── UserError                   exit 2   the user's mistake: one message, with the fix, never a traceback
│   ├── ConfigError                      mistakes in configuration files or overrides, all at once
│   ├── DataError                        images or folders that are missing, damaged or of the wrong form
│   ├── WeightsError                     a weights file that does not exist or does not fit the model
│   ├── CheckpointError                  a named checkpoint that is missing, damaged or of another run
│   └── RunDirectoryError                a run directory that is in use, finished, different or not writable
├── NonFiniteError              exit 1   a loss or gradient is infinite or not a number: its update was not applied
├── DeviceLostError             exit 71  the device does not answer, or says itself that it is broken
├── RanksDifferError            exit 72  ranks hold other bits, though all computed the same: a device computes wrongly
├── WrongDeviceError            exit 74  a device computed other bits than two others did (train.audit)
├── ConnectionLostError         exit 76  another rank ended: the cause is in that rank's log
└── StoppedError                exit 75  a stop was asked for before training could start: run again to continue
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass

EXIT_OK = 0
EXIT_FAILURE = 1
EXIT_USER_ERROR = 2
EXIT_DEVICE_LOST = 71  # EX_OSERR of sysexits.h; here and in the next three, the machine is at fault
EXIT_RANKS_DIFFER = 72
EXIT_HANG = 73  # no step was finished for `train.hang_seconds`
EXIT_WRONG_DEVICE = 74
EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: checkpointed and stopped; run again to continue
EXIT_CONNECTION_LOST = 76  # EX_PROTOCOL: another rank failed, and this one only noticed
EXIT_PORT_TAKEN = 98  # EADDRINUSE: rank 0 could not listen at the port that it was given
EXIT_INTERRUPTED = 130  # 128 + SIGINT


class TrainlaunchError(Exception):
    """Base class of all exceptions raised on purpose; `exit_code` is the exit code of a process that it ends."""

    exit_code = EXIT_FAILURE


class UserError(TrainlaunchError):
    """A mistake of the user; the message names the value, the rule and the fix."""

    exit_code = EXIT_USER_ERROR


def not_permitted(error: OSError) -> str:
    """Return what a user can do about a file or folder that may not be read or written."""
    name = f"{error.filename}: " if error.filename is not None else ""
    return f"{name}{error.strerror or error}: change its owner or permissions, or start as a user who has them"


def not_written(path: object, error: OSError) -> str:
    """Return that a run cannot be written there, and what a user can do about the reason."""
    remedy = "change to a folder that you may write to, or mend its permissions"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = "make room there, or change to a folder on another disk"
    return f"{path}: cannot be written ({error.strerror or error}); {remedy}"


@dataclass(frozen=True)
class Mistake:
    """One mistake in a configuration.

    key     dotted path of the key, such as `optimizer.lr`; empty for a whole file
    rule    one sentence that says what was found and what is allowed
    where   `configs/x.yaml line 14` or `command line`; empty if unknown
    """

    key: str
    rule: str
    where: str = ""

    def __str__(self) -> str:
        """Return the mistake as one line: key, rule and place."""
        text = f"{self.key}: {self.rule}" if self.key else self.rule
        return f"{text} ({self.where})" if self.where else text


class ConfigError(UserError):
    """All mistakes of a configuration together, in one message."""

    def __init__(self, mistakes: Sequence[Mistake]):
        assert mistakes, "a ConfigError needs at least one mistake"
        self.mistakes = tuple(mistakes)
        if len(mistakes) == 1:
            text = str(mistakes[0])
        else:
            text = f"{len(mistakes)} mistakes in the configuration:\n" + "\n".join(f"  {m}" for m in mistakes)
        super().__init__(text)


class DataError(UserError):
    """Images or folders that are missing, damaged or of the wrong form."""


class WeightsError(UserError):
    """A weights file that does not exist or does not fit the model."""


class CheckpointError(UserError):
    """A named checkpoint that is missing, damaged or of another run."""


class RunDirectoryError(UserError):
    """A run directory that is in use, finished, of another configuration or not writable."""


class NonFiniteError(TrainlaunchError):
    """A loss or gradient that is infinite or not a number; the update of that step was not applied."""


class DeviceLostError(TrainlaunchError):
    """A device that does not answer any more, or that reports an error of its own memory or links."""

    exit_code = EXIT_DEVICE_LOST


class RanksDifferError(TrainlaunchError):
    """Ranks that hold different bits though they computed the same: a fault of one of their devices."""

    exit_code = EXIT_RANKS_DIFFER


class WrongDeviceError(TrainlaunchError):
    """A device whose computation is not what others get from the same input: nothing of that step was applied.

    rank    of the process on that device; None where it is not known which of two devices is wrong
    uuid    of a GPU
    """

    exit_code = EXIT_WRONG_DEVICE

    def __init__(self, message: str, rank: int | None = None, uuid: str | None = None):
        super().__init__(message)
        self.rank, self.uuid = rank, uuid


class ConnectionLostError(TrainlaunchError):
    """A failed collective operation because another rank ended; the cause is in that rank's log."""

    exit_code = EXIT_CONNECTION_LOST


class StoppedError(TrainlaunchError):
    """A request to stop that came before training could start; nothing is lost, run again to continue."""

    exit_code = EXIT_STOPPED
