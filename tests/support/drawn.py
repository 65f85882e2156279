"""The data set `synthetic`, drawn once in this process and in those that it forks: nobody changes its tensors.

tests/unit/test_data_synthetic.py calls the function itself, so that nothing else depends on what is kept here.
"""

from __future__ import annotations

import functools

import trainlib.data
from trainlib.data.sources.arrays.synthetic import make_synthetic

draw_once = functools.cache(make_synthetic)
setattr(trainlib.data, "make_synthetic", draw_once)  # noqa: B010 - mypy: it is no public name of that package
