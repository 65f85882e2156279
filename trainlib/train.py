"""The training program: `python -m trainlib.train CONFIG... [key=value ...] [--code FILE.py] [--fresh] [--resume ...]`.

It is the same program for a single process and for each rank under `accelerate launch` or `torchrun`. Mistakes of the
user are reported before torch is imported, where that is possible.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trainlib.config import AfterConfig, Config, keep_older_values
from trainlib.config.load import refuse_renamed_run
from trainlib.errors import (
    EXIT_DEVICE_LOST,
    EXIT_FAILURE,
    EXIT_OK,
    EXIT_STOPPED,
    EXIT_USER_ERROR,
    CheckpointError,
    ConfigError,
    ConnectionLostError,
    StoppedError,
    TrainlaunchError,
    UserError,
    WrongDeviceError,
    not_permitted,
)
from trainlib.runs import RUNS
from trainlib.runs.attempt.logs import logging_to_console, logging_to_file, redirect_output
from trainlib.runs.attempt.owner import LAUNCHER
from trainlib.runs.attempt.record import Attempt, recorded_attempt
from trainlib.runs.attempt.step_file import report_wrong_device
from trainlib.runs.attempt.stop_request import StopFlag, ignore_stop_signals
from trainlib.runs.directory import RunDirectory
from trainlib.runs.machine import launch_variables
from trainlib.runs.mirror.process import mirrored, restore_from_mirror
from trainlib.runs.own_code.loading import Loaded, load_with_code
from trainlib.runs.own_code.sources import NO_CODE, OwnCode
from trainlib.runs.terminal.printable import lines, print_error
from trainlib.runs.terminal.streams import keep_running_without_readers, leave, secure_streams
from trainlib.training.hooks.tracking.curves import draw_curves
from trainlib.training.programs.arguments import parse_arguments

if TYPE_CHECKING:
    from trainlib.models.own_parts.custom_parts import CustomParts

logger = logging.getLogger("trainlib")


def main(arguments: Sequence[str] | None = None, config: Config | None = None) -> int:
    """Run the program and return its exit code (see `errors`).

    config   the configuration that the arguments name, where the caller has read it already
    """
    options = parse_arguments(arguments)
    keep_running_without_readers()
    try:
        launch_variables.check()
    except UserError as error:
        print_error(error)
        return error.exit_code
    rank = launch_variables.rank()
    if (log := launch_variables.log_before_start()) is not None:
        redirect_output(log)
    flag = StopFlag()
    flag.install()
    try:
        with logging_to_console(logging.INFO if rank == 0 else logging.WARNING):
            loaded = load_with_code(options.config, options.code, ["launch", "run", *options.config], config)
            refuse_renamed_run(options.config, loaded.config)
            start = {"rank": rank, "fresh": options.fresh, "resume": options.resume}
            done = train_with_code(loaded, flag, start) if loaded.code.sources else train(loaded.config, flag, **start)
            return EXIT_OK if done else EXIT_STOPPED
    except ConfigError as error:
        if rank == 0:  # every rank finds the same mistakes
            print_error(error)
        return error.exit_code
    except TrainlaunchError as error:
        if isinstance(error, WrongDeviceError) and rank in (0, error.rank):  # of whom the machine's launcher knows
            report_wrong_device(error.rank, error.uuid)
        if not (isinstance(error, ConnectionLostError) and rank == 0 and LAUNCHER in os.environ):  # which tells of it
            if isinstance(error, StoppedError):
                print(lines(error), file=sys.stderr)
            else:
                print_error(error)
        return error.exit_code
    except PermissionError as error:
        print_error(not_permitted(error))
        return EXIT_USER_ERROR
    except Exception:  # noqa: BLE001 - the boundary of the program
        print(lines(traceback.format_exc()), file=sys.stderr)
        return EXIT_FAILURE
    finally:
        flag.uninstall()


def train_with_code(loaded: Loaded, flag: StopFlag, start: Mapping[str, Any]) -> bool:
    """Train as `train` does, with parts of one's own, whatever torch's settings are after their import."""
    from trainlib.distributed.devices.torch_settings import fresh_torch_settings
    from trainlib.models.own_parts.code_parts import parts_of

    with fresh_torch_settings():
        custom = parts_of(loaded.config, loaded.parts)
        return train(loaded.config, flag, **start, custom=custom, code=loaded.code)


def train(
    config: Config,
    flag: StopFlag,
    *,
    rank: int = 0,
    fresh: bool = False,
    resume: str | None = None,
    custom: CustomParts | None = None,
    code: OwnCode = NO_CODE,
) -> bool:
    """Train one configuration in this process, as one of its ranks.

    resume  None, "" for the newest checkpoint with harmless changes allowed, or a checkpoint's name or path
    custom  a model, data set, loss or the like of one's own, which the configuration only names
    code    of which they are, to be kept in the run directory; none where they are given in Python

    Returns:
        True if training is complete, False if it was asked to stop and wrote a checkpoint.
    """
    given = (custom,) if custom else ()
    if rank == 0:
        restore_from_mirror(config.mirror, RUNS / config.name, fresh=fresh)
    if not fresh:
        config = keep_older_values(config, RUNS / config.name / "config.yaml")
    if config.model.weights is not None:
        from trainlib.training.build.run_weights import pin_weights

        config = pin_weights(config, fresh=fresh)
    if rank == 0:
        return _train_rank_0(config, flag, fresh, resume, code, *given)
    from trainlib.training.session import run_session

    return run_session(config, RunDirectory(RUNS / config.name), flag, None, None, sys.stderr, *given)


def _train_rank_0(
    config: Config, flag: StopFlag, fresh: bool, resume: str | None, code: OwnCode, *given: CustomParts
) -> bool:
    """Train as rank 0, which owns the run directory. What is refused before training begins leaves it as it was."""
    earlier_stop = launch_variables.earlier_stop_file(RUNS / config.name)
    run = RunDirectory.open(config, fresh=fresh, resume=resume, code=code)
    run.pulse = lambda: {"phase": "loading torch and the data"}
    flag.watch(run.stop_file, run.owner.stop_token if run.owner else None, earlier_stop, run.may_be_written)
    try:
        with logging_to_file(run.logs / "refused.log") as log:
            from trainlib.training.session import choose_checkpoint, run_session

            start = None if run.is_moved_aside else choose_checkpoint(run.checkpoints, resume or None)
            attempt = Attempt(run.path, launch_variables.world_size(), start.step if start else 0, log)
            with mirrored(config.mirror, run, attempt.step):
                with recorded_attempt(attempt, lambda: not run.is_own()):
                    try:
                        done = run_session(config, run, flag, start, attempt, log, *given)
                    except StoppedError:
                        attempt.reason = flag.reason
                        if not (attempt.has_begun or run.is_moved_aside):
                            run.claim()
                            attempt.begin(run.next_attempt())  # SLURM decides by its end
                        raise
                draw_curves(run.path)  # last: all that matters is safe by now
                if done and config.checkpoint.after is not None:
                    _keep_after(run, config.checkpoint.after)
                return done
    finally:
        flag.acknowledge()
        run.close()


def _keep_after(run: RunDirectory, after: AfterConfig) -> None:
    """Remove what `checkpoint.after` does not keep of a complete run; a failure is a warning, as nothing is lost."""
    from trainlib.training.checkpoints.after import keep_after, tell_freed

    try:
        freed = keep_after(run.path, after.keep, optimizer=after.optimizer)
    except (CheckpointError, OSError) as error:
        logger.warning("checkpoint.after: %s", error)
    else:
        logger.info("checkpoint.after: %s", tell_freed(run.path, freed))


if __name__ == "__main__":
    secure_streams()
    code = main()
    ignore_stop_signals()  # while the interpreter ends, they would change the exit code
    # After an error the group was not left, whose threads gloo still runs.
    failed = code not in (EXIT_OK, EXIT_STOPPED)
    leave(code, at_once=failed and (launch_variables.world_size() > 1 or code == EXIT_DEVICE_LOST))
