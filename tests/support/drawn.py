"""The data set `synthetic`, drawn once in this process and in those that it forks: nobody changes its tensors.

tests/unit/test_data_synthetic.py calls the function itself, so that nothing else depends on what is kept here.
"""

from __future__ import annotations

import functools

import trainlib.data

trainlib.data.make_synthetic = functools.cache(trainlib.data.make_synthetic)
