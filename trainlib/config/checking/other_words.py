"""Words of other tools, with ours: `lr=0.1` is `optimizer.lr=0.1`. They are told to the user; nothing is guessed."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from typing import Any, cast, get_args

from trainlib.config.checking.vocabulary import KEYS, NO_KEY, OFF, ON, OWN, VALUES
from trainlib.config.libraries import catalog
from trainlib.config.libraries.catalog import Family
from trainlib.config.schema.keys import all_keys, field_at, literals, takes_bool

_WHOLE = ("scheduler", "slurm", "checkpoint", "evaluation")  # sections whose keys mean nothing elsewhere


def instead(key: str, value: str) -> str | None:
    """Return the words to type in place of `key=value`, or a sentence; None where there is nothing to say.

    key     a dotted key, a word of another tool, or an option without its dashes
    value   as it was typed; "" where there was none
    """
    plain = key.lower().replace("-", "_")
    section, _, last = plain.rpartition(".")
    if advice := NO_KEY.get(last):
        return advice
    template = KEYS.get(plain) or ("" if section in _WHOLE else KEYS.get(last, ""))
    if not template and (plain in all_keys() or section in get_args(Family)):
        template = f"{key}={{}}"
    if template.startswith("data.root=") and (source := ours("data.name", value)):
        return f"data.name={source}"
    target = template.partition("=")[0]
    if last in ("bf16", "fp16") and value.lower() in ("", *ON):
        value = last
    if (known := ours(target, value)) is not None:
        return template.format(known)
    names = _names(target) if target.endswith(".name") else ()
    if value and names and value not in names and not set("/:") & set(value):
        return OWN.get(target) or (None if target == key else template.format("NAME"))
    return template.format(shlex.quote(value) if value else "...") or None


def ours(key: str, value: str) -> str | None:
    """Return the value of a key that another tool's word means; None where none is known."""
    known = VALUES.get(key, {})
    plain = _plain(value)
    if value in known or plain in known:
        return known.get(value, known.get(plain))
    field = field_at(key) if key else None
    if field is not None and takes_bool(field) and plain in (*ON, *OFF):
        return "true" if plain in ON else "false"
    return next((name for name in _names(key) if _plain(name) == plain and plain), None)


def with_words(key: str, value: Any, rule: str, *, typed: bool) -> str:
    """Return the rule of a mistake, with the exact words to type where another tool's were used.

    typed   on the command line; in a file, the same is written as YAML
    """
    if isinstance(value, dict) and len(value) == 1 and key not in all_keys():  # a section of another tool
        [(name, inner)] = value.items()
        return with_words(f"{key}.{name}", inner, rule, typed=typed)
    if key == "mirror" or (isinstance(value, dict | list) and key not in NO_KEY):  # the first may hold a password
        return rule
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    separated = re.fullmatch(r"(?!code:|run:)(\w+):(\S+)", text)
    if separated and not typed and "must be a section" in rule:
        return f"{rule}. Put a space behind the colon: {separated[1]}: {separated[2]}"
    words = f"{key}={shlex.quote(json.dumps([value]))}" if rule.endswith("must be a list") else instead(key, text)
    if rule.endswith("must be a number") and (percent := re.fullmatch(r"(\d+(?:\.\d+)?) ?%", text)):
        words = f"{key}={float(percent[1]) / 100:g}"
    if words is None or words in (f"{key}={text}", f"{key}={shlex.quote(text)}", f"{key}=..."):  # what was typed
        return rule
    if not typed and words not in (*NO_KEY.values(), *OWN.values()) and not words.startswith(("-", "launch ")):
        words = f"write {', '.join(_as_yaml(word) for word in shlex.split(words))}"
    bare, _, guess = rule.partition("; did you mean ")
    target = words.partition("=")[0]
    if target == key and guess.rstrip("?") not in words:  # one of the two is enough
        rule = bare
    named = f" (NAME: {', '.join(_names(target))})" if words.endswith("=NAME") else ""
    return f"{rule}{'' if rule.endswith('?') else '.'} {sentence(words)}{named}"


def sentence(words: str) -> str:
    """Return what `instead` gave as a sentence: `Type train.epochs=5`."""
    is_sentence = words in NO_KEY.values() or words in OWN.values() or words.startswith("write ")
    return f"{words[0].upper()}{words[1:]}" if is_sentence else f"Type {words}"


def separate_words(words: Sequence[str]) -> dict[str, str]:
    """Return what to type for each word that names a key in another way: `train.epochs 5`, `lr:0.1`, `+seed=1`.

    words   those of a command line that name no configuration, in their order

    The value that follows a key, and what stands between, are among them with nothing to type.
    """
    found: dict[str, str] = {}
    for index, word in enumerate(words):
        key = word.rstrip(":=")
        following = [other for other in words[index + 1 :] if other != "="][:1]
        value = "".join(other for other in following if "=" not in other)
        if word in found:
            continue
        if answer := _respelt(word):
            found[word] = sentence(answer)
        elif is_key(key) and (value or word == key) and (answer := instead(key, value)):
            found |= {word: sentence(answer), value: "", **({"=": ""} if "=" in words[index + 1 : index + 2] else {})}
        elif word in catalog.names("model"):
            found[word] = sentence(f"model.name={word}")
    return found


def _respelt(word: str) -> str | None:
    """Return what to type for one word in the form of other tools, such as Hydra's; None for any other word."""
    if removed := re.fullmatch(r"~([A-Za-z_][\w.]*)", word):
        return f"{removed[1]}=null" if is_key(removed[1]) else None
    parts = re.fullmatch(r"\+{0,2}([A-Za-z_][\w.]*(?:[/:][A-Za-z_][\w.]*)?)( *==? *|: ?)(.+)", word)
    if parts is None or (parts[2] == "=" and re.match(r"[A-Za-z_][\w.]*=", word)):
        return None
    key = re.sub("[/:]", ".", parts[1])
    return instead(key, parts[3]) if is_key(key) or is_key(key.rpartition(".")[2]) else None


def is_key(word: str) -> bool:
    """Return True for a key of ours or of another tool."""
    plain = word.lower().replace("-", "_")
    section = plain.partition(".")[0]
    return (
        plain in all_keys()
        or plain in KEYS
        or plain in NO_KEY
        or (section in get_args(Family) and "." in plain and "=" not in plain)
    )


def _plain(word: str) -> str:
    return word.lower().replace("-", "").replace("_", "").replace(" ", "")


def _names(key: str) -> tuple[str, ...]:
    family, _, name = key.partition(".")
    if name == "name" and family in get_args(Family):
        return catalog.names(cast(Family, family))
    field = field_at(key) if key else None
    return tuple(map(str, literals(field))) if field is not None else ()


def _as_yaml(word: str) -> str:
    """Return `a.b=c` as it stands in a file: `a: {b: c}`."""
    key, _, value = word.partition("=")
    *sections, last = key.split(".")
    text = f"{last}: {value}"
    for section in reversed(sections):
        text = f"{section}: {{{text}}}"
    return text
