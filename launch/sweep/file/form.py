"""The form of a sweep file: its keys, and what is wrong with them, apart from the configurations in it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from launch.sweep.file.names import MAX_SWEEP_NAME
from launch.sweep.file.repeats import VARIED, wrong_repeats
from launch.sweep.search.settings import KEYS_OF_SEARCH, wrong_search
from trainlib.config.checking.suggest import format_value, nearest
from trainlib.config.reading.yaml_source import COMMAND_LINE
from trainlib.config.schema.values import check_run_name
from trainlib.errors import Mistake

KEYS = ("name", "configs", "overrides", "grid", "runs", "throttle", *VARIED, *KEYS_OF_SEARCH)
VARYING = ("grid", "runs", "space")
MAX_ELEMENTS = 1000  # SLURM's own limit for an array, unless its administrators raise it
_DOTTED_KEY = re.compile(r"[A-Za-z_]\w*(\.\w+)*")

Values = Mapping[str, Any]


def wrong_form(content: Values) -> Iterator[Mistake]:
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
    if all(content.get(key) is None for key in (*VARYING, *VARIED)):
        rule = "has neither grid, runs, space, folds nor seeds: must have one of them, such as grid: {seed: [0, 1]}"
        yield Mistake("", rule)
    for section in ("overrides", "grid", "space"):
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
    yield from _varied_twice(content)
    yield from wrong_repeats(content)
    yield from wrong_search(content, MAX_ELEMENTS)


def _varied_twice(content: Values) -> Iterator[Mistake]:
    """Yield each key of the space that is given at another place, too."""
    space, runs = content.get("space"), content.get("runs")
    sections = {key: content.get(key) for key in ("overrides", "grid")}
    sections |= {f"runs.{index}": values for index, values in enumerate(runs if isinstance(runs, list) else [])}
    for key in space if isinstance(space, dict) else ():
        for section, values in sections.items():
            if isinstance(values, dict) and key in values:
                yield Mistake(f"space.{key}", f"is in {section}, too: take it out of one of them")


def lost_values(content: Values, typed: Sequence[str], file: str) -> Iterator[Mistake]:
    """Yield the keys whose values would be lost, as a value that the sweep gives to each run comes after them.

    content   without mistakes in its form
    typed     keys given on the command line
    """
    grid = content.get("grid") or {}
    repeats = [] if content.get("folds") is None else [VARIED["folds"]]  # the first of `seeds` may be given
    runs = content.get("runs") or ()
    varied = [*grid, *(content.get("space") or {}), *repeats, *(key for run in runs for key in run)]
    for key in typed:
        if any(f"{key}.".startswith(f"{other}.") for other in varied):
            yield Mistake(key, f"is varied by {file}: take it out there, or here", COMMAND_LINE)
    for key in content.get("overrides") or ():
        for other in grid:
            if key.startswith(f"{other}."):
                rule = f"is lost, as grid.{other} replaces the section: write it into each of those values"
                yield Mistake(f"overrides.{key}", rule)


def _wrong_name(name: Any) -> Iterator[Mistake]:
    if not isinstance(name, str):
        yield Mistake("name", f"got {format_value(name)}, must be text: put it in quotes")
        return
    try:
        check_run_name(name)
    except ValueError as error:
        yield Mistake("name", f"got {format_value(name)}, {error}")
    else:
        if len(name) > MAX_SWEEP_NAME:
            rule = f"must be at most {MAX_SWEEP_NAME} characters: the names of its runs are longer"
            yield Mistake("name", f"got {format_value(name)}, {rule}")


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
