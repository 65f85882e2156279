"""The command line of trainlaunch: `launch run`, `submit`, `sweep` and the others."""

import trainlib  # noqa: F401 - first, as it takes the current folder off the path
