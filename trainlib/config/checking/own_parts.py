"""Checks of names like `code:TinyNet`, and of their arguments, against the parts that the user's code registers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from trainlib.config.checking.messages import unknown_key
from trainlib.config.checking.suggest import nearest
from trainlib.config.custom import CODE_PREFIX, custom_part_missing, is_code, own_name
from trainlib.config.libraries.catalog import BALANCED
from trainlib.config.schema.keys import names_at
from trainlib.errors import Mistake
from trainlib.parts import Part, Parts

_KINDS = {"model": "model", "loss": "loss", "optimizer": "optimizer", "data": "dataset"}  # by section
_NOT_FOR_CODE = {
    "model": {
        "weights": "load them in the function that makes the model",
        "freeze": "call requires_grad_(False) in the function that makes the model",
    },
    "loss": {},
    "optimizer": {},
    "data": {
        "table": "read it in the function that makes the data set",
        "group": "keep the samples of a group on one side of the two splits that the function makes",
        "test_fraction": "hold that share out in the function that makes the data set",
    },
}


def own_part_mistakes(values: Mapping[str, Any], parts: Parts | None, class_arguments: Iterable[str]) -> list[Mistake]:
    """Return what is wrong with the parts of one's own that a configuration names.

    values   the whole configuration, which may have other mistakes too
    parts    what the code has registered; None where it is not imported: then arguments are not checked
    """
    found: list[Mistake] = []
    has_code = bool(values.get("code"))
    for kind, key, name in _named(values):
        if not is_code(name):
            continue
        if not has_code:
            found.append(Mistake(key, custom_part_missing(name)))
        elif parts is not None and parts.find(kind, own_name(name)) is None:
            found.append(Mistake(key, _unknown(kind, name, parts)))
    for section, kind in _KINDS.items():
        content = values.get(section)
        if isinstance(content, dict):
            found += _arguments(section, kind, content, parts, class_arguments)
    return found


def _named(values: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Yield kind, key and name of everything that may be a part of one's own."""
    for section, kind in _KINDS.items():
        content = values.get(section)
        if isinstance(content, dict):
            yield kind, f"{section}.name", content.get("name")
    data, evaluation = values.get("data"), values.get("evaluation")
    augment = data.get("augment") if isinstance(data, dict) else None
    if isinstance(augment, dict):
        yield "transform", "data.augment.custom", augment.get("custom")
    metrics = evaluation.get("metrics") if isinstance(evaluation, dict) else None
    for index, name in enumerate(metrics if isinstance(metrics, list) else []):
        yield "metric", f"evaluation.metrics.{index}", name


def _unknown(kind: str, name: str, parts: Parts) -> str:
    own, files, known = own_name(name), ", ".join(parts.files), parts.names(kind)
    other = next((part for part in parts.registered if part.name == own), None)
    if other is not None:
        return f"got {name}, which {files} registers as a {other.kind}: must be a {kind}, by @trainlib.{kind}"
    if not known:
        return f"got {name}, but {files} registers no {kind}: put @trainlib.{kind} above its definition"
    guess = nearest(own, known)
    listed = ", ".join(CODE_PREFIX + one for one in known)
    return f"got {name}, must be one of {listed}" + (f"; did you mean {CODE_PREFIX}{guess}?" if guess else "")


def _arguments(
    section: str, kind: str, content: Mapping[str, Any], parts: Parts | None, class_arguments: Iterable[str]
) -> Iterator[Mistake]:
    """Yield the mistakes in the arguments of a section; every other section of `data` has none."""
    own = names_at(section)
    given = [key for key in content if key not in own]
    name = content.get("name")
    if not is_code(name):
        if section == "data":
            yield from (Mistake(f"data.{key}", unknown_key(f"data.{key}", own, class_arguments)) for key in given)
        return
    for key, way in _NOT_FOR_CODE[section].items():
        if content.get(key) is not None:
            yield Mistake(f"{section}.{key}", f"must be null beside {name}: {way}")
    if section == "loss" and content.get("weight") == BALANCED:
        yield Mistake("loss.weight", f"got {BALANCED}, which is for the losses of torch: give {name} numbers")
    part = parts.find(kind, own_name(str(name))) if parts is not None else None
    if part is not None:
        yield from _of_part(section, part, content, given)


def _of_part(section: str, part: Part, content: Mapping[str, Any], given: Iterable[str]) -> Iterator[Mistake]:
    taken, takes_any = part.arguments()
    for key in given:
        if key not in taken and not takes_any:
            yield Mistake(f"{section}.{key}", unknown_key(f"{section}.{key}", list(taken), [], part.name))
    for key, is_required in taken.items():
        if is_required and key not in content:
            yield Mistake(f"{section}.{key}", f"is missing: {part.name} needs it ({part.place})")
        elif key in names_at(section) and key in content:
            yield Mistake(f"{section}.{key}", f"is a key of the section itself, and no argument of {part.name}: rename")
    groups = content.get("param_groups") if section == "optimizer" else None
    for index, group in enumerate(groups if isinstance(groups, list) else []):
        for key in group if isinstance(group, dict) else ():
            if key != "match" and key not in taken and not takes_any:
                full = f"{section}.param_groups.{index}.{key}"
                yield Mistake(full, unknown_key(full, list(taken), [], part.name))
