"""Site presets: the settings of a cluster, from slurm/sites/NAME.yaml or a file of the user's own."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import launch
from launch.slurm.options import FLAG, OMITTED, Options, broken_rule
from trainlib.config import SlurmConfig
from trainlib.config.checking.suggest import format_value, nearest, one_of
from trainlib.config.libraries.kinds import NULL, TEXT, Kind, either, list_of
from trainlib.config.reading.yaml_source import read_file
from trainlib.errors import ConfigError, Mistake, UserError

_SBATCH_OPTIONS = ("account", "qos", "constraint")


@dataclass(frozen=True)
class Site:
    """The settings of a cluster.

    partition, time  for runs whose configuration names none
    options          options of sbatch
    modules          environment modules that a job loads before it starts
    srun             further options of srun, as shell words, such as those of a container
    environment      environment variables for the ranks
    $NAME in the last two is replaced by that variable of the environment in which the preset is read.
    """

    partition: str | None = None
    time: str | None = None
    options: Options = field(default_factory=dict)
    modules: Sequence[str] = ()
    srun: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


_KINDS = {
    **dict.fromkeys(("partition", "time", *_SBATCH_OPTIONS, "srun"), either([TEXT, NULL])),
    "modules": list_of(TEXT),
    "sbatch": Kind(
        "sbatch's long options, each with text, a number, true (an option without a value) or null (left out)",
        lambda value: isinstance(value, dict) and all(isinstance(v, str | int | None) for v in value.values()),
    ),
    "environment": Kind(
        "names of variables, each with text or a number",
        lambda value: isinstance(value, dict) and all(type(v) in (str, int) for v in value.values()),
    ),
}


def shipped_files() -> Path:
    """Return the folder of the batch script and the site presets, inside the installed package or beside it."""
    package = Path(launch.__file__).parent
    installed = package / "slurm" / "files"
    return installed if installed.is_dir() else package.with_name("slurm")


def load_site(name: str | None, known: Sequence[str] = ()) -> Site:
    """Return the preset in a file, or a shipped one by its name; an empty one for None.

    known   the options that this machine's sbatch takes, as for `broken_rule`
    Raises ConfigError with every mistake in it.
    """
    if name is None:
        return Site()
    source = read_file(*_find(name))
    mistakes = [replace(m, where=source.locate(m.key)) for m in _mistakes(source.values, known)]
    if mistakes:
        raise ConfigError(mistakes)
    return _site(source.values)


def overrides(site: Site, slurm: SlurmConfig) -> list[str]:
    """Return the partition and time of a site, where the configuration has none, as overrides of it."""
    says = {"partition": site.partition, "time": site.time}
    unsaid = [key for key in says if key not in slurm.model_fields_set or getattr(slurm, key) is None]
    return [f"slurm.{key}={json.dumps(says[key])}" for key in unsaid if says[key] is not None]


def _find(name: str) -> tuple[Path, str]:
    shipped = {path.stem: path for path in sorted((shipped_files() / "sites").glob("*.yaml"))}
    if Path(name).is_file():
        return Path(name), name
    if name in shipped:
        return shipped[name], f"slurm/sites/{name}.yaml"
    guess = nearest(Path(name).stem, shipped)
    rule = f"--site {name}: no such file" + (f"; did you mean {guess}?" if guess else "")
    raise UserError(f"{rule} (shipped sites: {', '.join(shipped)})")


def _mistakes(values: Mapping[str, Any], known: Sequence[str]) -> Iterator[Mistake]:
    for key, value in values.items():
        kind = _KINDS.get(key)
        if kind is None:
            guess = nearest(key, _KINDS)
            yield Mistake(key, "unknown key; " + (f"did you mean {guess}?" if guess else one_of(_KINDS)))
        elif not kind.accepts(value):
            yield Mistake(key, f"got {format_value(value)}, must be {kind.words}")
        elif key == "sbatch":
            for option, setting in _options(value).items():
                if rule := broken_rule(option, setting, known):
                    yield Mistake(f"sbatch.{option}", rule)


def _options(values: Mapping[str, Any]) -> dict[str, str | None]:
    return {
        key: OMITTED if value is None or value is False else FLAG if value is True else str(value)
        for key, value in values.items()
    }


def _site(values: Mapping[str, Any]) -> Site:
    named = {key: values[key] for key in _SBATCH_OPTIONS if values.get(key) is not None}
    return Site(
        partition=values.get("partition"),
        time=values.get("time"),
        options=named | _options(values.get("sbatch", {})),
        modules=tuple(values.get("modules", ())),
        srun=os.path.expandvars(values["srun"]) if values.get("srun") else None,
        environment={name: os.path.expandvars(str(value)) for name, value in values.get("environment", {}).items()},
    )
