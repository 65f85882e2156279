"""The kinds of plain values that an argument of a library's class takes, read from its annotation."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Kind:
    """A set of plain values.

    words     its name in a message, as in "must be a number"
    accepts   returns True for a value that belongs to it
    """

    words: str
    accepts: Callable[[Any], bool]


def is_number(value: Any) -> bool:
    """Return True for a finite number that a float can hold; booleans are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


ANYTHING = Kind("anything", lambda value: True)
NUMBER = Kind("a number", is_number)
WHOLE = Kind("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool))
BOOLEAN = Kind("true or false", lambda value: isinstance(value, bool))
TEXT = Kind("text", lambda value: isinstance(value, str))
NULL = Kind("null", lambda value: value is None)

_SIMPLE = {"float": NUMBER, "int": WHOLE, "bool": BOOLEAN, "str": TEXT}
_SEQUENCES = ("list", "List", "Sequence", "Iterable", "tuple", "Tuple")
_PLURALS = {"a number": "numbers", "a whole number": "whole numbers", "true or false": "true or false", "text": "texts"}


def list_of(element: Kind) -> Kind:
    """Return the kind of lists of any length whose elements are all of one kind."""
    words = f"a list of {_PLURALS.get(element.words, f'({element.words})')}"
    return Kind(words, lambda value: isinstance(value, list) and all(map(element.accepts, value)))


def fixed_list(elements: list[Kind]) -> Kind:
    """Return the kind of lists of exactly these elements, each of its own kind."""
    words = "a list [" + ", ".join(element.words for element in elements) + "]"

    def accepts(value: Any) -> bool:
        if not isinstance(value, list) or len(value) != len(elements):
            return False
        return all(kind.accepts(part) for kind, part in zip(elements, value, strict=True))

    return Kind(words, accepts)


def choice(values: list[Any]) -> Kind:
    """Return the kind of exactly these values."""
    words = ("one of " if len(values) > 1 else "") + ", ".join(map(str, values))
    return Kind(words, lambda value: value in values)


def either(kinds: list[Kind]) -> Kind:
    """Return the union of several kinds."""
    if len(kinds) == 1:
        return kinds[0]
    return Kind(" or ".join(kind.words for kind in kinds), lambda value: any(kind.accepts(value) for kind in kinds))


def kind_of(annotation: ast.expr | None, tensor: Kind | None = None) -> Kind | None:
    """Return the kind that an annotation stands for; None where no YAML value can be one (a function, a module).

    tensor   the kind that stands for a Tensor in a configuration; None: nothing does
    An unknown name is ANYTHING.
    """
    match annotation:
        case ast.Constant(value=None):
            return NULL
        case ast.Constant(value=str(text)):
            return kind_of(ast.parse(text, mode="eval").body, tensor)
        case ast.Name(id="Tensor"):
            return tensor
        case ast.Name(id=name) if name in _SIMPLE:
            return _SIMPLE[name]
        case ast.Name(id="Callable") | ast.Attribute(attr="Module"):
            return None
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _union([left, right], tensor)
        case ast.Subscript(value=ast.Name(id=outer), slice=inner):
            return _subscript(outer, inner.elts if isinstance(inner, ast.Tuple) else [inner], tensor)
    return ANYTHING


def _union(parts: list[ast.expr], tensor: Kind | None) -> Kind | None:
    kinds = [kind for kind in (kind_of(part, tensor) for part in parts) if kind is not None]
    return either(kinds) if any(kind is not NULL for kind in kinds) else None


def _subscript(outer: str, parts: list[ast.expr], tensor: Kind | None) -> Kind | None:
    if outer in ("Callable", "type"):
        return None
    if outer == "Optional":
        return _union([*parts, ast.Constant(value=None)], tensor)
    if outer == "Union":
        return _union(parts, tensor)
    if outer == "Literal":
        return choice([part.value for part in parts if isinstance(part, ast.Constant)])
    if outer in _SEQUENCES:
        kinds = [kind_of(part, tensor) for part in parts if not (isinstance(part, ast.Constant) and part.value is ...)]
        known = [kind for kind in kinds if kind is not None]
        if len(known) < len(kinds):
            return None
        return fixed_list(known) if outer in ("tuple", "Tuple") and len(known) == len(parts) else list_of(known[0])
    return ANYTHING
