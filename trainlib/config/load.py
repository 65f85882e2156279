"""The way from command-line arguments to a resolved configuration, or to a list of all mistakes in it."""

from __future__ import annotations

import hashlib
import json
import numbers
import os
import re
import shlex
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

import trainlib
from trainlib.config.checking.arguments import argument_keys, argument_mistakes
from trainlib.config.checking.given_parts import METRICS, TRANSFORM, refuse_lost_values, refuse_missing_parts
from trainlib.config.checking.messages import schema_mistakes
from trainlib.config.checking.other_words import separate_words, with_words
from trainlib.config.checking.own_parts import own_part_mistakes
from trainlib.config.checking.rules import broken_rules
from trainlib.config.checking.suggest import nearest
from trainlib.config.reading.merge import is_override, merge, parse_overrides
from trainlib.config.reading.yaml_source import COMMAND_LINE, Source, read_file
from trainlib.config.schema.base import Named
from trainlib.config.schema.defaults import resolve
from trainlib.config.schema.sections import Config
from trainlib.errors import ConfigError, Mistake
from trainlib.parts import Parts

OLDER_DATA = {"split": "index", "decode": "pillow"}  # values that no new run has

_IN_PYTHON = "the mapping given in Python"


def load_config(
    arguments: Sequence[str | os.PathLike[str] | Mapping[str, Any]],
    custom: Mapping[str, Any] | None = None,
    code: Mapping[str, str] | None = None,
    parts: Parts | None = None,
) -> Config:
    """Load the configuration that the arguments `CONFIG... [key=value ...]`, in any order, describe, and resolve it.

    A CONFIG is a path, the name of a shipped configuration or, in Python, a mapping of the same form. They merge from
    left to right; overrides come last.

    custom  names of parts that are passed as Python objects, by section (model, loss, data), where they replace the
            configured names, or by the key `data.augment.custom` or `evaluation.metrics`
    code    the SHA-256 of code that `--code` names, by its name; it replaces what the files say. None without `--code`
    parts   what that code registers; None where it is not imported: names in it, and their arguments, are not checked

    Raises ConfigError, which lists every mistake with its place. Files that the values name need not exist here: they
    are looked for where they are read, as a resumed run needs no weights file.
    """
    given = [os.fspath(argument) if isinstance(argument, os.PathLike) else argument for argument in arguments]
    spaced = separate_words([word for word in given if isinstance(word, str) and not _names_file(word)])
    mistakes = [
        Mistake("", f"{word}: no such file, and a key needs its value. {say}") for word, say in spaced.items() if say
    ]
    given = [argument for argument in given if not (isinstance(argument, str) and argument in spaced)]
    overrides = [argument for argument in given if isinstance(argument, str) and is_override(argument)]
    files = [argument for argument in given if argument not in overrides]
    if not (files or mistakes):
        shipped = ", ".join(shipped_configs())
        raise ConfigError([Mistake("", f"no configuration given: must be the path of a file or one of {shipped}")])
    layers, unread = _read_all(files)
    mistakes += unread
    command_line = Source({})
    try:
        command_line = parse_overrides(overrides)
    except ConfigError as error:
        mistakes.extend(error.mistakes)
    if mistakes:
        raise ConfigError(mistakes)
    custom_layer = _custom_layer(custom or {})
    own = merge([_with_default_sections(merge(layers)), command_line])
    refuse_lost_values(own, custom or {})
    merged = _with_default_sections(merge([own, Source(custom_layer)]))
    paths = [file for file in files if isinstance(file, str)]
    if paths:
        merged.values.setdefault("name", name_from(paths[0]))
    if code is not None:
        merged.values["code"] = dict(code)
    refuse_missing_parts(merged, custom or {})
    return _validated(merged, parts)


def _custom_layer(custom: Mapping[str, Any]) -> dict[str, Any]:
    """Return the layer of a configuration that names parts given as Python objects."""
    layer: dict[str, Any] = {key: {"name": name} for key, name in custom.items() if key not in (TRANSFORM, METRICS)}
    if TRANSFORM in custom:
        layer["data"] = layer.get("data", {}) | {"augment": {"custom": custom[TRANSFORM]}}
    return layer | ({"evaluation": {"metrics": list(custom[METRICS])}} if METRICS in custom else {})


def refuse_renamed_run(arguments: Sequence[str], config: Config) -> None:
    """Raise ConfigError where the config.yaml of a run is given whose directory was renamed, or is a copy.

    It would begin anew in the directory of its name, or go on there. Where `name=` is given, that is what is meant.
    """
    if any(word.startswith("name=") for word in arguments):
        return
    for file in (Path(word) for word in arguments if Path(word).name == "config.yaml"):
        folder, is_run = file.parent, (file.parent / "attempts.jsonl").is_file()
        if not is_run or config.name in (folder.absolute().name, folder.resolve().name):
            continue
        if read_file(file, str(file)).values.get("name") == config.name:
            rule = f"{file}: is of the run {config.name}, and would train into its directory: "
            ways = f"rename {folder} to {config.name} to continue it, or give `--name` for a new run"
            raise ConfigError([Mistake("", rule + ways)])


def read_resolved(path: Path) -> Config:
    """Read a configuration that `dump_config` wrote, with older values for keys that did not exist then."""
    source = read_file(path, str(path), links=False)
    return _validated(replace(source, values=with_older_values(source.values)))


def with_older_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a resolved configuration's values with those that its missing keys had when they did not exist.

    Every key is written into a resolved configuration, so that one that is missing did not exist.
    """
    data = values.get("data")
    return dict(values) | ({"data": OLDER_DATA | data} if isinstance(data, dict) else {})


def shipped_configs() -> dict[str, Path]:
    """Return the paths of the configurations that come with this software, by name."""
    found = [path for folder in ("", "recipes/") for path in sorted(configs_folder().glob(f"{folder}*.yaml"))]
    return {path.stem: path for path in found}


def configs_folder() -> Path:
    """Return the folder of the shipped configurations, inside the installed package or beside it."""
    package = Path(trainlib.__file__).parent
    return package / "configs" if (package / "configs").is_dir() else package.parent / "configs"


def _with_default_sections(source: Source) -> Source:
    """Fill in the default sections that are not there, and the other values of those that name no class.

    So `optimizer.lr=0.02`, and `optimizer: {lr: 0.02}` in a file, change one value of the default optimizer.
    """
    values = dict(source.values)
    for name, field in Config.model_fields.items():
        section = values.get(name, {})
        if isinstance(field.default, Named) and isinstance(section, dict) and "name" not in section:
            values[name] = field.default.model_dump(exclude_unset=True) | section
    return Source(values, source.where)


def _read_all(files: Sequence[str | Mapping[str, Any]]) -> tuple[list[Source], list[Mistake]]:
    layers: list[Source] = []
    mistakes: list[Mistake] = []
    for file in files:
        try:
            layers.append(read_file(*_find(file)) if isinstance(file, str) else _plain(file))
        except ConfigError as error:
            mistakes.extend(error.mistakes)
    return layers, mistakes


def _plain(values: Mapping[str, Any]) -> Source:
    """Convert a mapping from Python to the values of a YAML file: tuples to lists, paths to text, NumPy's numbers."""
    if not isinstance(values, Mapping):
        got = f"the configuration: got a {type(values).__name__}"
        raise ConfigError([Mistake("", f"{got}, must be a file, a name, key=value, or a mapping")])
    try:
        plain = json.loads(json.dumps(dict(values), default=_plain_value))
    except TypeError as error:
        rule = f"the mapping given as configuration must hold plain values, as a YAML file does: {error}"
        raise ConfigError([Mistake("", rule)]) from error
    rule = "got the key {}: a dotted key is for `key=value`, in a mapping it must be nested"
    dotted = [key for section, values in plain.items() if section != "code" for key in _keys_with_dots(section, values)]
    if dotted:
        raise ConfigError([Mistake("", rule.format(key), _IN_PYTHON) for key in dotted])
    return Source(plain, dict.fromkeys(_dotted_keys(plain), _IN_PYTHON))


def _plain_value(value: Any) -> str | int | float:
    """Return a path as text, and a number of another library as Python's; raise TypeError for anything else."""
    if isinstance(value, os.PathLike):
        return str(os.fspath(value))
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    raise TypeError(f"a {type(value).__name__} is none")


def _keys_with_dots(name: str, value: Any) -> Iterator[str]:
    """Yield the keys of a mapping, and of those inside it, that hold a dot."""
    if "." in name:
        yield name
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _keys_with_dots(key, inner)


def _dotted_keys(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _dotted_keys(value, f"{prefix}{key}.")


def _names_file(file: str) -> bool:
    return os.path.exists(file) or file in shipped_configs()


def _find(file: str) -> tuple[Path, str]:
    """Return the path of a CONFIG argument, and its name in messages."""
    shipped = shipped_configs()
    path = Path(file)
    if path.is_file():
        return path, file
    if file in shipped:
        return shipped[file], shipped[file].relative_to(configs_folder().parent).as_posix()
    if path.is_dir():
        rule = f"{file}: is a folder, must be a YAML file; launch init {shlex.quote(file)} writes one for its pictures"
        raise ConfigError([Mistake("", rule)])
    there = {found.stem: str(found) for found in sorted(path.parent.glob("*.y*ml"))}
    guess = nearest(path.stem, [*there, *shipped])
    rule = f"{file}: no such file" + (f"; did you mean {there.get(guess, guess)}?" if guess else "")
    raise ConfigError([Mistake("", f"{rule} (shipped configurations: {', '.join(shipped) or 'none'})")])


def name_from(file: str, otherwise: str = "run", most: int = 100) -> str:
    """Return the default name of a run: the first file's, without characters that a name may not hold.

    otherwise   begins the name where no character of the file's may be in it
    most        characters of the name

    Where letters of other alphabets are lost, a digest of the whole name tells the files apart: `größe.yaml` trains
    into `gr-e-...`, and no other file does.
    """
    stem = unicodedata.normalize("NFC", Path(file).stem)  # macOS takes letters and accents apart
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).lstrip("._-")
    if name and stem.isascii():
        return name[:most]
    digest = hashlib.sha256(stem.encode(errors="surrogateescape")).hexdigest()[:8]
    return f"{name.rstrip('-')[: most - 9] or otherwise}-{digest}"


def _validated(source: Source, parts: Parts | None = None) -> Config:
    """Check values section by section, so that a mistake in one does not hide a broken rule between two others."""
    values = source.values
    class_arguments = argument_keys(values)
    mistakes = argument_mistakes(values, class_arguments) + own_part_mistakes(values, parts, class_arguments)
    config, wrong = _parse(values, class_arguments)
    mistakes = wrong + [m for m in mistakes if m.key not in {w.key for w in wrong}]
    passed = set(Config.model_fields) - {m.key.partition(".")[0] for m in mistakes}
    mistakes += broken_rules(config, passed)
    if mistakes:
        mistakes.sort(key=_section_order)
        raise ConfigError([_told(mistake, source) for mistake in mistakes])
    return resolve(config)


def _told(mistake: Mistake, source: Source) -> Mistake:
    """Return a mistake with its place and, where another tool's words were used, with ours."""
    where, value = source.locate(mistake.key), source.value(mistake.key)
    rule = with_words(mistake.key, value, mistake.rule, typed=where == COMMAND_LINE)
    return replace(mistake, rule=rule, where=where)


def _section_order(mistake: Mistake) -> int:
    """Return a sort key: unknown top-level keys first, then the sections in the order of the schema."""
    order, section = list(Config.model_fields), mistake.key.partition(".")[0]
    return order.index(section) if section in order else -1


def _parse(values: dict[str, Any], class_arguments: Sequence[str]) -> tuple[Config, list[Mistake]]:
    """Return the configuration, with defaults for the sections that have mistakes, and the mistakes."""
    try:
        return Config.model_validate(values), []
    except ValidationError as error:
        mistakes = schema_mistakes(error, values, class_arguments)
        wrong = {str(details["loc"][0]) for details in error.errors(include_url=False)}
        assert wrong <= {m.key.partition(".")[0] for m in mistakes}, "every error must become a mistake"
        good = {key: value for key, value in values.items() if key not in wrong}
        return Config.model_validate({"name": "unnamed", **good}), mistakes
