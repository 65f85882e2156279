"""What all runs of the tests would make anew and always alike, made once in this process and in those that it forks.

- The data set `synthetic`: nobody changes its tensors. tests/unit/test_data_synthetic.py calls the function itself.
- The picture at the end of a run, here always the same: tests/unit/test_curves.py draws and looks at real ones.
- The commit of this code.
"""

from __future__ import annotations

import functools

import trainlib.data
from trainlib.data.sources.arrays.synthetic import make_synthetic
from trainlib.distributed.devices import hardware
from trainlib.runs.machine import environment
from trainlib.training.hooks.tracking import curves

draw_once = functools.cache(make_synthetic)
draw_few = functools.cache(functools.partial(make_synthetic, 800, 200))  # as 2,000 of the test take a second
git_commit = functools.cache(environment.git_commit)
draw_picture = curves.picture


@functools.cache
def picture_once() -> bytes:
    return draw_picture([{"step": 1, "split": "val", "loss": 1.0, "accuracy": 0.5}], "a run of the tests")


# Names that they have imported: mypy knows no such public ones.
setattr(trainlib.data, "make_synthetic", draw_once)  # noqa: B010
setattr(hardware, "git_commit", git_commit)  # noqa: B010
setattr(curves, "picture", lambda rows, name: picture_once())  # noqa: B010
