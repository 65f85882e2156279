"""What runs do that began before a configuration key existed: they go on as they did, not with defaults."""

from __future__ import annotations

import logging
from pathlib import Path

from trainlib.config.load import OLDER_DATA, read_resolved
from trainlib.config.reading.yaml_source import read_file
from trainlib.config.schema.sections import Config

logger = logging.getLogger("trainlib")


def keep_older_values(config: Config, file: Path) -> Config:
    """Return the configuration with the older values of the run that `file`, its config.yaml, belongs to.

    The first time, when the file does not name them, lines of the log tell them. Without a file nothing is changed.
    """
    if not file.is_file():
        return config
    kept = {key: value for key, value in OLDER_DATA.items() if getattr(read_resolved(file).data, key) == value}
    kept = {key: value for key, value in kept.items() if getattr(config.data, key) != value}
    named = read_file(file, str(file), links=False).values.get("data") or {}
    for key, value in kept.items():
        if key not in named:
            logger.info(
                "data.%s: %s, as this run began before there was a choice; new runs take %s",
                key,
                value,
                getattr(config.data, key),
            )
    return config.model_copy(update={"data": config.data.model_copy(update=kept)})
