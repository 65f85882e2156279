"""Check of Python and the installed packages, without importing them."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata

from launch.doctor.finding import Finding, note, ok, problem

SHOWN = ("torch", "torchvision", "accelerate", "numpy", "wandb")
_REQUIREMENT = re.compile(r"(?P<name>[A-Za-z0-9._-]+)\s*\(?(?P<versions>[^;()]*)\)?\s*(?P<marker>;.*)?")
_NUMBER = re.compile(r"\d+")


def check_software() -> Iterator[Finding]:
    """Check Python, then the packages: installed, new enough for this software, and fitting each other."""
    yield ok("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    installed = {name: version for name in SHOWN if (version := _version(name)) is not None}
    wanted = {name: found for name in ("trainlaunch", "torchvision") if (found := _requirements(name))}
    said = ", ".join(f"{name} {version}" for name, version in installed.items())
    mistakes = [
        mistake
        for owner, requirements in wanted.items()
        for mistake in unmet(owner, requirements, {name: _version(name) for name in _names(requirements)})
    ]
    if mistakes:
        yield problem("packages", f"{said}; {'; '.join(mistakes)}", "pip install --upgrade trainlaunch, or make run")
    elif "trainlaunch" not in wanted:
        yield note("packages", f"{said}; trainlaunch itself is not installed, but run from its source")
    else:
        yield ok("packages", said)


def unmet(owner: str, requirements: Sequence[str], installed: Mapping[str, str | None]) -> list[str]:
    """Return the requirements of a package that do not hold, from its metadata (`torch (==2.11.0)`).

    Only those without conditions count, and of their versions only the least and the exact one.
    """
    mistakes = []
    for text in requirements:
        match = _REQUIREMENT.fullmatch(text)
        if match is None or match["marker"]:
            continue
        version = installed.get(match["name"])
        if version is None:
            mistakes.append(f"{match['name']} is missing, which {owner} needs")
        elif not all(_holds(version, clause.strip()) for clause in match["versions"].split(",")):
            mistakes.append(f"{match['name']} is {version}, but {owner} needs {match['versions'].strip()}")
    return mistakes


def _holds(version: str, clause: str) -> bool:
    if clause.startswith(">="):
        return _numbers(version) >= _numbers(clause)
    if clause.startswith("=="):
        return _numbers(version) == _numbers(clause)
    return True


def _numbers(version: str) -> list[int]:
    """Return the release numbers of a version, without zeros at the end: [2, 11] for 2.11.0+cu128."""
    release = _NUMBER.findall(re.split(r"[+a-z]", version.lstrip("=<>~! "))[0])
    numbers = [int(number) for number in release]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return numbers


def _names(requirements: Sequence[str]) -> list[str]:
    return [match["name"] for text in requirements if (match := _REQUIREMENT.fullmatch(text))]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _requirements(package: str) -> list[str]:
    try:
        return metadata.requires(package) or []
    except metadata.PackageNotFoundError:
        return []
