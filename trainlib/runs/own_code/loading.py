"""The configuration of a run together with its own code: named on the command line, or the run's own, trusted copy."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from trainlib.config import Config, load_config
from trainlib.errors import UserError
from trainlib.parts import Parts
from trainlib.runs import RUNS
from trainlib.runs.own_code.importing import import_code
from trainlib.runs.own_code.sources import FOLDER, NO_CODE, OwnCode, difference, read_copy, read_named
from trainlib.runs.own_code.trust import is_trusted, trust

NO_PARTS = Parts()


class Loaded(NamedTuple):
    """A configuration, the code that it was given with, and the parts that this has registered."""

    config: Config
    code: OwnCode
    parts: Parts


def load_with_code(
    words: Sequence[str | Mapping[str, Any]], named: Sequence[str], command: Sequence[str], config: Config | None = None
) -> Loaded:
    """Load a configuration, and import its code: what `--code` names, or else the run's copy, if that is trusted.

    words     CONFIG... [key=value ...]
    named     the values of `--code`
    command   the words of the command that this is a part of, for the message that the copy is not trusted
    config    what the words give, where that is known already

    Raises UserError before anything is imported where the code is missing, changed or not trusted.
    """
    code = read_named(named)
    if config is None or code.sources:
        config = load_config(words, code=code.digests or None)
    if code.sources:
        trust(code.digests)
    elif config.code:
        folders = [Path(word).parent for word in words if isinstance(word, str) and word.endswith((".yaml", ".yml"))]
        code = trusted_copy(config.code, [RUNS / config.name, *folders], command)
    if not code.sources:
        return Loaded(config, NO_CODE, NO_PARTS)
    parts = import_code(code)
    return Loaded(load_config(words, code=code.digests, parts=parts), code, parts)


def trusted_copy(recorded: Mapping[str, str], runs: Iterable[Path], command: Sequence[str]) -> OwnCode:
    """Return a run's copy of its code. UserError if it is missing, changed, or was never named on a command line.

    recorded   the section `code` of its configuration
    runs       run directories that may hold the copy: the first that does counts
    """
    folder = next((run / FOLDER for run in runs if (run / FOLDER).is_dir()), None)
    if folder is None:
        raise UserError(
            f"code: the configuration was made with {', '.join(recorded)}, of which no copy is here: name it on the "
            f"command line, `--code {next(iter(recorded))}`"
        )
    code = read_copy(folder, recorded)
    if all(is_trusted(name, digest) for name, digest in recorded.items()):
        return code
    flags = [word for name in recorded for word in ("--code", str(folder / name))]
    raise UserError(
        f"{folder}: this run has code of its own ({', '.join(recorded)}), which you have not named on a command line "
        f"yet, and so nothing of it is imported. Read it; if you trust it, type:\n"
        f"  {shlex.join([*command[:2], *flags, *command[2:]])}"
    )


def code_of_run(recorded: Mapping[str, str], named: Sequence[str], run: Path, command: Sequence[str]) -> Parts:
    """Return the parts of a finished run's code: its trusted copy, or what `--code` names if that is the same.

    Raises UserError as `trusted_copy` does, and with the difference for other code.
    """
    code = read_named(named)
    if not code.sources:
        return import_code(trusted_copy(recorded, [run], command)) if recorded else NO_PARTS
    if code.digests != dict(recorded):
        raise UserError(other_code(run, recorded, code))
    trust(code.digests)
    return import_code(code)


def other_code(run: Path, recorded: Mapping[str, str], code: OwnCode) -> str:
    """Return the message that code is not the one that a run was trained with, with the difference."""
    if not recorded:
        return f"--code: {run} was trained without code of its own: leave it out"
    text = difference(run, code)
    return (
        f"--code: {run} was trained with other code ({', '.join(recorded)}). Leave `--code` out to use the run's copy, "
        f"{run / FOLDER}, or train a new run with yours" + (f":\n{text}" if text else "")
    )
