"""The page: one run in full, or several compared. Pure text; nothing in it is fetched from anywhere."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from datetime import datetime
from importlib.resources import files

from launch.report import comparison, sections
from launch.report.chart import figure, legend
from launch.report.compare import ranking
from launch.report.curves import charts_of, common_legend
from launch.report.facts import RunFacts
from launch.report.markup import Content, Markup, element
from launch.runs.show import local_time


def page(runs: Sequence[RunFacts], now: datetime) -> str:
    """The whole page; `now` is when it is made. Several runs are shown best first."""
    if len(runs) == 1:
        return _one(runs[0], now)
    return _several(runs, now)


def _one(run: RunFacts, now: datetime) -> str:
    badge = element("span", run.run.status, class_=f"badge {run.run.status}")
    parts = [
        _section("Curves", _charts([run])),
        *sections.evaluations(run),
        sections.attempts(run),
        sections.checkpoints(run),
        sections.configuration(run),
        sections.environment(run),
    ]
    first = [sections.state(run), sections.headline(run, now)]
    return _document(run.name, [run.name, " ", badge], sections.subtitle(run), first, parts, now)


def _several(runs: Sequence[RunFacts], now: datetime) -> str:
    ranked = ranking(runs)
    parts = [
        _section("Results", comparison.results(ranked, now)),
        _section("Curves", _charts(ranked.runs)),
        _section("Differences in configuration", comparison.differences(ranked.runs)),
        _section("Classes", comparison.classes(ranked.runs)),
        _section("Attempts", sections.attempts_table(ranked.runs)),
    ]
    names = ", ".join(run.name for run in ranked.runs)
    return _document(names, f"{len(runs)} runs compared", f"Best first, by {ranked.by}.", [], parts, now)


def _section(title: str, content: Content) -> Markup | None:
    return element("section", element("h2", title), content) if content else None


def _charts(runs: Sequence[RunFacts]) -> Content:
    figures = [figure(chart) for chart in charts_of(runs)]
    if not figures:
        return None
    signs = (
        "↻ an attempt goes on from a checkpoint, ■ the run was stopped, ✕ it ended otherwise before it was complete."
    )
    note = f"Over optimizer steps. {signs}" if any(run.events for run in runs) else "Over optimizer steps."
    switches = element("div", legend(common_legend(runs)), class_="common") if len(runs) > 1 else None
    return [element("p", note, class_="note"), switches, element("div", figures, class_="charts")]


def _document(
    title: str, heading: Content, subtitle: Content, first: Content, parts: Sequence[Content], now: datetime
) -> str:
    """The frame around it all. The policy forbids the page any request, and any script but its own."""
    script, style = _read("report.js"), _read("report.css")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="generator", content="trainlaunch"),
        element("title", f"{title} · trainlaunch"),
        element("link", rel="icon", href="data:,"),
        Markup(f"<style>{style}</style>"),
    )
    theme = element("button", "dark", type="button", id="theme", aria_pressed="false", hidden="")
    body = element(
        "body",
        element("header", element("div", element("h1", heading), element("p", subtitle)), theme),
        element("main", first, parts),
        element("footer", f"Made by launch report on {local_time(now)}."),
        Markup(f"<script>{script}</script>"),
    )
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def _read(name: str) -> str:
    return (files("launch.report") / name).read_text(encoding="utf-8")
