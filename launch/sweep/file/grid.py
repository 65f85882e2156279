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
    space:                               # and/or samples; with a grid or a list, each of them with every combination
      optimizer.lr: {min: 1e-4, max: 0.1, log: true}
    trials: 16                           # the number of samples
    rungs: [1ep, 3ep]                    # optional: where trials are compared, and one in three goes on
    folds: 5                             # optional: each of them five times, with another fold for the test
    seeds: 5                             # optional: each of them five times, with other seeds
    throttle: 2                          # optional: how many of them SLURM runs at the same time

A value goes where the same `key=value` on the command line would put it, so a mapping replaces its section.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launch.sweep.file.form import MAX_ELEMENTS, VARYING, lost_values, wrong_form
from launch.sweep.file.names import element_names, numbered, sweep_name
from launch.sweep.file.repeats import repeated_keys, with_repeats
from launch.sweep.search import journal
from launch.sweep.search.settings import TPE, Search, has_search, search_of
from launch.sweep.search.space import ends, samples
from trainlib.config import Config, load_config
from trainlib.config.checking.suggest import nearest
from trainlib.config.load import configs_folder
from trainlib.config.reading.yaml_source import COMMAND_LINE, Source, read_file
from trainlib.errors import ConfigError, Mistake
from trainlib.runs import RUNS

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
    """All runs of a sweep file.

    elements   of a search by TPE, those that were sampled so far
    throttle   how many of them may run at the same time on SLURM; None for no limit
    search     how trials are sampled and compared; None where every run trains to its end
    frame      makes further elements, from their values
    repeated   keys by whose values alone runs of one configuration differ: its folds and seeds
    """

    name: str
    elements: tuple[Element, ...]
    throttle: int | None
    search: Search | None
    frame: Frame
    repeated: tuple[str, ...] = ()

    @property
    def varied(self) -> list[str]:
        """Return the dotted keys whose values are not the same in all elements, in the file's order."""
        keys = dict.fromkeys(key for element in self.elements for key in element.values)
        return [key for key in keys if len({json.dumps(e.values.get(key)) for e in self.elements}) > 1]


@dataclass(frozen=True)
class Frame:
    """What the elements of a sweep share.

    common   CONFIG... key=value ... of every run
    code     the SHA-256 of the code of one's own, by its name; None without any
    """

    sweep: str
    source: Source
    common: tuple[str, ...]
    code: Mapping[str, str] | None

    def arguments(self, name: str, values: Values) -> tuple[str, ...]:
        """Return the arguments of `launch run` for a run."""
        own = {"tracking.wandb.group": self.sweep, "name": name}
        sections_first = dict(sorted(values.items(), key=lambda item: item[0].count(".")))  # or they replace their keys
        return (*self.common, *_words(sections_first), *_words(own))

    def element(self, name: str, values: Values) -> Element:
        """Return a run. Raises ConfigError with the mistakes in its configuration, and their places in the file."""
        arguments = self.arguments(name, values)
        try:
            return Element(name, values, arguments, load_config(arguments, code=self.code))
        except ConfigError as error:
            is_unknown = any(mistake.key == "checkpoint.best.metric" for mistake in error.mistakes)
            told = [m for m in error.mistakes if not (is_unknown and m.key == "checkpoint.best.mode")]
            raise ConfigError([_relocated(mistake, self.source) for mistake in told]) from error


def shipped_sweeps() -> dict[str, Path]:
    """Return the sweep files that come with the software, by their names."""
    return {file.stem: file for file in sorted((configs_folder() / "sweeps").glob("*.yaml"))}


def find_sweep(path: Path) -> Path:
    """Return the file: the path as given, or the shipped sweep of that name. Raises ConfigError where there is none."""
    shipped = shipped_sweeps()
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
    source = read_file(path, str(path), dotted_in=("overrides", *VARYING))
    content = source.values
    if "configs" not in content and content.keys() & (Config.model_fields.keys() - {"name"}):
        name = content.get("name") or sweep_name(path.stem)
        rule = f"is a run's configuration, and no sweep: launch run {path} trains it, launch report {name} shows it"
        raise ConfigError([Mistake("", f"{path}: {rule}")])
    mistakes = list(wrong_form(content))
    if not mistakes:
        mistakes += lost_values(content, [text.partition("=")[0] for text in overrides], str(path))
    if mistakes:
        raise ConfigError([m if m.where else replace(m, where=source.locate(m.key)) for m in mistakes])
    name = content.get("name") or sweep_name(path.name)
    common = [*content["configs"], *_words(content.get("overrides") or {}), *overrides]
    base = _base(common, code)
    metric = content.get("metric")
    if metric is not None and not (base and base.checkpoint.best and base.checkpoint.best.metric == metric):
        common += _words({"checkpoint.best": {"metric": metric}})
    frame = Frame(name, source, tuple(common), code)
    seed = base.seed if base else 0
    combinations = _all_combinations(source, seed, RUNS / name)
    if len(combinations) > MAX_ELEMENTS:
        rule = f"got {len(combinations)} runs, must be at most {MAX_ELEMENTS}: cut the grid, or make several sweeps"
        raise ConfigError([Mistake("", rule, str(path))])
    names = numbered(name, len(combinations)) if content.get("space") else element_names(name, combinations)
    elements = _elements(frame, list(zip(names, combinations, strict=True)), _probes(content, seed))
    search = search_of(source, seed, [element.config for element in elements]) if has_search(content) else None
    return Sweep(
        name, tuple(elements[: len(combinations)]), content.get("throttle"), search, frame, repeated_keys(content)
    )


def with_samples(sweep: Sweep) -> Sweep:
    """Return the sweep with what TPE has sampled by now."""
    if sweep.search is None or sweep.search.sampler != TPE:
        return sweep
    values = journal.sampled(RUNS / sweep.name)[: sweep.search.trials]
    named = zip(numbered(sweep.name, len(values)), values, strict=True)
    return replace(sweep, elements=tuple(sweep.frame.element(name, sample) for name, sample in named))


def _base(common: Sequence[str], code: Mapping[str, str] | None) -> Config | None:
    """Return the configuration without what the sweep varies; None where it is wrong without that."""
    with suppress(ConfigError):
        return load_config(common, code=code)
    return None


def _all_combinations(source: Source, seed: int, folder: Path) -> list[Values]:
    """Return the values of every run: each sample, if there is a space, with every combination of the grid and list.

    folder   of the sweep, whose journal holds what TPE has sampled
    Raises ConfigError where the space has too few different samples.
    """
    content = source.values
    space, trials = content.get("space"), content.get("trials") or 0
    rest: list[Values] = list(_combinations(with_repeats(content, seed), content.get("runs") or [{}]))
    if not space:
        return rest
    if content.get("sampler") == TPE:
        return [*journal.sampled(folder)[:trials]]
    found = samples(space, seed, trials)
    if len(found) < trials:
        rule = f"got {trials}, must be at most {len(found)}, the number of different samples of the space"
        raise ConfigError([Mistake("trials", rule, source.locate("trials"))])
    return [{**sample, **values} for sample in found for values in rest]


def _probes(content: Values, seed: int) -> list[Values]:
    """Return values that reach each end of the space, so that a mistake there is told before the first run."""
    space = content.get("space") or {}
    rest = next(_combinations(with_repeats(content, seed), content.get("runs") or [{}]))
    first = {**next(iter(samples(space, seed, 1)), {}), **rest}
    return [{**first, key: value} for key, axis in space.items() for _, value in ends(axis)]


def _combinations(grid: Mapping[str, Sequence[Any]], runs: Sequence[Values]) -> Iterator[Values]:
    """Yield each of the runs with every combination of the grid; the grid's last key varies fastest."""
    for run in runs:
        for choice in itertools.product(*grid.values()):
            yield {**run, **dict(zip(grid, choice, strict=True))}


def _elements(frame: Frame, planned: Sequence[tuple[str, Values]], probes: Sequence[Values]) -> list[Element]:
    """Return the elements from (name, values) each, then the probes; raise ConfigError with all their mistakes."""
    source = frame.source
    elements: list[Element] = []
    mistakes: dict[Mistake, None] = {}  # in order; what is wrong in every element is told once
    seen: dict[str, str] = {}
    for number, (name, values) in enumerate((*planned, *((f"{frame.sweep}-probe", values) for values in probes))):
        try:
            elements.append(frame.element(name, values))
        except ConfigError as error:
            mistakes |= dict.fromkeys(error.mistakes)
            continue
        if number >= len(planned) or source.values.get("sampler") == TPE:  # which may come to the same values again
            continue
        twin = seen.setdefault(json.dumps(elements[-1].config.model_dump(exclude={"name"})), name)
        if twin != name:
            rule = f"the runs {twin} and {name} are the same: must differ in something; remove one"
            where = next(filter(None, map(source.locate, VARYING)), "")
            mistakes[Mistake("", rule, where)] = None
    if mistakes:
        raise ConfigError(list(mistakes))
    return elements


def _relocated(mistake: Mistake, source: Source) -> Mistake:
    """Return a mistake on the command line with the place in the sweep file from which its value came."""
    runs = (f"runs.{index}" for index in range(len(source.values.get("runs") or [])))
    sections = ("grid", *runs, "space", "overrides")
    key = mistake.key
    if mistake.where == COMMAND_LINE and key.startswith("checkpoint.best") and "metric" in source.values:
        key = "metric" if key == "checkpoint.best.metric" else key
        return replace(mistake, key=key, where=source.locate("metric"))
    while mistake.where == COMMAND_LINE and key:
        for place in (f"{section}.{key}" for section in sections):
            if place in source.where:
                return replace(mistake, where=source.where[place])
        key = key.rpartition(".")[0]
    return mistake


def _words(values: Values) -> list[str]:
    """Return values as `key=value` arguments, in JSON, which is YAML."""
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
