"""Messages for pydantic's errors: the value, the rule and the fix; one mistake for each wrong value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from trainlib.config.checking.suggest import edit_distance, format_value, nearest, one_of
from trainlib.config.schema.keys import all_keys, field_at, is_named, literals, names_at, takes_null
from trainlib.config.schema.values import SecretError
from trainlib.errors import Mistake

_TYPE_RULES = {
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "string_type": "must be text: put it in quotes",
    "string_too_short": "must not be empty",
    "bool_type": "must be true or false",
    "list_type": "must be a list",
    "model_type": "must be a section with keys of its own, {{key: value}}",
    "greater_than": "must be > {gt:g}",
    "greater_than_equal": "must be >= {ge:g}",
    "less_than": "must be < {lt:g}",
    "less_than_equal": "must be <= {le:g}",
    "too_short": "must have at least {min_length} elements",
    "too_long": "must have at most {max_length} elements",
}
# Keys that take one of several forms: pydantic reports an error for each form, the user made one mistake.
_FORMS: Mapping[str, tuple[tuple[type, ...], str]] = {
    "data.normalize": ((dict,), "auto, none or {mean: [r, g, b], std: [r, g, b]}"),
    "data.augment.policy": (
        (dict,),
        "trivial, randaugment, autoaugment or augmix, one with arguments, {name: randaugment, num_ops: 3}, or null",
    ),
    "scheduler": ((dict, list), "a section with a name, {name: StepLR, step_size: 5}, a list of them, or null"),
}


def schema_mistakes(error: ValidationError, values: Any, class_arguments: Iterable[str]) -> list[Mistake]:
    """Return the mistakes behind a failed validation of `values`; for `class_arguments` see `unknown_key`."""
    mistakes: dict[str, Mistake] = {}
    for details in error.errors(include_url=False):
        key, value, fits_form = _place(details, values)
        forms, words = _FORMS.get(key, ((object,), ""))
        if not isinstance(value, forms):
            guess = nearest(value, literals(field)) if isinstance(value, str) and (field := field_at(key)) else None
            rule = f"got {format_value(value)}, must be {words}" + (f"; did you mean {guess}?" if guess else "")
        elif not fits_form:
            continue
        elif details["type"] == "extra_forbidden":
            parent = key.rpartition(".")[0]
            rule = unknown_key(key, names_at(parent), class_arguments)
        elif details["type"] == "missing":
            rule = "is missing: must be given here"
        else:
            is_secret = isinstance(details.get("ctx", {}).get("error"), SecretError)
            got = "" if is_secret else f"got {format_value(value)}, "
            rule = f"{got}{_value_rule(details, key, value)}"
        mistakes.setdefault(key, Mistake(key, rule))
    return list(mistakes.values())


def _place(details: ErrorDetails, values: Any) -> tuple[str, Any, bool]:
    """Return the dotted key and the value of an error, and True if the error is about the form that the value has.

    Pydantic's location holds keys and indices, and between them the name of the form that it tried where a key takes
    several: `('data', 'normalize', 'Normalize', 'std')`. Such a name begins with a capital or holds a bracket.
    """
    parts: list[str] = []
    value, fits_form = values, True
    for part in details["loc"]:
        if isinstance(part, int) or (isinstance(value, dict) and part in value):
            parts.append(str(part))
            value = value[part]
        elif isinstance(part, str) and (part[0].isupper() or "[" in part):
            fits_form = fits_form and part.startswith("list[") == isinstance(value, list)
            fits_form = fits_form and not part.startswith("literal[")
        else:
            parts.append(str(part))
            value = None
    return ".".join(parts), value, fits_form


def _value_rule(details: ErrorDetails, key: str, value: Any) -> str:
    kind, context = details["type"], details.get("ctx", {})
    field = field_at(key)
    null = field is not None and takes_null(field)
    if kind == "literal_error" and field is not None:
        return one_of([*literals(field), *(["null"] if null else [])], value)
    if kind == "model_type" and is_named(key):
        return "must be a section with a name, {name: ..., ...}"
    if kind == "value_error":
        return str(context["error"])
    if kind in _TYPE_RULES:
        return _TYPE_RULES[kind].format(**context) + (" (or null)" if null and kind.endswith("_type") else "")
    return details["msg"][:1].lower() + details["msg"][1:]


def unknown_key(key: str, valid: Sequence[str], class_arguments: Iterable[str], class_name: str = "") -> str:
    """Return why `key` is refused, with the closest of the `valid` names in its section, or the section it belongs to.

    class_arguments   dotted keys beyond the schema's: the arguments of the named classes
    class_name        the class that takes the valid names, such as `SGD`; empty for a section's own keys
    """
    section, _, name = key.rpartition(".")
    guess = nearest(name, valid)
    home = next((k for k in [*all_keys(), *class_arguments] if k.rpartition(".")[2] == name or k == key), None)
    if home and not (guess and edit_distance(guess, name) <= 1):
        where = f"section {home.rpartition('.')[0]}" if "." in home else "the top level"
        return f"unknown key here; it belongs to {where}: did you mean {home}?"
    listed = (
        f"{class_name + ' takes' if class_name else 'must be one of'} {', '.join(valid) if valid else 'no arguments'}"
    )
    if not guess:
        return f"unknown key; {listed}"
    full = f"{section}.{guess}" if section else guess
    return f"unknown key; did you mean {full}?" + (f" ({listed})" if class_name else "")
