"""Prepare a run for a later job: `python -m trainlib.training.programs.prepare CONFIG... [--fresh] [--resume [NAME]]`.

Whatever can be settled before a job waits in a queue is settled now: that all can be built, that nothing is left to be
downloaded, and that this configuration may go on in the run directory, whose config.yaml then is all that the job
needs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from trainlib.config import Config, keep_older_values
from trainlib.config.load import refuse_renamed_run
from trainlib.errors import EXIT_FAILURE, EXIT_OK, EXIT_USER_ERROR, UserError, not_permitted
from trainlib.runs import RUNS
from trainlib.runs.directory import RunDirectory
from trainlib.runs.mirror.process import restore_from_mirror
from trainlib.runs.mirror.store import require_usable
from trainlib.runs.own_code.loading import load_with_code
from trainlib.runs.own_code.sources import NO_CODE, OwnCode
from trainlib.runs.terminal.printable import print_error
from trainlib.training.programs.arguments import parse_arguments


def main(arguments: Sequence[str] | None = None, config: Config | None = None) -> int:
    """Prepare a run and return the exit code (see `errors`).

    config   the configuration that the arguments name, where the caller has read it already
    """
    options = parse_arguments(arguments, "trainlib.training.programs.prepare")
    try:
        command = ["launch", "submit", *options.config]
        config, code, parts = load_with_code(options.config, options.code, command, config)
        refuse_renamed_run(options.config, config)
        from trainlib.data import dataset_info
        from trainlib.models.own_parts.code_parts import parts_of
        from trainlib.training.build.model import check_build
        from trainlib.training.checkpoints.space import require_room

        custom = parts_of(config, parts)
        network = check_build(config, dataset_info(config.data, config.seed, custom.load_dataset()), custom)
        if config.mirror is not None:
            require_usable(config.mirror, RUNS / config.name)
        if (notice := require_room(RUNS / config.name, network, config.checkpoint.keep)) is not None:
            print(f"warning: {notice}", file=sys.stderr)
        prepare(config, fresh=options.fresh, resume=options.resume, code=code)
    except UserError as error:
        print_error(error)
        return error.exit_code
    except PermissionError as error:
        print_error(not_permitted(error))
        return EXIT_USER_ERROR
    except OSError as error:  # a disk that is full
        print_error(error)
        return EXIT_FAILURE
    return EXIT_OK


def prepare(config: Config, *, fresh: bool, resume: str | None, code: OwnCode = NO_CODE) -> None:
    """Leave runs/<name> so that `CONFIG = runs/<name>/config.yaml` alone starts or continues the run as asked.

    fresh, resume   as for `RunDirectory.open`; from a named checkpoint on, newer ones are set aside
    """
    restore_from_mirror(config.mirror, RUNS / config.name, fresh=fresh)
    if not fresh:
        config = keep_older_values(config, RUNS / config.name / "config.yaml")
    if config.model.weights is not None:
        from trainlib.training.build.run_weights import pin_weights

        config = pin_weights(config, fresh=fresh)
    from trainlib.training.build.fetch import fetch_downloads

    begins = fresh or not any((RUNS / config.name / "checkpoints").glob("step-*"))
    fetch_downloads(config, with_weights=begins)
    run = RunDirectory.open(config, fresh=fresh, resume=resume, code=code)
    try:
        if resume:
            from trainlib.training.checkpoints import checkpoint
            from trainlib.training.session import choose_checkpoint

            named = choose_checkpoint(run.checkpoints, resume)
            assert named is not None, "a checkpoint that is named is found, or is an error"
            run.claim()
            checkpoint.set_aside_newer(run.checkpoints, named)
        run.begin(config)
        run.stop_file.unlink(missing_ok=True)  # asked of an attempt that is over
    finally:
        run.close()


if __name__ == "__main__":
    sys.exit(main())
