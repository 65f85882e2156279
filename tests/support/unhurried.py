"""A `sitecustomize.py` for runs that are to be disturbed: their steps take as long as the test needs them to."""

from __future__ import annotations

# A step takes as many seconds longer as the file SLOW in the current folder says, as long as it is there.
UNHURRIED = """\
import importlib.util, os, sys, time
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name != "trainlib.training.tuning.memory":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module
        def exec_module(module):
            load(module)
            train_step = module.train_step
            def later(*rest):
                try:
                    with open("SLOW") as slow:
                        time.sleep(float(slow.read()))
                except FileNotFoundError:
                    pass
                return train_step(*rest)
            module.train_step = later
        spec.loader.exec_module = exec_module
        return spec
sys.meta_path.insert(0, Finder())
"""
