"""A strict YAML reader: plain values only, each with the line where it was written.

The rules are those of YAML 1.2's core schema, not PyYAML's: `1e-3` is a number, only `true` and `false` are booleans
(so `precision: no` is the text "no"), `01:00:00` and `2024-01-01` are text. A key may appear once. A tag that is not
of these plain types is refused, so nothing in a file is ever executed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from trainlib.errors import ConfigError, Mistake
from trainlib.platform.regular_files import read_regular

COMMAND_LINE = "command line"
MAX_VALUES = 10_000  # aliases can make a short file expand without end
_MOST_DIGITS = 20  # of whole numbers: those with more fit neither a float nor a seed
MAX_BYTES = 1 << 18  # PyYAML reads about 100 kB a second

_TAG = "tag:yaml.org,2002:"
_CORE_SCHEMA = {
    "null": (r"~|null|Null|NULL|", "~nN\0"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    "merge": (r"<<", "<"),
}


@dataclass(frozen=True)
class Source:
    """A mapping of plain values, and where each dotted key of it was written: `configs/x.yaml line 14`."""

    values: dict[str, Any]
    where: dict[str, str] = field(default_factory=dict)

    def locate(self, key: str) -> str:
        """Return the place where this key, or the nearest section around it, was written; empty if there is none."""
        while key and key not in self.where:
            key = key.rpartition(".")[0]
        return self.where.get(key, "")

    def value(self, key: str) -> Any:
        """Return the value at a dotted key, {} where there is none."""
        found: Any = self.values
        for part in key.split("."):
            inner = found.get(part, {}) if isinstance(found, dict) else {}
            found = found[int(part)] if isinstance(found, list) and part.isdigit() else inner
        return found


class _Loader(yaml.SafeLoader):
    """PyYAML's parser with the core schema's plain scalars."""

    yaml_implicit_resolvers = {}  # noqa: RUF012  (PyYAML's own name for its class-wide table)
    nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Count the nodes, so that a file of very many ends here and not in minutes."""
        self.nodes += 1
        if self.nodes > 2 * MAX_VALUES:  # keys are nodes, too
            problem = f"it has more than {MAX_VALUES} values: no configuration is so large"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=self.get_mark())
        return super().compose_node(parent, index)


def add_core_schema(cls: Any) -> None:
    """Make a PyYAML loader or dumper class type plain scalars by the core schema of YAML 1.2."""
    for name, (pattern, first) in _CORE_SCHEMA.items():
        cls.add_implicit_resolver(_TAG + name, re.compile(f"(?:{pattern})\\Z"), ["" if c == "\0" else c for c in first])


add_core_schema(_Loader)


def read_file(path: Path, display_name: str, dotted_in: Collection[str] = ("code",), *, links: bool = True) -> Source:
    """Read a YAML file whose top level is a mapping. Raises ConfigError, with lines, for anything else.

    display_name   the file's name in messages
    dotted_in      the top-level keys inside which a key may have a dot: `own.py`, or `optimizer.lr` in a sweep
    links          a link may stand for the file, as one that a user names; inside a run directory none may
    """
    try:
        data = read_regular(Path(os.path.realpath(path)) if links else path, MAX_BYTES)
    except OSError as error:
        raise ConfigError([Mistake("", f"{display_name}: cannot be read: {error.strerror}")]) from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            [Mistake("", "not a text file: must be YAML in UTF-8", f"{display_name} line {line}")]
        ) from error
    reader = _Reader(display_name, dotted_in)
    node = reader.compose(text)
    if node is None:
        raise ConfigError([Mistake("", "the file is empty: must hold at least one `key: value`", display_name)])
    if not isinstance(node, yaml.MappingNode):
        what = "a list" if isinstance(node, yaml.SequenceNode) else "a single value"
        rule = f"got {what} at the top level, must be keys with values, such as `seed: 0`"
        raise ConfigError([Mistake("", rule, reader.place(node))])
    values = reader.value(node, "")
    if reader.mistakes:
        raise ConfigError(reader.mistakes)
    return Source(values, reader.where)


def parse_value(text: str, key: str) -> Any:
    """Return the value of `key=text` on the command line. Raises ConfigError if the text is not YAML."""
    reader = _Reader(None)
    try:
        node = reader.compose(text)
    except ConfigError as error:
        raise ConfigError([Mistake(key, m.rule, m.where) for m in error.mistakes]) from error
    value = None if node is None else reader.value(node, key)
    if reader.mistakes:
        raise ConfigError(reader.mistakes)
    return value


class _Reader:
    """A converter of one document's nodes to values, which collects their places and the mistakes in them."""

    def __init__(self, display_name: str | None, dotted_in: Collection[str] = ()) -> None:
        self.display_name = display_name  # None: the command line, where lines mean nothing
        self.dotted_in = dotted_in
        self.where: dict[str, str] = {}
        self.mistakes: list[Mistake] = []
        self._count = 0
        self._open: set[int] = set()  # nodes that are being converted: one that comes up again is a cycle

    def place(self, node: yaml.Node) -> str:
        """Return where a node begins: `configs/x.yaml line 14`, or `command line`."""
        return self._line(node.start_mark.line)

    def _line(self, line: int) -> str:
        return COMMAND_LINE if self.display_name is None else f"{self.display_name} line {line + 1}"

    def compose(self, text: str) -> yaml.Node | None:
        """Parse a document into nodes; None if it is empty. Raises ConfigError for text that is not YAML."""
        try:
            node: yaml.Node | None = yaml.compose(text, Loader=_Loader)
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position)
            rule = f"character U+{ord(text[error.position]):04X} is not allowed in YAML: remove it"
            raise ConfigError([Mistake("", rule, self._line(line))]) from error
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            raise ConfigError([Mistake("", _syntax(error), self._line(mark.line if mark else 0))]) from error
        except RecursionError as error:
            raise ConfigError([Mistake("", "nested too deeply", self._line(0))]) from error
        return node

    def value(self, node: yaml.Node, key: str) -> Any:
        """Return the plain value of a node at a dotted key."""
        self._count += 1
        if self._count > MAX_VALUES:
            raise ConfigError(
                [Mistake("", f"more than {MAX_VALUES} values: no configuration is so large", self.place(node))]
            )
        if id(node) in self._open:
            raise ConfigError([Mistake(key, "an alias must not lie inside what it stands for", self.place(node))])
        if key:
            self.where[key] = self.place(node)
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
                return self._mapping(node, key)
            if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
                return [self.value(child, _join(key, i)) for i, child in enumerate(node.value)]
            return self._scalar(node, key)
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: yaml.MappingNode, key: str) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line
            if key_node.tag == _TAG + "merge":
                merged = self._merge_key(value_node, key) | merged
            elif key_node.tag != _TAG + "str":
                shown = key_node.value if isinstance(key_node, yaml.ScalarNode) else "a list or mapping"
                self._refuse(key, f"got the key {shown}, must be a name", key_node)
            elif "." in key_node.value and key.partition(".")[0] not in self.dotted_in:
                rule = f"got the key {key_node.value}: a dotted key is for the command line, here it must be nested"
                self._refuse(key, rule, key_node)
            elif key_node.value in own:
                name = _join(key, key_node.value)
                self._refuse(name, f"appears twice, first on line {lines[key_node.value] + 1}: remove one", key_node)
            else:
                lines[key_node.value] = line
                own[key_node.value] = self.value(value_node, _join(key, key_node.value))
                self.where[_join(key, key_node.value)] = self._line(line)
        return merged | own

    def _merge_key(self, node: yaml.Node, key: str) -> dict[str, Any]:
        """Return the keys and values that `<<: *base` or `<<: [*a, *b]` merges in; the first of a list wins."""
        parts = node.value if isinstance(node, yaml.SequenceNode) else [node]
        merged: dict[str, Any] = {}
        for part in parts:
            value = self.value(part, key)
            if isinstance(value, dict):
                merged = value | merged
            else:
                self._refuse(key, "`<<` must be followed by a mapping or a list of mappings", node)
        return merged

    def _scalar(self, node: yaml.Node, key: str) -> Any:
        kind, text = node.tag.removeprefix(_TAG), node.value
        try:
            if kind == "null":
                return None
            if kind == "bool":
                return {"true": True, "false": False}[text.lower()]
            if kind == "int" and len(text) <= _MOST_DIGITS:
                return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
            if kind == "float":
                return float(re.sub(r"\.(?=[iInN])", "", text))
            if kind in ("str", "merge"):
                return text
        except (ValueError, KeyError, TypeError):
            self._refuse(key, f"{text!r} is not of the type !!{kind}", node)
            return None
        if kind == "int":
            self._refuse(key, f"a whole number of {len(text)} characters, must have at most {_MOST_DIGITS}", node)
            return None
        self._refuse(key, f"the tag {_shown_tag(node.tag)} is not allowed: write a plain value", node)
        return None

    def _refuse(self, key: str, rule: str, node: yaml.Node) -> None:
        self.mistakes.append(Mistake(key, rule, self.place(node)))


def _join(key: str, part: str | int) -> str:
    return f"{key}.{part}" if key else str(part)


def _shown_tag(tag: str) -> str:
    return "!!" + tag.removeprefix(_TAG) if tag.startswith(_TAG) else tag


_PLAIN_SYNTAX = {
    "expected ',' or '}'": "a { is not closed, or a comma is missing before this",
    "expected ',' or ']'": "a [ is not closed, or a comma is missing before this",
    "a quoted scalar": "a quote is not closed: end the text with the quote that it begins with",
    "expected <block end>": "this line is indented as none before it: begin all keys of a section in one column",
}


def _syntax(error: yaml.MarkedYAMLError) -> str:
    """Return the syntax error in words, plain ones for the common mistakes."""
    problem = error.problem or "unknown problem"
    if "'\\t'" in problem:
        return "not valid YAML: indent with spaces, not with a tab"
    if "mapping values are not allowed" in problem:
        return "not valid YAML: a second ': ' in one line; put text that holds ': ' in quotes"
    if "but found another document" in problem:
        return "a second document begins here ('---'): must be one document"
    for part, plain in _PLAIN_SYNTAX.items():
        if part in f"{problem} {error.context}":
            return f"not valid YAML: {plain}"
    return f"not valid YAML: {problem}" + (f" {error.context}" if error.context else "")
