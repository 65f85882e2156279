"""Checks of a section's arguments against those that the class it names takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, get_args

from trainlib.config.checking.messages import unknown_key
from trainlib.config.checking.suggest import format_value, nearest, one_of
from trainlib.config.custom import is_code, is_custom
from trainlib.config.libraries import catalog, timm_models
from trainlib.config.libraries.catalog import Family
from trainlib.config.libraries.kinds import is_number
from trainlib.config.libraries.signatures import Argument
from trainlib.config.schema.keys import names_at
from trainlib.config.schema.sections import Config
from trainlib.errors import Mistake

OWN_FAMILIES = ("model", "loss", "optimizer")  # that a part of one's own may be of

Bound = tuple[str, Callable[[Any], bool]]


def _each(test: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Return a test that holds for a number, or for every number of a list."""
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


def argument_mistakes(values: Mapping[str, Any], class_arguments: Iterable[str]) -> list[Mistake]:
    """Return every wrong name or argument in the sections that name a class.

    values            the whole configuration, which may have other mistakes too
    class_arguments   `argument_keys(values)`: other places where a misplaced key may belong
    """
    sections = _named_sections(values)
    return [m for family, key, section in sections for m in _check(family, key, section, class_arguments)]


def argument_keys(values: Mapping[str, Any]) -> list[str]:
    """Return the dotted keys of all arguments that the named classes take, or the default ones where none is named."""
    sections = _named_sections({family: {} for family in get_args(Family)} | dict(values))
    return [
        f"{family}.{name}" for family, _, section in sections for name in _class_and_arguments(family, section)[1] or ()
    ]


def _named_sections(values: Mapping[str, Any]) -> Iterator[tuple[Family, str, dict[str, Any]]]:
    for family in get_args(Family):
        section = values.get(family)
        if isinstance(section, dict):
            yield family, family, section
        elif isinstance(section, list):
            yield from ((family, f"{family}.{i}", part) for i, part in enumerate(section) if isinstance(part, dict))


def _class_and_arguments(family: Family, section: Mapping[str, Any]) -> tuple[Any, Mapping[str, Argument] | None]:
    """Return the class that a section names, or the default, and the arguments it takes; None for an unknown class."""
    name = section.get("name", getattr(Config.model_fields[family].default, "name", None))
    is_own = is_custom(name) and family in OWN_FAMILIES
    if is_own or (family == "model" and timm_models.is_from_timm(name)):
        return name, {}
    known = isinstance(name, str) and name in catalog.names(family)
    return name, catalog.arguments(family, name) if known else None


def _check(family: Family, key: str, section: Mapping[str, Any], class_arguments: Iterable[str]) -> Iterator[Mistake]:
    if family == "model" and timm_models.is_from_timm(section.get("name")):
        yield from _of_timm(section["name"], section)
        return
    if family in OWN_FAMILIES and is_code(section.get("name")):  # see `own_parts`
        return
    own = names_at(key)
    arguments = {argument: value for argument, value in section.items() if argument not in own}
    name, accepted = _class_and_arguments(family, section)
    if accepted is None:
        # Without the class, only a misspelt key of the section itself can be told.
        for wrong in arguments:
            if guess := nearest(wrong, own):
                yield Mistake(f"{key}.{wrong}", f"unknown key; did you mean {key}.{guess}?")
        if isinstance(name, str):
            yield Mistake(f"{key}.name", _unknown_name(family, name))
        return
    yield from _check_arguments(family, key, arguments, own, class_arguments, name)
    for missing in [n for n, argument in accepted.items() if argument.required and n not in arguments]:
        yield Mistake(f"{key}.{missing}", f"is missing: {name} needs it, {accepted[missing].kind.words}")
    groups = section.get("param_groups") if family == "optimizer" else None
    for i, group in enumerate(groups if isinstance(groups, list) else []):
        if isinstance(group, dict):
            arguments = {argument: value for argument, value in group.items() if argument != "match"}
            yield from _check_arguments(family, f"{key}.param_groups.{i}", arguments, ["match"], [], name)


def _of_timm(name: str, arguments: Iterable[str]) -> Iterator[Mistake]:
    """Yield what is wrong with a timm model: timm itself checks the arguments when it builds one, but for ours."""
    for argument in arguments:
        if key := timm_models.OUR_KEYS.get(argument):
            yield Mistake(f"model.{argument}", f"is no argument here: say {key}")
    if not timm_models.is_installed():
        yield Mistake("model.name", f"got {name}, which timm builds: pip install 'trainlaunch[timm]'")
    elif name.startswith(timm_models.HUB):
        if not name.removeprefix(timm_models.HUB).strip("/"):
            yield Mistake("model.name", f"got {name}, must be hf-hub:ORGANISATION/NAME")
    elif (architecture := timm_models.architecture(name)) not in timm_models.architectures():
        guess = nearest(architecture, timm_models.architectures())
        rule = f"got {name}, must be timm/NAME, one of timm.list_models(), with or without the tag of its weights"
        yield Mistake("model.name", rule + (f"; did you mean timm/{guess}?" if guess else ""))


def _check_arguments(
    family: Family, key: str, arguments: Mapping[str, Any], own: list[str], class_arguments: Iterable[str], name: str
) -> Iterator[Mistake]:
    accepted = {} if is_custom(name) else catalog.arguments(family, name)
    for argument, value in arguments.items():
        full = f"{key}.{argument}"
        bound = _BOUNDS[family].get(argument)
        if argument not in accepted:
            yield Mistake(full, unknown_key(full, [*accepted, *own], class_arguments, name))
        elif not accepted[argument].kind.accepts(value):
            yield Mistake(full, f"got {format_value(value)}, must be {accepted[argument].kind.words}")
        elif bound is not None and _is_numeric(value) and not bound[1](value):
            yield Mistake(full, f"got {format_value(value)}, must be {bound[0]}")


def _is_numeric(value: Any) -> bool:
    return all(map(is_number, value)) if isinstance(value, list) else is_number(value)


def _unknown_name(family: Family, name: str) -> str:
    if reason := catalog.REFUSED[family].get(name):
        return f"{name} {reason}"
    choices = catalog.names(family)
    if len(choices) <= 20:
        return f"got {format_value(name)}, {one_of(choices, name)}"
    guess = nearest(name, choices)
    own = ", ".join(catalog.OWN_MODELS)
    rule = (
        f"must be {own}, a classification model of torchvision (torchvision.models.list_models()), timm/NAME or "
        "hf-hub:ORGANISATION/NAME"
    )
    return f"got {format_value(name)}, {rule}" + (f"; did you mean {guess}?" if guess else "")
