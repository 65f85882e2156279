"""Decorators for a user's own parts of a training, and the registry of those that code given by `--code` registers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from trainlib.errors import UserError

_Function = TypeVar("_Function", bound=Callable[..., Any])

# What each kind of part is called with, by keyword; the arguments of its section of the configuration follow.
GIVEN: Mapping[str, tuple[str, ...]] = {
    "model": ("num_classes",),
    "loss": ("logits", "targets"),
    "metric": ("logits", "labels"),
    "transform": ("images_NCHW", "indices_N", "key"),
    "dataset": ("root",),
    "optimizer": ("params",),
}
# What a row of metrics.jsonl holds beside the metrics of one's own, which have other names.
ROW_KEYS = frozenset(
    (
        *("time", "step", "epoch", "split", "scope", "count", "lr", "grad_norm", "images_per_second", "slow"),
        *("loss", "accuracy", "top5", "macro_f1", "balanced_accuracy", "map", "micro_f1", "subset_accuracy"),
    )
)
_HAS_ARGUMENTS = ("model", "loss", "dataset", "optimizer")  # kinds that have a section with arguments of their own


@dataclass(frozen=True)
class Part:
    """A function or class that a decorator has registered: its kind, such as `loss`, and its own name.

    place   file and line of its definition, for messages
    """

    kind: str
    name: str
    function: Callable[..., Any]
    place: str

    def arguments(self) -> tuple[dict[str, bool], bool]:
        """Return the arguments that it takes from the configuration, by name: True for a required one.

        The second value is True if it takes any others as well (`**kwargs`).
        """
        parameters = inspect.signature(self.function).parameters.values()
        named = {
            p.name: p.default is p.empty
            for p in parameters
            if p.name not in GIVEN[self.kind] and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        }
        return named, any(p.kind is p.VAR_KEYWORD for p in parameters)


@dataclass(frozen=True)
class Parts:
    """All parts that code given by `--code` has registered.

    files   the names of that code, for messages
    """

    registered: tuple[Part, ...] = ()
    files: tuple[str, ...] = ()

    def find(self, kind: str, name: str) -> Part | None:
        """Return the part of this kind and name; None if there is none."""
        return next((part for part in self.registered if (part.kind, part.name) == (kind, name)), None)

    def names(self, kind: str) -> list[str]:
        """Return the names of all parts of this kind."""
        return [part.name for part in self.registered if part.kind == kind]


_collected: list[Part] | None = None  # of the code that is being imported; None: decorators only check


@contextmanager
def collecting() -> Iterator[list[Part]]:
    """Context manager: give the parts that decorators register inside the block, which imports a user's code."""
    global _collected
    before, _collected = _collected, []
    try:
        yield _collected
    finally:
        _collected = before


def model(function: _Function) -> _Function:
    """Register a function or class that makes a model: f(num_classes, **arguments) returns a torch.nn.Module.

    The module maps float32 images [N, 3, H, W] to logits [N, num_classes]; the arguments are those of the section
    `model`. It is called with torch's generators seeded.
    """
    return _register("model", function)


def loss(function: _Function) -> _Function:
    """Register a loss: f(logits, targets, **arguments) returns one value for each sample, [N].

    logits    float32 [N, C]
    targets   int64 [N], in 0..C-1
    The arguments are those of the section `loss`.
    """
    return _register("loss", function)


def metric(function: _Function) -> _Function:
    """Register a metric: f(logits, labels) returns a number, over a whole split at once.

    logits    float32 [N, C] on the CPU, in the samples' order
    labels    int64 [N]
    It is named in `evaluation.metrics`.
    """
    return _register("metric", function)


def transform(function: _Function) -> _Function:
    """Mark a function as a random change of training images, and return it. Pass it to `trainlib.fit(transform=...)`.

    It is called as function(images_NCHW, indices_N, key), for batches of any size:

    images_NCHW   uint8 [N, C, H, W] on the training's device, after flips, policy and jitter, before normalization
    indices_N     int64 [N] on the same device: the samples' indices; with `data.repeats` and `data.balance`, the k-th
                  use of a sample in an epoch has its index + k * 2**32
    key           a whole number of (seed, epoch), for `trainlib.randomness.draw(key, indices_N)`

    and returns uint8 images of the same shape. An image's result may depend on the image, its index and the key alone.
    In a configuration it is named by `data.augment.custom`.

    Raises UserError if the function does not take three arguments.
    """
    return _register("transform", function)


def dataset(function: _Function) -> _Function:
    """Register a function that makes a data set: f(root, **arguments) returns what `trainlib.image_dataset` does.

    `root` is `data.root`, as text; the arguments are the keys of the section `data` that it has not by itself.
    """
    return _register("dataset", function)


def optimizer(function: _Function) -> _Function:
    """Register a function or class that makes an optimizer: f(params, **arguments) returns a torch.optim.Optimizer.

    `params` are parameter groups, as torch's optimizers take them; the arguments are those of the section `optimizer`.
    """
    return _register("optimizer", function)


def _register(kind: str, function: _Function) -> _Function:
    name = str(getattr(function, "__name__", type(function).__name__))
    if not callable(function):
        raise UserError(f"@trainlib.{kind}: got {name}, must stand above a function or class, without brackets")
    place, given = place_of(function), GIVEN[kind]
    by_keyword = _refusal(kind, function, (), dict.fromkeys(given))
    if _collected is None:
        if by_keyword is not None and (refusal := _refusal(kind, function, given, {})) is not None:
            number = ("one argument", "two arguments", "three arguments")[len(given) - 1]
            raise UserError(f"{kind}: {name} must take {number}, ({', '.join(given)}): {refusal}")
        return function
    if by_keyword is not None:
        rule = f"got {name}{inspect.signature(function)}, must take {', '.join(given)} by these names"
        raise UserError(f"{place}: @trainlib.{kind}: {rule}: it is called by keyword ({by_keyword})")
    twin = next((part for part in _collected if (part.kind, part.name) == (kind, name)), None)
    if twin is not None:
        raise UserError(f"{place}: a {kind} named {name} is registered at {twin.place} already: rename one of them")
    _collected.append(Part(kind, name, function, place))
    return function


def _refusal(
    kind: str, function: Callable[..., Any], positional: Sequence[Any], keywords: Mapping[str, Any]
) -> str | None:
    """Return why a function cannot be called like this; None if it can, maybe with further arguments of its section."""
    signature = inspect.signature(function)
    try:
        (signature.bind_partial if kind in _HAS_ARGUMENTS else signature.bind)(*positional, **keywords)
    except TypeError as error:
        return str(error)
    return None


def place_of(function: object) -> str:
    """Return `parts.py line 7`, where a function or class is defined; only its name where that is not known."""
    code = getattr(inspect.unwrap(function) if callable(function) else function, "__code__", None)
    if code is not None:
        return f"{code.co_filename} line {code.co_firstlineno}"
    try:
        return f"{inspect.getsourcefile(function)} line {inspect.getsourcelines(function)[1]}"  # type: ignore[arg-type]
    except (OSError, TypeError):
        return str(getattr(function, "__name__", type(function).__name__))
