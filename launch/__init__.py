"""The command line of trainlaunch: `launch run`, `submit`, `sweep` and the others."""

import sys

try:
    import trainlib  # noqa: F401 - first, as it takes the current folder off the path
except ImportError as error:
    if error.name != "fcntl":  # which Windows lacks
        raise
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(2) from None
