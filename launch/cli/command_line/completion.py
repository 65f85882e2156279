"""What a shell completes: names of configurations and runs, keys of the configuration. Click's own does the rest."""

from __future__ import annotations

import os
from pathlib import Path

import click
from click.shell_completion import BashComplete, CompletionItem, add_completion_class


class _Bash(BashComplete):
    """Click's completion for bash, without the space behind `key=`."""

    source_template = BashComplete.source_template.replace(
        "COMPREPLY+=($value)", 'COMPREPLY+=("$value"); [[ $value == *= ]] && compopt -o nospace'
    )


add_completion_class(_Bash)


def complete_config(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Return shipped configurations, YAML files and keys that begin with what was typed."""
    from trainlib.config import shipped_configs
    from trainlib.config.checking.arguments import argument_keys
    from trainlib.config.schema.keys import all_keys, section_at

    keys = [key for key in all_keys() if section_at(key) is None or key == "scheduler"]
    words = [*shipped_configs(), *_yaml_files(begun), *(f"{key}=" for key in sorted({*keys, *argument_keys({})}))]
    return [CompletionItem(word) for word in words if word.startswith(begun)]


def complete_run(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Return the names of the runs that begin with what was typed."""
    from trainlib.runs import RUNS

    names = sorted(entry.name for entry in RUNS.iterdir() if entry.is_dir()) if RUNS.is_dir() else []
    return [CompletionItem(name) for name in names if name.startswith(begun)]


def _yaml_files(begun: str) -> list[str]:
    """Return the YAML files and the folders in the folder that was begun to be typed."""
    folder = os.path.dirname(begun)
    if not os.path.isdir(folder or "."):
        return []
    entries = sorted(Path(folder or ".").iterdir())
    shown = [path.name + ("/" if path.is_dir() else "") for path in entries if not path.name.startswith(".")]
    return [
        os.path.join(folder, name) for name in shown if name.endswith((".yaml", ".yml")) or (begun and name[-1] == "/")
    ]
