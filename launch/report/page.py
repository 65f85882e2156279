"""The page, as text and as a file: one run in full, or several compared. Nothing in it is fetched from anywhere."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from datetime import datetime
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.report import formats
from launch.report.charts.chart import Plot
from launch.report.charts.curves import charts_of, colour_of, common_legend
from launch.report.facts.run_facts import RunFacts
from launch.report.facts.series import tick_label
from launch.report.views.comparison import ABSENT, Ranking, class_scores, config_differences, noise, ranking, results
from launch.report.views.run_view import view_of
from launch.runs.show import local_time
from trainlib.errors import UserError
from trainlib.runs.files.durable import write_atomically
from trainlib.runs.terminal.printable import printable

if TYPE_CHECKING:
    from jinja2 import Environment

    from launch.report.views.search_view import SearchView
    from trainlib.runs.terminal.tables import Table


def page(
    runs: Sequence[RunFacts], now: datetime, repeats: Table | None = None, search: SearchView | None = None
) -> str:
    """Return the whole page; `now` is when it is made. Several runs are shown best first.

    repeats   what the runs of a sweep with `folds` or `seeds` say together
    search    whose best trials the runs are, in its own order
    """
    if len(runs) == 1 and search is None:
        return _of_runs("run.html.j2", runs, now, run=runs[0], view=view_of(runs[0]))
    ranked = ranking(runs)
    if search is not None:
        ranked = Ranking([*runs], f"the rung they came to, then by {search.metric}", ranked.metric)
    titles, figures = results(ranked)
    split, classes = class_scores(ranked.runs) or (None, None)
    return _of_runs(
        "comparison.html.j2",
        ranked.runs,
        now,
        ranked_by=ranked.by,
        repeats=repeats,
        search=search,
        noise=noise(ranked.runs),
        titles=titles,
        results=figures,
        common=common_legend(ranked.runs) if len(runs) > 1 else (),
        differences=config_differences(ranked.runs),
        split=split,
        classes=classes,
    )


def write_page(path: Path, text: str) -> None:
    """Replace a page, so that a browser sees the old one or the new one; UserError where it cannot be written."""
    try:
        write_atomically(path, text.encode(errors="replace"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; name a file that can be written with --output") from error


def _of_runs(name: str, runs: Sequence[RunFacts], now: datetime, **facts: Any) -> str:
    return rendered(name, now, "launch report", runs=runs, plots=[Plot(chart) for chart in charts_of(runs)], **facts)


def rendered(template_name: str, now: datetime, command: str, **facts: Any) -> str:
    """Return a page made of a template, with our style and script; `command` is the one that made it."""
    from markupsafe import Markup

    script, style = (_text(name) for name in ("report.js", "report.css"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    template = templates().get_template(template_name)
    return template.render(
        facts,
        now=now,
        command=command,
        policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
        script=Markup(script),
        style=Markup(style),
    )


def _text(name: str) -> str:
    return (files("launch.report") / "templates/assets" / name).read_text(encoding="utf-8")


@cache
def templates() -> Environment:
    """Return the environment of the templates: everything that one prints is escaped, and None is a dash.

    So are characters that do not show, or change the direction of what stands beside them.
    """
    import jinja2
    from markupsafe import Markup

    def shown(value: object) -> object:
        if value is None:
            return ABSENT
        return printable(value, keep="\n\t") if isinstance(value, str) and not isinstance(value, Markup) else value

    made = jinja2.Environment(
        loader=jinja2.PackageLoader("launch.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    made.filters |= {
        "bytes": formats.bytes_text,
        "colour": colour_of,
        "count": formats.count,
        "duration": formats.duration,
        "local_time": local_time,
        "number": formats.number,
        "tick_label": tick_label,
    }
    return made
