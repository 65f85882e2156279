"""`python -m launch` is the `launch` command."""

from launch.cli import program

if __name__ == "__main__":
    program()
