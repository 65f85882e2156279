"""The signatures of torch's and torchvision's classes, read from their source text without importing them.

Importing torch takes seconds; parsing the one file that holds a class takes milliseconds.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from trainlib.config.libraries.kinds import Kind, kind_of

# Arguments that a builder fills in by itself or that this project decides.
_MODEL_HIDDEN = {
    "num_classes",
    "weights",
    "progress",
    "norm_layer",
    "aux_logits",
    "dropout_aux",
    "init_weights",
    "conv_stem_configs",
}

# Set by a builder only beside weights of its own, which are loaded without it here.
_WITH_WEIGHTS = {"transform_input"}


@dataclass(frozen=True)
class Argument:
    """An argument of a class: the kind of its values, and its default if the source writes it as a plain value."""

    kind: Kind
    required: bool = False
    default: Any = None


@cache
def library(package: str) -> Path:
    """Return the folder of an installed package, found without importing it."""
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    assert folders, f"{package} is not installed"
    return Path(folders[0])


@cache
def module(package: str, path: str) -> ast.Module:
    """Return the syntax tree of one file of a package."""
    return ast.parse((library(package) / path).read_text(encoding="utf-8"))


def classes(tree: ast.Module) -> dict[str, ast.ClassDef]:
    """Return a module's classes by name."""
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def imported_classes(tree: ast.Module) -> dict[str, str]:
    """Return where a module's classes are imported from: class name to module name, `SGD` to `torch.optim.sgd`."""
    found = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module]
    return {alias.name: str(node.module) for node in found for alias in node.names if alias.name[0].isupper()}


def exported(tree: ast.Module) -> list[str]:
    """Return the names in a module's `__all__`."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            names: list[str] = ast.literal_eval(node.value)
            return names
    return []


def signature(tree: ast.Module, cls: str, hidden: set[str], tensor: Kind | None = None) -> dict[str, Argument]:
    """Return a constructor's arguments, without hidden ones and those that no YAML value can be."""
    arguments: dict[str, Argument] = {}
    for argument, default in _parameters(_constructor(tree, cls)):
        kind = kind_of(argument.annotation, tensor)
        if argument.arg not in hidden and kind is not None:
            arguments[argument.arg] = Argument(kind, default is None, _literal(default))
    return arguments


def _constructor(tree: ast.Module, name: str) -> ast.FunctionDef | None:
    """Return the `__init__` of a class, its own or the first that it inherits within the file."""
    cls = classes(tree).get(name)
    if cls is None:
        return None
    own = next((node for node in cls.body if isinstance(node, ast.FunctionDef) and node.name == "__init__"), None)
    inherited = (_constructor(tree, base.id) for base in cls.bases if isinstance(base, ast.Name))
    return own or next((found for found in inherited if found is not None), None)


def _parameters(function: ast.FunctionDef | None) -> Iterator[tuple[ast.arg, ast.expr | None]]:
    """Yield every named parameter but self, with its default."""
    if function is None:
        return
    positional = [*function.args.posonlyargs, *function.args.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(function.args.defaults))
    defaults.extend(function.args.defaults)
    for argument, default in zip(positional, defaults, strict=True):
        if argument.arg != "self":
            yield argument, default
    yield from zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)


def _literal(node: ast.expr | None) -> Any:
    try:
        return None if node is None else ast.literal_eval(node)
    except ValueError:  # an expression, such as 1.0 / 3
        return None


@cache
def model_files() -> Mapping[str, str]:
    """Return every classification model of torchvision: name to file, such as `models/resnet.py`."""
    builder = re.compile(r"^@register_model\(\)\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)
    files = sorted((library("torchvision") / "models").glob("*.py"))
    return {name: f"models/{file.name}" for file in files for name in builder.findall(file.read_text(encoding="utf-8"))}


def _builder(name: str) -> tuple[ast.FunctionDef, ast.Module]:
    tree = module("torchvision", model_files()[name])
    return next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name), tree


def model_signature(name: str) -> dict[str, Argument]:
    """Return the arguments of a torchvision model: its class's optional ones that its builder does not set itself."""
    builder, tree = _builder(name)
    assert isinstance(builder.returns, ast.Name), f"{name} does not say which class it builds"
    all_arguments = signature(tree, builder.returns.id, _MODEL_HIDDEN)
    popped = _popped(builder)
    fixed = _fixed(builder, tree) - _WITH_WEIGHTS
    return {
        key: Argument(argument.kind, default=argument.default)
        for key, argument in all_arguments.items()
        if key in popped or not (argument.required or key in fixed)
    }


def weight_names(name: str) -> tuple[str, ...]:
    """Return the names of a torchvision model's pretrained weights: `IMAGENET1K_V1`, ..., `DEFAULT`."""
    builder, tree = _builder(name)
    (annotation,) = [p.annotation for p, _ in _parameters(builder) if p.arg == "weights" and p.annotation is not None]
    (enum,) = [classes(tree)[n.id] for n in ast.walk(annotation) if isinstance(n, ast.Name) and n.id in classes(tree)]
    targets = [t for node in enum.body if isinstance(node, ast.Assign) for t in node.targets]
    return tuple(target.id for target in targets if isinstance(target, ast.Name))


def _popped(builder: ast.FunctionDef) -> set[str]:
    """Return the names that a builder takes out of its keyword arguments: `kwargs.pop("dropout", 0.2)`."""
    return {
        str(call.args[0].value)
        for call in ast.walk(builder)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr == "pop"
        and call.args
        and isinstance(call.args[0], ast.Constant)
    }


def _fixed(builder: ast.FunctionDef, tree: ast.Module) -> set[str]:
    """Return the names that a builder sets itself, in calls `f(48, groups=1, **kwargs)` down to the class."""
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    fixed: set[str] = set()
    for call in [node for node in ast.walk(builder) if isinstance(node, ast.Call)]:
        callee = call.func.id if isinstance(call.func, ast.Name) else ""
        if callee == "_ovewrite_named_param" and isinstance(call.args[1], ast.Constant):
            fixed.add(str(call.args[1].value))
        if all(keyword.arg is not None for keyword in call.keywords):
            continue
        fixed |= {keyword.arg for keyword in call.keywords if keyword.arg is not None}
        function = functions.get(callee)
        target = function or _constructor(tree, callee)
        fixed |= {parameter.arg for (parameter, _), _ in zip(_parameters(target), call.args, strict=False)}
        if function is not None:
            fixed |= _fixed(function, tree)
    return fixed
