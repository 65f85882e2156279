"""What each rank would do anew in its first seconds, done once in the process that all ranks are forked from."""

from __future__ import annotations

import gc

import made_once

from trainlib.config import load_config
from trainlib.runs.machine.environment import code_sha256

load_config(["quickstart"])
made_once.draw_once()
made_once.draw_few()
made_once.picture_once()
made_once.git_commit()
code_sha256()

gc.collect()
gc.freeze()  # what ranks share is not looked through, and so not copied, by each rank's own collections
