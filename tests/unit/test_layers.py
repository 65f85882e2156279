"""The structure of the code: who may import whom, what is imported lazily, how long things are."""

import ast
import importlib
import os
import shutil
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from paths import REPOSITORY

MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60
MAX_ENTRIES = 9  # files and folders of a folder

PACKAGES = ("launch", "trainlib")
LIGHT_ROOMS = {
    "launch",
    "trainlib.config",
    "trainlib.errors",
    "trainlib.platform.isolation",
    "trainlib.platform.regular_files",
    "trainlib.runs",
}  # without torch

# Longer than the rule allows, each with its reason. None so far.
LONG_FILES: set[str] = set()
LONG_FUNCTIONS: set[str] = set()
# The rooms of trainlib, its two programs and the small files that all of it stands on; pyproject.toml lists each.
CROWDED_FOLDERS = ["trainlib"]

# Slow to import, so imported only inside the functions that use them.
LAZY = {
    "rich",
    "jinja2",
    "wandb",
    "tensorboard",
    "torch.utils.tensorboard",
    "matplotlib",
    "torchvision",
    "pandas",
    "sklearn",
}
NEVER_IN_THE_LAUNCHER = {"torch", "torchvision", "accelerate", "numpy"}

FILES = sorted(path for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py"))
TESTS = sorted((REPOSITORY / "tests").rglob("*.py"))


def name_of(path: Path) -> str:
    """The dotted module name of a file."""
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(tree: ast.AST) -> Iterator[str]:
    """Every module or name that is imported anywhere below this node, dotted."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import; write the whole name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_at_once(tree: ast.Module) -> Iterator[str]:
    """What importing the module imports: not inside functions, not for the type checker alone."""
    for node in tree.body:
        type_checking = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        if not type_checking and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from imported(node)


def within(name: str, modules: set[str]) -> bool:
    """Whether a dotted name is one of these modules or inside one of them."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    """Hold the packages below `root` against the rooms that pyproject.toml there describes."""
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    words = [sys.executable, "-c", program, "--no-cache"]
    return subprocess.run(words, cwd=root, env={**os.environ, "PYTHONPATH": "."}, capture_output=True, text=True)


def test_imports_go_downwards() -> None:
    found = lint_imports(REPOSITORY)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        (
            "trainlib/data/batches/plan.py",
            "import trainlib.training.session",
            "trainlib.data.batches.plan -> trainlib.training.session",
        ),
        (
            "trainlib/data/batches/plan.py",
            "def f():\n    from trainlib import models",
            "trainlib.data.batches.plan -> trainlib.models",
        ),
        ("trainlib/data/batches/plan.py", "import launch.cli", "trainlib.data.batches.plan -> launch.cli"),
        (
            "launch/local/ranks/program.py",
            "from trainlib.data.batches import plan",
            "launch.local.ranks.program -> trainlib.data.batches.plan",
        ),
        (
            "trainlib/data/batches/rank_slice.py",
            "import trainlib.data.batches.loader",
            "No cycles are allowed in trainlib.data.batches",
        ),
        ("trainlib/shed.py", "", "trainlib.shed"),
    ],
)
def test_a_planted_wrong_import_is_found(file: str, line: str, message: str, tmp_path: Path) -> None:
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    for package in PACKAGES:
        shutil.copytree(REPOSITORY / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / file).open("a") as source:
        source.write(f"\n{line}\n")
    found = lint_imports(tmp_path)
    assert found.returncode == 1, found.stdout
    assert message in found.stdout.replace(" -> \n", " -> ")


def test_slow_packages_are_imported_where_they_are_used() -> None:
    found = {name_of(path): set(imported_at_once(ast.parse(path.read_text()))) for path in FILES}
    assert [(file, name) for file, names in found.items() for name in names if within(name, LAZY)] == []


def long_functions(path: Path) -> list[str]:
    """Names of the functions of a file that are longer than the rule allows."""
    return [
        f"{name_of(path)}.{node.name}"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno >= MAX_FUNCTION_LINES
    ]


def long_files(paths: list[Path]) -> list[str]:
    """Names of the files that are longer than the rule allows."""
    return [name_of(path) for path in paths if len(path.read_text().splitlines()) > MAX_FILE_LINES]


def test_files_and_functions_are_short() -> None:
    assert FILES
    assert set(long_files(FILES)) == LONG_FILES
    assert {function for path in FILES for function in long_functions(path)} == LONG_FUNCTIONS


def crowded_folders(root: Path) -> list[str]:
    """Names of the folders of the packages below `root` that hold more files and folders than the rule allows."""
    entries = defaultdict[Path, set[str]](set)
    for path in (path for package in PACKAGES for path in (root / package).rglob("*")):
        if path.is_file() and path.parent.name != "__pycache__" and path.name not in ("__init__.py", "py.typed"):
            inside = path.relative_to(root)
            for entry in [inside, *inside.parents][:-1]:
                entries[entry.parent].add(entry.name)
    return sorted(str(folder) for folder, names in entries.items() if len(names) > MAX_ENTRIES)


def test_folders_hold_few_entries(tmp_path: Path) -> None:
    assert crowded_folders(REPOSITORY) == CROWDED_FOLDERS
    for folder, files in (("launch/local", MAX_ENTRIES), ("trainlib/data/shed", MAX_ENTRIES + 1)):
        (tmp_path / folder).mkdir(parents=True)
        for name in ["__init__", *(f"file{number}" for number in range(files))]:
            (tmp_path / folder / f"{name}.py").touch()
    assert crowded_folders(tmp_path) == ["trainlib/data/shed"]


def test_test_modules_are_short_and_do_not_import_each_other() -> None:
    """What several of them use is in tests/support."""
    assert TESTS
    assert long_files(TESTS) == []
    modules = {path: {name.split(".")[0] for name in imported(ast.parse(path.read_text()))} for path in TESTS}
    pairs = [(name_of(path), name) for path, names in modules.items() for name in names]
    assert [pair for pair in pairs if pair[1].startswith("test_") or pair[1] in ("conftest", "tests")] == []


def test_the_launcher_and_the_config_load_without_torch() -> None:
    light = [name_of(path) for path in FILES if within(name_of(path), LIGHT_ROOMS)]
    program = f"""
import importlib, sys
for module in {[name for name in light if not name.endswith("__main__")]!r}:
    importlib.import_module(module)
print(sorted(sys.modules.keys() & {NEVER_IN_THE_LAUNCHER!r}))
"""
    result = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
    for path in FILES:
        if name_of(path) in light:
            inside_functions = set(imported(ast.parse(path.read_text())))
            assert not [name for name in inside_functions if within(name, NEVER_IN_THE_LAUNCHER)], path


def test_console_scripts_resolve() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert project["scripts"]
    for target in project["scripts"].values():
        module, _, function = target.partition(":")
        assert callable(getattr(importlib.import_module(module), function))
