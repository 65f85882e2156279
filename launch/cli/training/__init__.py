"""Commands that train, and those that prepare it: `init`, `check`, `run`, `find-lr` and `find-batch`."""
