"""The command line of trainlaunch: `launch run`, `submit`, `sweep` and the others."""

import sys

import trainlib  # noqa: F401 - first, as it takes the current folder off the path

try:
    import fcntl  # noqa: F401 - for locks
except ImportError:
    print("error: trainlaunch runs on Linux and macOS; on Windows, install and use it inside WSL 2", file=sys.stderr)
    raise SystemExit(2) from None
