"""Hooks of the site's build: pages of the repository that stand outside of docs/, and links as the site needs them.

The pages are written for GitHub, where a link may lead to any file. On the site it leads to that file's page, and to
nothing where the file has none, such as a module of the code.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
OUTSIDE = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "slurm/README.md", "bench/scaling.md")
LINK = re.compile(r"(!?\[[^\]]*\])\(([^)\s]+)\)")
DECISIONS = ROOT / "docs/decisions"


def on_config(config: Any) -> Any:
    """Add the decisions to the last part of the navigation, by their own headings."""
    pages = sorted(DECISIONS.glob("*.md"))
    listed = [{page.read_text().splitlines()[0].lstrip("# "): f"decisions/{page.name}"} for page in pages]
    (last,) = config["nav"][-1].values()
    last.append({"Decisions": listed})
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages from outside of docs/, below project/."""
    for name in OUTSIDE:
        files.append(File.generated(config, f"project/{name}", abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Return the text with each link as seen from this page's place on the site."""
    here = page.file.src_uri
    on_github = here.removeprefix("project/") if here.startswith("project/") else f"docs/{here}"

    def moved(found: re.Match[str]) -> str:
        words, target = found.groups()
        if re.match(r"[a-z]+:|#", target):
            return found[0]
        path, _, anchor = target.partition("#")
        place = posixpath.normpath(posixpath.join(posixpath.dirname(on_github), path))
        uri = f"project/{place}" if place in OUTSIDE else place.removeprefix("docs/")
        if files.get_file_from_path(uri) is None or (uri == place and place not in OUTSIDE):
            return words.removeprefix("!").strip("[]")
        link = posixpath.relpath(uri, posixpath.dirname(here) or ".")
        return f"{words}({link}{'#' + anchor if anchor else ''})"

    return LINK.sub(moved, markdown)
