"""Every link in the README and in docs/ leads somewhere, and every file that a page names is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from paths import PAGES, REPOSITORY

LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)|<(?:img|a)[^>]* (?:src|href)=\"([^\"]+)\"")
LINKS = [(page, next(filter(None, match))) for page in PAGES for match in LINK.findall(page.read_text())]


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(("page", "target"), LINKS, ids=[f"{page.name}-{target}" for page, target in LINKS])
def test_a_link_leads_somewhere(page: Path, target: str) -> None:
    if target.startswith(("http://", "https://")):
        return
    path, _, anchor = target.partition("#")
    file = (page.parent / path).resolve() if path else page
    assert file.is_relative_to(REPOSITORY)
    assert file.exists(), f"{page.name} links to {target}"
    assert not anchor or anchor in anchors(file), f"{file.name} has no heading #{anchor}"


def test_the_index_lists_every_page() -> None:
    index = REPOSITORY / "docs/README.md"
    linked = {(index.parent / target.split("#")[0]).resolve() for page, target in LINKS if page == index}
    assert set(PAGES) - {index} - linked == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_files_of_the_repository_that_a_page_names_are_there(page: Path) -> None:
    named = re.findall(r"`((?:tests|bench|configs|slurm|docs|trainlib|launch)/[\w./-]+\.\w+)", page.read_text())
    assert [file for file in named if not (REPOSITORY / file).exists()] == []
