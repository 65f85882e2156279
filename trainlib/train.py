"""The training program: `python -m trainlib.train CONFIG... [key=value ...] [--fresh] [--resume [CHECKPOINT]]`.

The same for one process, and for each rank under `accelerate launch` or `torchrun`. Whatever the user can get wrong is
found before torch is imported, where that is possible.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import traceback
from collections.abc import Sequence

from trainlib.config import Config, load_config, mark_bare_resume
from trainlib.errors import EXIT_FAILURE, EXIT_OK, EXIT_STOPPED, StoppedError, TrainlaunchError, UserError
from trainlib.logs import log_to_console
from trainlib.rundir import RUNS, RunDirectory
from trainlib.stopping import StopFlag

logger = logging.getLogger("trainlib")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit code (see `errors`)."""
    options = _parse(arguments)
    rank = int(os.environ.get("RANK", "0"))
    flag = StopFlag()
    flag.install()
    try:
        log_to_console()
        config = load_config(options.config)
        return EXIT_OK if train(config, flag, rank=rank, fresh=options.fresh, resume=options.resume) else EXIT_STOPPED
    except UserError as error:
        if rank == 0:  # every rank finds the same mistake
            print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except StoppedError as error:
        logger.info("%s", error)
        return error.exit_code
    except TrainlaunchError as error:
        logger.error("error: %s", error)
        return error.exit_code
    except Exception:  # noqa: BLE001 - the boundary of the program: the traceback goes to this rank's log
        logger.error("%s", traceback.format_exc())
        return EXIT_FAILURE
    finally:
        flag.uninstall()


def train(config: Config, flag: StopFlag, *, rank: int = 0, fresh: bool = False, resume: str | None = None) -> bool:
    """Train one configuration in this process, as one of its ranks; True at the end, False when asked to stop.

    resume  None, "" for the newest checkpoint with harmless changes allowed, or a checkpoint's name or path
    """
    if rank != 0:
        from trainlib.session import run_session

        return run_session(config, RunDirectory(RUNS / config.name), flag, None, None)
    run = RunDirectory.open(config, fresh=fresh, resume=resume is not None)
    try:
        flag.watch(run.stop_file)
        from trainlib.session import choose_checkpoint, run_session

        start = choose_checkpoint(run.checkpoints, resume or None)
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        with run.attempt(world_size=world_size, from_step=start.step if start else 0) as attempt:
            return run_session(config, run, flag, start, attempt)
    finally:
        run.close()


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m trainlib.train", description="Train from configuration files.", allow_abbrev=False
    )
    parser.add_argument("config", nargs="+", metavar="CONFIG | key=value", help="files or shipped names; overrides")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--fresh", action="store_true", help="move an earlier run of this name aside and begin again")
    start.add_argument(
        "--resume", nargs="?", metavar="CHECKPOINT", help="accept harmless changes; or name a checkpoint"
    )
    words = sys.argv[1:] if arguments is None else arguments
    return parser.parse_intermixed_args(mark_bare_resume(words))


if __name__ == "__main__":
    sys.exit(main())
