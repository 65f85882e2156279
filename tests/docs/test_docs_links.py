"""Every link in the README and in docs/ leads somewhere, and every file that a page names is there."""

from __future__ import annotations

import functools
import re
from pathlib import Path

from paths import PAGES, REPOSITORY

LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)|<(?:img|a)[^>]* (?:src|href)=\"([^\"]+)\"")
LINKS = [(page, next(filter(None, match))) for page in PAGES for match in LINK.findall(page.read_text())]


@functools.cache
def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def leads_nowhere(page: Path, target: str) -> bool:
    path, _, anchor = target.partition("#")
    file = (page.parent / path).resolve() if path else page
    return not (file.is_relative_to(REPOSITORY) and file.exists()) or bool(anchor and anchor not in anchors(file))


def test_every_link_leads_somewhere() -> None:
    inside = [(page, target) for page, target in LINKS if not target.startswith(("http://", "https://"))]
    assert len(inside) > 150
    assert [f"{page.name}: {target}" for page, target in inside if leads_nowhere(page, target)] == []


def test_a_link_that_leads_nowhere_is_found() -> None:
    page = REPOSITORY / "README.md"
    found = [leads_nowhere(page, target) for target in ("docs/config.md", "docs/absent.md", "#absent", "../outside.md")]
    assert found == [False, True, True, True]


def test_the_index_lists_every_page() -> None:
    index = REPOSITORY / "docs/README.md"
    linked = {(index.parent / target.split("#")[0]).resolve() for page, target in LINKS if page == index}
    assert set(PAGES) - {index} - linked == set()


def test_files_of_the_repository_that_a_page_names_are_there() -> None:
    named = re.compile(r"`((?:tests|bench|configs|slurm|docs|trainlib|launch)/[\w./-]+\.\w+)")
    files = [(page.name, file) for page in PAGES for file in named.findall(page.read_text())]
    assert len(files) > 100
    assert [(page, file) for page, file in files if not (REPOSITORY / file).exists()] == []
