"""Build everything on the meta device and print the config: `python -m trainlib.training.programs.check CONFIG...`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from trainlib.config import Config, dump_config
from trainlib.errors import EXIT_OK, UserError
from trainlib.runs import RUNS
from trainlib.runs.mirror.store import require_usable
from trainlib.runs.own_code.loading import load_with_code
from trainlib.runs.terminal.printable import lines, print_error
from trainlib.training.programs.arguments import add_code


def main(arguments: Sequence[str] | None = None, config: Config | None = None) -> int:
    """Check a configuration, print the resolved one and return the exit code (see `errors`).

    config   the configuration that the arguments name, where the caller has read it already
    """
    parser = argparse.ArgumentParser(prog="python -m trainlib.training.programs.check", allow_abbrev=False)
    parser.add_argument("config", nargs="+", metavar="CONFIG | key=value")
    add_code(parser)
    options = parser.parse_intermixed_args(sys.argv[1:] if arguments is None else arguments)
    try:
        command = ["launch", "check", *options.config]
        config, _, parts = load_with_code(options.config, options.code, command, config)
        from trainlib.data import dataset_info, list_files
        from trainlib.data.survey.leaks import leak_notice
        from trainlib.models.own_parts.code_parts import parts_of
        from trainlib.training.build.model import check_build
        from trainlib.training.checkpoints.space import require_room

        custom = parts_of(config, parts)
        network = check_build(config, dataset_info(config.data, config.seed, custom.load_dataset()), custom)
        if config.mirror is not None:
            require_usable(config.mirror, RUNS / config.name)
        if (notice := require_room(RUNS / config.name, network, config.checkpoint.keep)) is not None:
            print(f"warning: {notice}", file=sys.stderr)
        samples = list_files(config.data, config.seed, warn=False)
        if samples is not None and (notice := leak_notice(samples)):
            print(f"warning: {lines(notice)}", file=sys.stderr)
    except UserError as error:
        print_error(error)
        return error.exit_code
    print(dump_config(config), end="")
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
