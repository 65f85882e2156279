"""Entry point of `python -m launch`, which is the `launch` command."""

from launch.cli import program

if __name__ == "__main__":
    program()
