"""Look-ups in the schema by dotted key, such as `train.early_stopping.patience`."""

from __future__ import annotations

import types
from collections.abc import Iterator
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from trainlib.config.schema.base import Named, Section
from trainlib.config.schema.sections import Config


def _alternatives(annotation: Any) -> Iterator[Any]:
    """Yield the types of a union; of any other annotation, the annotation itself."""
    if get_origin(annotation) in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from _alternatives(part)
    elif get_origin(annotation) is Annotated:
        yield from _alternatives(get_args(annotation)[0])
    else:
        yield annotation


def _section_in(annotation: Any) -> type[Section] | None:
    """Return the section class in a field's annotation, alone or in a list; None if there is none."""
    for part in _alternatives(annotation):
        if isinstance(part, type) and issubclass(part, Section):
            return part
        if get_origin(part) is list and (section := _section_in(get_args(part)[0])):
            return section
    return None


def section_at(key: str) -> type[Section] | None:
    """Return the section class at a dotted key, in which list indices are skipped; None if there is none."""
    section: type[Section] | None = Config
    for part in key.split(".") if key else []:
        if part.isdigit():
            continue
        field = section.model_fields.get(part) if section else None
        section = _section_in(field.annotation) if field else None
    return section


def is_named(key: str) -> bool:
    """Return True if the section at a dotted key names a class and holds arguments for it."""
    section = section_at(key)
    return section is not None and issubclass(section, Named)


def field_at(key: str) -> FieldInfo | None:
    """Return the schema's field at a dotted key; None if there is none."""
    parent, _, name = key.rpartition(".")
    section = section_at(parent)
    return section.model_fields.get(name) if section else None


def names_at(key: str) -> list[str]:
    """Return the schema's own keys in the section at a dotted key."""
    section = section_at(key)
    return list(section.model_fields) if section else []


def takes_null(field: FieldInfo) -> bool:
    """Return True if the field may be null."""
    return type(None) in _alternatives(field.annotation)


def takes_bool(field: FieldInfo) -> bool:
    """Return True if the field may be true or false."""
    return bool in _alternatives(field.annotation)


def literals(field: FieldInfo) -> list[str]:
    """Return the words that a field may be set to; none if it takes other values than words from a list."""
    return [word for part in _alternatives(field.annotation) if get_origin(part) is Literal for word in get_args(part)]


@cache
def all_keys() -> tuple[str, ...]:
    """Return every dotted key of the schema, sections included: `train`, `train.epochs`, ..."""

    def walk(section: type[Section], prefix: str) -> Iterator[str]:
        for name, field in section.model_fields.items():
            yield prefix + name
            inner = _section_in(field.annotation)
            if inner is not None:
                yield from walk(inner, f"{prefix}{name}.")

    return tuple(walk(Config, ""))
