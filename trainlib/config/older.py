"""Values that keys had before they existed: a run that began then goes on with them, never with new defaults."""

from __future__ import annotations

import logging
from pathlib import Path

from trainlib.config.load import read_resolved
from trainlib.config.reading.yaml_source import read_file
from trainlib.config.schema.sections import Config

logger = logging.getLogger("trainlib")


def keep_older_values(config: Config, file: Path) -> Config:
    """Return the configuration with the older values of the run that `file`, its config.yaml, belongs to.

    The first time, when the file does not name them, a line of the log tells them. Without a file nothing is changed.
    """
    if not file.is_file():
        return config
    split = read_resolved(file).data.split
    if split != "index" or config.data.split == split:
        return config
    if "split" not in (read_file(file, str(file), links=False).values.get("data") or {}):
        logger.info(
            "data.split: index, as this run began before there was a choice; new runs take %s", config.data.split
        )
    return config.model_copy(update={"data": config.data.model_copy(update={"split": split})})
