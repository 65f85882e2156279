"""What each rank would do anew in its first seconds, done once in the process that all ranks are forked from."""

from __future__ import annotations

import gc
import os

from drawn import draw_once

from trainlib.config import load_config
from trainlib.training.hooks.tracking.curves import picture

load_config(["quickstart"])
draw_once()
picture([{"step": 1, "split": "val", "loss": 1.0, "accuracy": 0.5}], "fonts")

os.environ["PYTHONPATH"] = os.environ["PYTHONPATH"].partition(os.pathsep)[2]  # this module's own: see ranks.py
if not os.environ["PYTHONPATH"]:
    del os.environ["PYTHONPATH"]

gc.collect()
gc.freeze()  # what ranks share is not looked through, and so not copied, by each rank's own collections
