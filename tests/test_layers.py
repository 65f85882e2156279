"""The structure of the code: who may import whom, what is imported lazily, how long things are."""

import ast
import importlib
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60

# Lowest first. A module imports only from lower layers: those of one layer do not import each other.
# A package (config, data, models) is one module here; what is inside it may import each other.
LAYERS = {
    "trainlib": [
        {"errors"},
        {"config"},
        {"randomness", "files", "clock", "logs", "environment"},
        {"plan", "muon"},
        {"data", "models", "losses", "optim", "schedule", "metrics", "tracking", "console", "evaluation_text"}
        | {"checkpoint", "rundir", "stopping", "distributed", "views"},
        {"average", "batches", "curves", "custom", "elastic", "health", "keeper", "peers", "progress", "watchdog"},
        {"engine"},
        {"step", "evaluation", "feature_batches", "shared_sum", "trials", "whitening"},
        {"memory", "scoring", "tally"},
        {"loop"},
        {"build", "features", "outputs", "tuning"},
        {"session", "inference"},
        {"train", "check", "allreduce", "evaluate", "predict", "export", "verify"},
        {"prepare", "api"},
    ],
    "launch": [
        {"command", "devices", "failure", "network", "runs"},
        {"failure_record", "stop_request"},
        {"sweep"},
        {"slurm"},
        {"control", "show", "supervise", "ranks", "doctor", "verify"},
        {"report"},
        {"cli"},
        {"__main__"},
    ],
}

# What a package may import of the other one.
ACROSS = {"trainlib": set[str](), "launch": {"trainlib.config", "trainlib.errors"}}

# Longer than the rule allows, each with its reason. None so far.
LONG_FILES: set[str] = set()
LONG_FUNCTIONS: set[str] = set()

# Slow to import, so imported only inside the functions that use them.
LAZY = {"wandb", "tensorboard", "torch.utils.tensorboard", "matplotlib", "torchvision", "pandas", "sklearn"}
NEVER_IN_THE_LAUNCHER = {"torch", "torchvision", "accelerate", "numpy"}

FILES = sorted(path for package in LAYERS for path in (REPOSITORY / package).rglob("*.py"))


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


def layer_of(package: str, module: str) -> int:
    """The layer of a dotted module of this package, -1 for the package itself."""
    head = module.removeprefix(package).lstrip(".").split(".")[0]
    if not head:
        return -1
    for number, modules in enumerate(LAYERS[package]):
        if head in modules:
            return number
    raise AssertionError(f"{package}.{head} has no layer yet: add it to LAYERS in {Path(__file__).name}")


def within(name: str, modules: set[str]) -> bool:
    """Whether a dotted name is one of these modules or inside one of them."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def wrong_imports(path: Path) -> Iterator[str]:
    module = name_of(path)
    package = module.split(".")[0]
    own_layer, own_module = layer_of(package, module), ".".join(module.split(".")[:2])
    for name in sorted(set(imported(ast.parse(path.read_text())))):
        top = name.split(".")[0]
        if top == package:
            if not within(name, {own_module} - {package}) and layer_of(package, name) >= own_layer >= 0:
                yield f"{module} imports {name}, which is not of a lower layer"
        elif top in LAYERS and not within(name, ACROSS[package]):
            yield f"{module} imports {name}, which is closed to {package}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_go_downwards(path: Path) -> None:
    assert list(wrong_imports(path)) == []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_slow_packages_are_imported_where_they_are_used(path: Path) -> None:
    assert [name for name in imported_at_once(ast.parse(path.read_text())) if within(name, LAZY)] == []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text()
    name = name_of(path)
    if name not in LONG_FILES:
        assert len(text.splitlines()) <= MAX_FILE_LINES
    long = [
        f"{name}.{node.name}"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno >= MAX_FUNCTION_LINES
    ]
    assert [function for function in long if function not in LONG_FUNCTIONS] == []


def test_every_layer_names_real_modules() -> None:
    for package, layers in LAYERS.items():
        for module in set().union(*layers):
            path = REPOSITORY / package / module
            assert path.with_suffix(".py").exists() or (path / "__init__.py").exists(), f"no {package}.{module}"


def test_the_launcher_and_the_config_load_without_torch() -> None:
    light = [name_of(path) for path in FILES if within(name_of(path), {"launch", "trainlib.config", "trainlib.errors"})]
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


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (
            "from trainlib.train import main",
            ["trainlib.plan imports trainlib.train.main, which is not of a lower layer"],
        ),
        ("import trainlib.data", ["trainlib.plan imports trainlib.data, which is not of a lower layer"]),
        ("def f():\n    import launch.cli", ["trainlib.plan imports launch.cli, which is closed to trainlib"]),
        ("from trainlib import config, randomness\nimport torch", []),
    ],
)
def test_these_tests_can_fail(
    source: str, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "REPOSITORY", tmp_path)
    path = tmp_path / "trainlib" / "plan.py"
    path.parent.mkdir()
    path.write_text(source)
    assert list(wrong_imports(path)) == expected
