"""Reads a sweep file into the runs that it stands for, each with its whole configuration. Starts nothing.

    name: lr-and-seed                    # optional: the file's own name
    configs: [quickstart]                # as for `launch run`
    overrides: {train.epochs: 5}         # optional: the same in every run
    grid:                                # every combination
      optimizer.lr: [0.01, 0.1]
      seed: [0, 1]
    runs:                                # and/or a list; with a grid, each of them with every combination
      - {model: {name: resnet18}}
      - {model: {name: vgg16, width: 0.25}, train.batch_size: 128}
    throttle: 2                          # optional: how many of them SLURM runs at the same time

A value goes where the same `key=value` on the command line would put it, so a mapping replaces its section.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainlib.config import Config, load_config
from trainlib.config.checking.suggest import format_value, nearest
from trainlib.config.load import configs_folder
from trainlib.config.reading.yaml_source import COMMAND_LINE, Source, read_file
from trainlib.config.schema.values import check_run_name
from trainlib.errors import ConfigError, Mistake

KEYS = ("name", "configs", "overrides", "grid", "runs", "throttle")
MAX_ELEMENTS = 1000  # SLURM's own limit for an array, unless its administrators raise it
_DOTTED_KEY = re.compile(r"[A-Za-z_]\w*(\.\w+)*")
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")
_MAX_NAME = 100  # of a run's name

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Element:
    """One run of a sweep.

    values      the values that the sweep sets for this run alone, by dotted key
    arguments   CONFIG... key=value ..., as `launch run` takes them
    config      the configuration that the arguments give
    """

    name: str
    values: Values
    arguments: tuple[str, ...]
    config: Config


@dataclass(frozen=True)
class Sweep:
    """All runs of a sweep file. `throttle` is how many of them may run at the same time on SLURM; None for no limit."""

    name: str
    elements: tuple[Element, ...]
    throttle: int | None

    @property
    def varied(self) -> list[str]:
        """Return the dotted keys whose values are not the same in all elements, in the file's order."""
        keys = dict.fromkeys(key for element in self.elements for key in element.values)
        return [key for key in keys if len({json.dumps(e.values.get(key)) for e in self.elements}) > 1]


def find_sweep(path: Path) -> Path:
    """Return the file: the path as given, or the shipped sweep of that name. Raises ConfigError where there is none."""
    shipped = {file.stem: file for file in sorted((configs_folder() / "sweeps").glob("*.yaml"))}
    if path.exists() or path.suffix or len(path.parts) > 1:
        return path
    if str(path) in shipped:
        return shipped[str(path)]
    guess = nearest(str(path), shipped)
    rule = f"{path}: no such file" + (f"; did you mean {guess}?" if guess else "")
    raise ConfigError([Mistake("", f"{rule} (shipped sweeps: {', '.join(shipped)})")])


def read_sweep(path: Path, overrides: Sequence[str] = (), code: Mapping[str, str] | None = None) -> Sweep:
    """Return the sweep in a file, with every element's configuration checked.

    path        a file, or the name of a shipped sweep
    overrides   `key=value`, which go over the file's own
    code        the SHA-256 of the code of one's own, by its name; None without any
    Raises ConfigError with every mistake and its place, those of the elements' configurations among them.
    """
    path = find_sweep(path)
    source = read_file(path, str(path), dotted_in=("overrides", "grid", "runs"))
    mistakes = list(_wrong_form(source.values))
    mistakes += [
        Mistake(key, f"is varied by {path}: take it out there, or here", COMMAND_LINE)
        for key in (text.partition("=")[0] for text in overrides)
        if key in (source.values.get("grid") or {})
    ]
    if mistakes:
        raise ConfigError([m if m.where else replace(m, where=source.locate(m.key)) for m in mistakes])
    content = source.values
    name = content.get("name") or _NOT_IN_NAMES.sub("-", path.stem).lstrip("._-") or "sweep"
    combinations = list(_combinations(content.get("grid") or {}, content.get("runs") or [{}]))
    if len(combinations) > MAX_ELEMENTS:
        rule = f"got {len(combinations)} runs, must be at most {MAX_ELEMENTS}: cut the grid, or make several sweeps"
        raise ConfigError([Mistake("", rule, str(path))])
    common = [*content["configs"], *_words(content.get("overrides") or {}), *overrides]
    group = _words({"tracking.wandb.group": name})
    elements = _elements(
        source,
        [
            (element_name, values, (*common, *_words(values), *group, *_words({"name": element_name})))
            for element_name, values in zip(element_names(name, combinations), combinations, strict=True)
        ],
        code,
    )
    return Sweep(name, elements, content.get("throttle"))


def element_names(sweep: str, combinations: Sequence[Values]) -> list[str]:
    """Return a run name for each combination: `sweep-lr0.1-seed0`, which stays the same when the grid grows.

    Names that would be too long, or not all different, are numbered instead, from `sweep-000` on.
    """
    labels = short_keys(dict.fromkeys(key for values in combinations for key in values))
    labels |= {key: "" for key in labels if key.endswith(".name")}  # SGD, not optimizer-SGD
    names = ["-".join([sweep, *(_part(labels[key], value) for key, value in c.items())]) for c in combinations]
    if len(set(names)) == len(names) and max(map(len, names)) <= _MAX_NAME:
        return names
    return [f"{sweep}-{index:03d}" for index in range(len(combinations))]


def _wrong_form(content: Values) -> Iterator[Mistake]:
    """Yield the mistakes in the file itself, apart from the configurations in it."""
    for key in content:
        if key not in KEYS:
            guess = nearest(key, KEYS)
            listed = f"must be one of {', '.join(KEYS)}"
            yield Mistake(key, "unknown key; " + (f"did you mean {guess}?" if guess else listed))
    name, configs, throttle = content.get("name"), content.get("configs"), content.get("throttle")
    if name is not None:
        yield from _wrong_name(name)
    if not (isinstance(configs, list) and configs and all(isinstance(config, str) for config in configs)):
        given = f"got {format_value(configs)}" if "configs" in content else "is missing"
        yield Mistake("configs", f"{given}, must be a list of configurations, such as [quickstart]")
    if throttle is not None and not (type(throttle) is int and throttle >= 1):
        yield Mistake("throttle", f"got {format_value(throttle)}, must be a whole number >= 1, or null")
    if content.get("grid") is None and content.get("runs") is None:
        yield Mistake("", "has neither grid nor runs: must have one of them, such as grid: {seed: [0, 1]}")
    for section in ("overrides", "grid"):
        if content.get(section) is not None:
            yield from _wrong_keys(section, content[section])
    if content.get("runs") is not None:
        yield from _wrong_runs(content["runs"], content.get("grid"))
    if isinstance(grid := content.get("grid"), dict):
        for key, choices in grid.items():
            if not (isinstance(choices, list) and choices):
                yield Mistake(
                    f"grid.{key}", f"got {format_value(choices)}, must be a list of values, such as [0.01, 0.1]"
                )


def _wrong_name(name: Any) -> Iterator[Mistake]:
    if not isinstance(name, str):
        yield Mistake("name", f"got {format_value(name)}, must be text: put it in quotes")
        return
    try:
        check_run_name(name)
    except ValueError as error:
        yield Mistake("name", f"got {format_value(name)}, {error}")


def _wrong_runs(runs: Any, grid: Any) -> Iterator[Mistake]:
    if not (isinstance(runs, list) and runs):
        yield Mistake(
            "runs", f"got {format_value(runs)}, must be a list of mappings, such as [{{seed: 0}}, {{seed: 1}}]"
        )
        return
    for index, values in enumerate(runs):
        yield from _wrong_keys(f"runs.{index}", values)
        for key in values if isinstance(values, dict) and isinstance(grid, dict) else ():
            if key in grid:
                yield Mistake(f"runs.{index}.{key}", "is in the grid, too: take it out of one of them")


def _wrong_keys(section: str, values: Any) -> Iterator[Mistake]:
    if not (isinstance(values, dict) and values):
        yield Mistake(section, f"got {format_value(values)}, must be keys with values, such as {{optimizer.lr: 0.1}}")
        return
    for key in values:
        if not _DOTTED_KEY.fullmatch(key):
            yield Mistake(f"{section}.{key}", "must be a dotted key, such as optimizer.lr")
        elif key in ("name", "tracking.wandb.group"):
            yield Mistake(f"{section}.{key}", "must not be set here: it is made from the sweep's own name")


def _combinations(grid: Mapping[str, Sequence[Any]], runs: Sequence[Values]) -> Iterator[Values]:
    """Yield each of the runs with every combination of the grid; the grid's last key varies fastest."""
    for run in runs:
        for choice in itertools.product(*grid.values()):
            yield {**run, **dict(zip(grid, choice, strict=True))}


def _elements(
    source: Source, planned: Sequence[tuple[str, Values, tuple[str, ...]]], code: Mapping[str, str] | None
) -> tuple[Element, ...]:
    """Return the elements from (name, values, arguments) each; raise ConfigError with the mistakes of all of them."""
    elements: list[Element] = []
    mistakes: dict[Mistake, None] = {}  # in order; what is wrong in every element is told once
    seen: dict[str, str] = {}
    for name, values, arguments in planned:
        try:
            config = load_config(arguments, code=code)
        except ConfigError as error:
            mistakes |= dict.fromkeys(_relocated(mistake, source) for mistake in error.mistakes)
            continue
        elements.append(Element(name, values, arguments, config))
        twin = seen.setdefault(json.dumps(config.model_dump(exclude={"name"})), name)
        if twin != name:
            rule = f"the runs {twin} and {name} are the same: must differ in something; remove one"
            mistakes[Mistake("", rule, source.locate("grid") or source.locate("runs"))] = None
    if mistakes:
        raise ConfigError(list(mistakes))
    return tuple(elements)


def _relocated(mistake: Mistake, source: Source) -> Mistake:
    """Return a mistake on the command line with the place in the sweep file from which its value came."""
    sections = ("grid", *(f"runs.{index}" for index in range(len(source.values.get("runs") or []))), "overrides")
    key = mistake.key
    while mistake.where == COMMAND_LINE and key:
        for place in (f"{section}.{key}" for section in sections):
            if place in source.where:
                return replace(mistake, where=source.where[place])
        key = key.rpartition(".")[0]
    return mistake


def _words(values: Values) -> list[str]:
    """Return values as `key=value` arguments, in JSON, which is YAML."""
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]


def short_keys(keys: Iterable[str]) -> dict[str, str]:
    """Return for each dotted key the shortest ending that no other key has: `lr`, or `optimizer.lr` beside another lr.

    `.name` at the end is left out: `optimizer.name` is `optimizer`.
    """
    whole = {key: key.removesuffix(".name") for key in keys}
    short = {}
    for key, text in whole.items():
        parts = text.split(".")
        endings = (".".join(parts[-length:]) for length in range(1, len(parts) + 1))
        short[key] = next(
            e for e in endings if e == text or sum(f".{t}".endswith(f".{e}") for t in whole.values()) == 1
        )
    return short


def value_text(value: Any) -> str:
    """Return a value as short text: `0.1`, `backbone`; a mapping gives its contents, `SGD-lr0.1`."""
    if isinstance(value, Mapping):
        return "-".join(_part("" if key == "name" else key, inner) for key, inner in value.items())
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _part(label: str, value: Any) -> str:
    """Return the part of a run name for one value: `lr0.1`, `freeze-backbone`; for a class `SGD-lr0.1`."""
    text = _NOT_IN_NAMES.sub("-", value_text(value)).strip("-")
    if not label or not text or (isinstance(value, Mapping) and "name" in value):
        return text or label
    return label + text if type(value) in (int, float) else f"{label}-{text}"
