"""The site of the documentation is built without a warning, has every page, and needs nothing from elsewhere."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest
import yaml
from paths import PAGES, REPOSITORY

pytestmark = pytest.mark.slow


def test_the_site_is_built_without_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    warnings: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: warnings.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("mkdocs")
    logger.addHandler(handler)
    try:
        build(load_config("mkdocs.yml", site_dir=str(tmp_path), strict=True))
    finally:
        logger.removeHandler(handler)
    assert warnings == []

    pages = {path.relative_to(tmp_path).as_posix(): path.read_text() for path in tmp_path.rglob("*.html")}
    for page in PAGES:
        place = page.relative_to(REPOSITORY).as_posix()
        name = place.removeprefix("docs/") if place.startswith("docs/") else f"project/{place}"
        assert re.sub(r"README\.md$", "index.md", name).replace(".md", ".html") in pages, place
    fetched = {
        url
        for text in pages.values()
        for url in re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(http[^"]+)', text)
    }
    assert fetched == set()
    found = json.loads((tmp_path / "search/search_index.json").read_text())["docs"]
    assert any("virtual_shards" in section["text"] for section in found)


def test_the_navigation_has_four_parts() -> None:
    class Loader(yaml.SafeLoader):
        """Reads the file but for its Python objects."""

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: None)
    nav = yaml.load((REPOSITORY / "mkdocs.yml").read_text(), Loader)["nav"]
    assert [next(iter(part)) for part in nav] == ["Start", "How to", "Reference", "Why"]
