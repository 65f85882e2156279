"""The command `launch report`."""

from __future__ import annotations

import shlex
from datetime import UTC, datetime
from pathlib import Path

import click

from launch.cli.completion import complete_run
from launch.cli.start_page import tell_next


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="RUN...", shell_complete=complete_run)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Where to write the page.")
@click.option("--open", "open_it", is_flag=True, help="Show it in the browser.")
def report(names: tuple[str, ...], output: Path | None, open_it: bool) -> int:
    """Make one HTML page about a run, or several.

    It prints where the page is. The page holds all that it needs, so that it can be sent on, and opens without a
    network. That of one run goes to runs/NAME/report.html, that of several to report.html.
    """
    from launch.report.facts.run_facts import read_facts
    from launch.report.page import page, write_page
    from trainlib.runs.status import find_run

    directories = list(dict.fromkeys(find_run(name) for name in names))
    if output is None:
        output = directories[0] / "report.html" if len(directories) == 1 else Path("report.html")
    write_page(output, page([read_facts(directory) for directory in directories], datetime.now(UTC)))
    click.echo(output)
    if open_it:
        import webbrowser

        webbrowser.open(output.resolve().as_uri())
    else:
        tell_next(shlex.join(["launch", "report", *names, "--open"]))
    return 0
