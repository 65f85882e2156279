"""`accelerate launch` that reports how its ranks ended in JSON, for a program to read, instead of on standard error.

    python -m trainlib.distributed.rendezvous.agent DESCRIPTOR --multi_gpu ... -m trainlib.train CONFIG

DESCRIPTOR is the number of an open file descriptor. Each line written to it is one JSON object:

    {"log": TEXT}       lines that torch's elastic agent logs, and the traceback of the exception that ended it
    {"closing": PID}    the agent asks this rank to end, because another one has failed
    {"failures": [{"rank": RANK, "exit_code": CODE, "pid": PID}, ...]}
                        all ranks have ended, and these failed; the one that was observed first comes first
    {"waiting": BOOL}   whether the other machines are waited for
    {"error": TEXT}     why no rank was started, for the user

Where there are several machines, TRAINLAUNCH_RUN_DIRECTORY names the run directory, whose secret they must know.
What the ranks print is not touched.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import traceback
from argparse import Namespace
from contextlib import suppress
from pathlib import Path
from typing import Any

from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from trainlib.distributed.rendezvous.gathering import Machine
from trainlib.distributed.rendezvous.handler import BACKEND, register
from trainlib.errors import TrainlaunchError
from trainlib.runs.files.scratch import make_scratch

# How torch tells that it sends SIGTERM to a rank. It is only logged, and torch waits 30 s before it raises anything.
_CLOSING_MESSAGE = "Sending process %s closing signal"


class _ReportHandler(logging.Handler):
    """Writes each log record of torch's elastic agent to the report."""

    def __init__(self, descriptor: int):
        super().__init__()
        self._descriptor = descriptor

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record, and the process that it says is asked to end."""
        _write(self._descriptor, log=self.format(record) + "\n")
        if str(record.msg).startswith(_CLOSING_MESSAGE) and isinstance(record.args, tuple):
            _write(self._descriptor, closing=record.args[0])


def main() -> None:
    """Run the ranks to their end; exit with 0, or with 1 if one failed or could not be started."""
    descriptor = int(sys.argv[1])
    handler = _ReportHandler(descriptor)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("torch.distributed")
    logger.handlers, logger.propagate = [handler], False
    scratch = make_scratch(in_memory=False)  # for torch's folders, which it leaves behind when it is killed
    if scratch is not None:
        tempfile.tempdir = str(scratch.path)
    try:
        options = launch_command_parser().parse_args(sys.argv[2:])
        _meet(options, descriptor)
        launch_command(options)
    except TrainlaunchError as error:
        _write(descriptor, error=str(error))
        sys.exit(error.exit_code)
    except Exception as error:  # noqa: BLE001  a launcher reads it, whatever it is
        _write(descriptor, log=traceback.format_exc())
        if isinstance(error, ChildFailedError):
            _write(descriptor, failures=_failures(error))
        sys.exit(1)
    finally:
        if scratch is not None:
            scratch.remove()


def _meet(options: Namespace, descriptor: int) -> None:
    """Gather with the other machines, and have `accelerate launch` use the store that was opened for that."""
    machine = Machine(
        rank=int(options.machine_rank),
        count=int(options.num_machines),
        processes=int(options.num_processes),
        run_id=os.environ.get("PET_RDZV_ID", ""),
    )
    directory = os.environ.pop("TRAINLAUNCH_RUN_DIRECTORY", None)
    head = (str(options.main_process_ip), int(options.main_process_port))
    _write(descriptor, waiting=machine.count > 1)
    address = register(machine, head, Path(directory) if directory else None, _say)
    _write(descriptor, waiting=False)
    options.rdzv_backend, options.rdzv_endpoint = BACKEND, f"{address[0]}:{address[1]}"
    options.main_process_port = 0  # which Accelerate would find in use


def _say(line: str) -> None:
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def _failures(error: ChildFailedError) -> list[dict[str, int]]:
    failures = sorted(error.failures.items(), key=lambda item: item[1].timestamp)
    return [{"rank": rank, "exit_code": failure.exitcode, "pid": failure.pid} for rank, failure in failures]


def _write(descriptor: int, **line: Any) -> None:
    with suppress(OSError):  # the launcher may have been killed: the ranks must be ended all the same
        os.write(descriptor, (json.dumps(line) + "\n").encode())


if __name__ == "__main__":
    main()
