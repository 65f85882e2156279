"""The command `launch doctor`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from launch.cli.command_line.arguments import WholeNumber

if TYPE_CHECKING:
    from launch.doctor.finding import Finding

_COLOURS = {"ok": "green", "note": "yellow", "problem": "red"}


@click.command()
@click.option(
    "--processes",
    type=WholeNumber(min=1),
    metavar="N",
    help="Ranks that measure the all-reduce: one for each GPU if not given, two without GPUs.",
)
@click.option("--json", "as_json", is_flag=True, help="The findings as JSON, all at the end.")
def doctor(processes: int | None, as_json: bool) -> int:
    """Show what this machine has for training, and its faults.

    Exit code 0: no problem found, 1: some; each is told with what to do about it.
    """
    import json

    from launch.doctor.finding import Verdict, summary

    findings = []
    for finding in _checks(processes):
        findings.append(finding)
        if not as_json:
            _show(finding)
    if as_json:
        click.echo(json.dumps([finding.asdict() for finding in findings], indent=2))
    else:
        click.echo(summary(findings))
    return int(any(finding.verdict is Verdict.PROBLEM for finding in findings))


def _show(finding: Finding) -> None:
    """Print one finding at once, as wide as the terminal and with its verdict in colour if there is one."""
    from launch.doctor.finding import row
    from trainlib.runs.terminal.tables import terminal

    console = terminal()
    if console is None:
        click.echo(row(finding))
        return
    from rich.text import Text

    text = Text(row(finding, console.width))
    text.stylize(_COLOURS[finding.verdict], end=len(finding.verdict))
    console.print(text, soft_wrap=True)


def _checks(processes: int | None) -> Iterator[Finding]:
    """Run every check, the quick ones first."""
    from launch.doctor.cluster import check_cluster
    from launch.doctor.ranks import check_ranks
    from launch.doctor.software import check_software
    from launch.doctor.storage import check_storage
    from launch.doctor.system import check_system
    from launch.doctor.wandb_service import check_wandb
    from trainlib.runs import RUNS

    yield from check_software()
    yield from check_system()
    yield from check_storage("runs", RUNS)
    yield from check_cluster()
    yield from check_wandb()
    yield from check_ranks(processes)
