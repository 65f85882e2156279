"""The command line of trainlaunch: `launch run`, `submit`, `sweep` and the others."""
