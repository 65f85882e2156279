"""HTML and SVG that no text can break: whatever is put into an element is escaped, unless it is Markup itself."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable
from typing import Any

VOID = {"br", "img", "link", "meta"}  # elements without an end tag


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


Content = str | int | float | Iterable["Content"] | None
Attribute = str | int | float | None


def element(name: str, /, *content: Content, **attributes: Attribute) -> Markup:
    """An element. `class_` stands for class, `data_key` for data-key; an attribute or content of None is left out."""
    named = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{named}>" if name in VOID else f"<{name}{named}>{markup(content)}</{name}>")


def markup(content: Content) -> Markup:
    """Content as HTML; a sequence is put together without anything in between."""
    if content is None:
        return Markup()
    if isinstance(content, Markup):
        return content
    if isinstance(content, str | int | float):
        return Markup(html.escape(str(content)))
    return Markup("".join(map(markup, content)))


def json_data(value: Any) -> Markup:
    """A script element of JSON, for the page's own script to read; no text in it can end the element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(f'<script type="application/json">{text}</script>')
