"""Checks the arguments that a section gives to the class it names, against what that class takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, get_args

from trainlib.config.checking.messages import unknown_key
from trainlib.config.checking.suggest import nearest, one_of, shown
from trainlib.config.custom import is_custom
from trainlib.config.libraries import catalog
from trainlib.config.libraries.catalog import Family
from trainlib.config.libraries.kinds import is_number
from trainlib.config.libraries.source import Argument
from trainlib.config.reading.keys import names_at
from trainlib.config.schema import Config
from trainlib.errors import Mistake

Bound = tuple[str, Callable[[Any], bool]]


def _each(test: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """The test for every number of a list, or for one number."""
    return lambda value: all(map(test, value)) if isinstance(value, list) else test(value)


_POSITIVE: Bound = ("> 0", _each(lambda x: x > 0))
_NOT_NEGATIVE: Bound = (">= 0", _each(lambda x: x >= 0))
_AT_LEAST_ONE: Bound = (">= 1", _each(lambda x: x >= 1))
_FRACTION: Bound = (">= 0 and < 1", _each(lambda x: 0 <= x < 1))
_PROBABILITY: Bound = (">= 0 and <= 1", _each(lambda x: 0 <= x <= 1))

# Rules for numbers whose name means the same wherever it occurs in a family.
_BOUNDS: Mapping[Family, Mapping[str, Bound]] = {
    "loss": {
        "label_smoothing": _PROBABILITY,
        "weight": _NOT_NEGATIVE,
        "pos_weight": _NOT_NEGATIVE,
        "beta": _NOT_NEGATIVE,
        "delta": _POSITIVE,
        "p": ("1 or 2", lambda value: value in (1, 2)),
    },
    "optimizer": {
        "lr": _POSITIVE,
        "weight_decay": _NOT_NEGATIVE,
        "momentum": _FRACTION,
        "betas": _FRACTION,
        "ns_steps": _AT_LEAST_ONE,
    },
    "scheduler": {
        "gamma": _POSITIVE,
        "step_size": _AT_LEAST_ONE,
        "T_max": _AT_LEAST_ONE,
        "T_0": _AT_LEAST_ONE,
        "T_mult": _AT_LEAST_ONE,
        "total_iters": _AT_LEAST_ONE,
        "total_steps": _AT_LEAST_ONE,
        "milestones": _AT_LEAST_ONE,
        "patience": _NOT_NEGATIVE,
        "max_lr": _POSITIVE,
    },
    "model": {"width": _POSITIVE, "dropout": _FRACTION},
}


def argument_mistakes(values: Mapping[str, Any], elsewhere: Iterable[str]) -> list[Mistake]:
    """Every wrong name or argument in the sections that name a class. `values` may be wrong in any other way too.

    elsewhere   where else a key may belong, `argument_keys(values)`
    """
    sections = _named_sections(values)
    return [m for family, key, section in sections for m in _check(family, key, section, elsewhere)]


def argument_keys(values: Mapping[str, Any]) -> list[str]:
    """The dotted keys of every argument that the named classes, or the default ones, take."""
    sections = _named_sections({family: {} for family in get_args(Family)} | dict(values))
    return [f"{family}.{name}" for family, _, section in sections for name in _taken(family, section)[1] or ()]


def _named_sections(values: Mapping[str, Any]) -> Iterator[tuple[Family, str, dict[str, Any]]]:
    for family in get_args(Family):
        section = values.get(family)
        if isinstance(section, dict):
            yield family, family, section
        elif isinstance(section, list):
            yield from ((family, f"{family}.{i}", part) for i, part in enumerate(section) if isinstance(part, dict))


def _taken(family: Family, section: Mapping[str, Any]) -> tuple[Any, Mapping[str, Argument] | None]:
    """The class that a section names, or the default where it names none, and what it takes: None if unknown."""
    name = section.get("name", getattr(Config.model_fields[family].default, "name", None))
    if is_custom(name) and family in ("model", "loss"):
        return name, {}
    known = isinstance(name, str) and name in catalog.names(family)
    return name, catalog.arguments(family, name) if known else None


def _check(family: Family, key: str, section: Mapping[str, Any], elsewhere: Iterable[str]) -> Iterator[Mistake]:
    own = names_at(key)
    given = {argument: value for argument, value in section.items() if argument not in own}
    name, taken = _taken(family, section)
    if taken is None:
        # Without the class, only a misspelt key of the section itself can be told.
        for wrong in given:
            if guess := nearest(wrong, own):
                yield Mistake(f"{key}.{wrong}", f"unknown key; did you mean {key}.{guess}?")
        if isinstance(name, str):
            yield Mistake(f"{key}.name", _unknown_name(family, name))
        return
    yield from _check_given(family, key, given, own, elsewhere, name)
    for missing in [n for n, argument in taken.items() if argument.required and n not in given]:
        yield Mistake(f"{key}.{missing}", f"is missing: {name} needs it, {taken[missing].kind.words}")
    groups = section.get("param_groups") if family == "optimizer" else None
    for i, group in enumerate(groups if isinstance(groups, list) else []):
        if isinstance(group, dict):
            given = {argument: value for argument, value in group.items() if argument != "match"}
            yield from _check_given(family, f"{key}.param_groups.{i}", given, ["match"], [], name)


def _check_given(
    family: Family, key: str, given: Mapping[str, Any], own: list[str], elsewhere: Iterable[str], name: str
) -> Iterator[Mistake]:
    taken = {} if is_custom(name) else catalog.arguments(family, name)
    for argument, value in given.items():
        full = f"{key}.{argument}"
        bound = _BOUNDS[family].get(argument)
        if argument not in taken:
            yield Mistake(full, unknown_key(full, [*taken, *own], elsewhere, name))
        elif not taken[argument].kind.accepts(value):
            yield Mistake(full, f"got {shown(value)}, must be {taken[argument].kind.words}")
        elif bound is not None and _is_numeric(value) and not bound[1](value):
            yield Mistake(full, f"got {shown(value)}, must be {bound[0]}")


def _is_numeric(value: Any) -> bool:
    return all(map(is_number, value)) if isinstance(value, list) else is_number(value)


def _unknown_name(family: Family, name: str) -> str:
    if reason := catalog.REFUSED[family].get(name):
        return f"{name} {reason}"
    choices = catalog.names(family)
    if len(choices) <= 20:
        return f"got {shown(name)}, {one_of(choices, name)}"
    guess = nearest(name, choices)
    own = ", ".join(catalog.OWN_MODELS)
    rule = f"must be {own} or a classification model of torchvision (torchvision.models.list_models())"
    return f"got {shown(name)}, {rule}" + (f"; did you mean {guess}?" if guess else "")
