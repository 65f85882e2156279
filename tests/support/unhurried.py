"""A `sitecustomize.py` for runs that are to be disturbed: their steps take as long as the test needs them to."""

from __future__ import annotations

from changed_steps import sitecustomize

# A step takes as many seconds longer as the file SLOW in the current folder says, as long as it is there.
UNHURRIED = sitecustomize("""\
import os, time
def changed(train_step):
    def later(*rest):
        try:
            with open("SLOW") as slow:
                time.sleep(float(slow.read()))
        except FileNotFoundError:
            pass
        return train_step(*rest)
    return later
""")
