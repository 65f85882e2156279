"""The command `launch data`."""

from __future__ import annotations

from pathlib import Path

import click

from launch.cli.command_line.arguments import call, checked_config, code_words, configs, own_code
from launch.cli.command_line.start_page import tell_next

FILE = click.Path(dir_okay=False, path_type=Path)


@click.command("data")
@configs
@own_code
@click.option("--html", type=FILE, metavar="FILE", help="Write a page, with pictures.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, with all groups of duplicates.")
@click.option(
    "--batch",
    type=FILE,
    metavar="FILE.png",
    help="Write a picture of the first training batch, exactly as the model gets it, instead.",
)
def data(
    arguments: tuple[str, ...], code: tuple[str, ...], html: Path | None, as_json: bool, batch: Path | None
) -> int:
    """Tell about a data set before anyone trains on it.

    Pictures by class and split, sizes, formats, damaged files, exact and near duplicates within and between splits and
    classes. Every picture is read once. CONFIG is a file or the name of a shipped config; then key=value.
    """
    import json
    import shlex
    import tempfile

    from launch.local.start.command import config_arguments
    from trainlib.errors import EXIT_OK, UserError

    words = config_arguments(arguments, None)
    config = checked_config(words, code)  # before torch is imported: mistakes are told at once
    if batch is not None and batch.suffix.lower() != ".png":
        raise UserError(f"--batch: got {batch}, must end in .png")
    for option, file in (("--html", html), ("--batch", batch)):
        if file is not None and not file.name:
            raise UserError(f"{option}: got no name, must be a file")
        if file is not None and not file.absolute().parent.is_dir():
            raise UserError(f"{option}: {file.parent} is no folder; make it, or choose another place")
    words += [*code_words(code), *(["--batch", str(batch)] if batch else []), *(["--json"] if as_json else [])]
    program = "trainlib.training.programs.data.survey_data"
    if html is None:
        exit_code = call(program, words, config=config)
        if exit_code == EXIT_OK and not as_json:
            tell_next(shlex.join(["launch", "run", *arguments, *code_words(code)]))
        return exit_code
    from datetime import UTC, datetime

    from launch.report.data_page import data_page
    from launch.report.page import write_page

    with tempfile.TemporaryDirectory() as folder:
        facts = Path(folder) / "facts.json"
        exit_code = call(program, [*words, "--facts", str(facts)], config=config)
        if facts.exists():  # also where the picture of the first batch failed
            write_page(html, data_page(config.name, json.loads(facts.read_text()), datetime.now(UTC)))
            click.echo(f"\nthe page is {html}", err=as_json)
    return exit_code
