"""A user's own parts of a run, passed to `trainlib.fit` or made by `--code`: a model, a data set, a loss and others."""

from __future__ import annotations

import functools
import inspect
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import CodeType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from trainlib.config import CUSTOM_PREFIX, METRICS, TRANSFORM, Size, sides
from trainlib.data import Dataset, fingerprint
from trainlib.data.augment.custom import Transform
from trainlib.data.targets import is_of_class
from trainlib.errors import UserError
from trainlib.models import Classifier, preserve_buffers
from trainlib.models.losses import CustomLoss, Objective

if TYPE_CHECKING:
    from trainlib.training.hooks import Hook

ModelSource = nn.Module | Callable[[int], nn.Module]
OwnMetric = Callable[[Tensor, Tensor], Any]

_MOST_FOLLOWED = 200  # functions and classes that parts use
_TOLD_BY_VERSIONS = {*sys.stdlib_module_names, "torch", "torchvision", "numpy", "PIL", "accelerate", "trainlib"}
TOLERANCE = 1e-4  # relative, between the loss of several samples and the mean of their losses one by one


@dataclass(frozen=True)
class CustomParts:
    """The parts of a user's own; None for one that the configuration names otherwise.

    model     a module, which is trained in place, or a function or class that makes one for a number of classes; from
              images float32 [N, 3, S, S] (or [N, 1, S, S], see `data.channels`) to logits [N, C]. Parameters that
              require no gradient are not trained.
    dataset   made by `image_dataset`, or a function that makes it
    loss      logits float32 [N, C] and labels int64 [N], in 0..C-1, or with `data.labels: several` bool [N, C], to the
              loss of each sample [N], or to their mean
    hooks     objects that follow the training (see `trainlib.Hook`)
    transform   a random change of training images, uint8 [N, C, H, W] (see `trainlib.transform`)
    optimizer   parameter groups, and the arguments of the section `optimizer`, to a torch.optim.Optimizer
    metrics     logits float32 [N, C] and labels int64 [N] of a whole split, on the CPU, to a number; by name
    is_code     True for parts of `--code`, whose loss must be that of each sample
    code_text   what `source_text` says of these
    """

    model: ModelSource | None = None
    dataset: Dataset | Callable[[], Dataset] | None = None
    loss: CustomLoss | None = None
    hooks: Sequence[Hook] = ()
    transform: Transform | None = None
    optimizer: Callable[..., Optimizer] | None = None
    metrics: Mapping[str, OwnMetric] = field(default_factory=dict)
    is_code: bool = False
    code_text: str = ""

    def load_dataset(self) -> Dataset | None:
        """Return the data set; None where the configuration names one."""
        return self.dataset() if callable(self.dataset) else self.dataset

    def names(self) -> dict[str, Any]:
        """Return the `name` of each section that a part replaces: `custom:` with its class, or with the data's hash."""
        parts = (
            ("model", self.model),
            ("loss", self.loss),
            ("optimizer", self.optimizer),
            (TRANSFORM, self.transform),
        )
        # A module may have a length, and be false.
        names: dict[str, Any] = {section: _name(part) for section, part in parts if part is not None}
        if self.metrics:
            names[METRICS] = [CUSTOM_PREFIX + name for name in self.metrics]
        dataset = self.load_dataset()
        return names | ({"data": CUSTOM_PREFIX + fingerprint(dataset)} if dataset else {})

    def code(self) -> str:
        """Return the source text of the classes and functions that the parts are of; empty where none can be read."""
        if self.is_code:
            return self.code_text
        parts = (self.model, self.loss, self.transform, self.optimizer, *self.metrics.values())
        return "".join(source_text(part) for part in parts if part is not None)


NO_CUSTOM_PARTS = CustomParts()


def _name(part: object) -> str:
    while isinstance(part, functools.partial):
        part = part.func
    return CUSTOM_PREFIX + getattr(part, "__name__", type(part).__name__)


def source_text(part: object) -> str:
    """Return the source text of a function, or of a class with those that it derives from, and of what these use.

    Left out are Python and what the versions tell of; global values, as they may be others on each rank; and what only
    the running code finds, such as a function that is an argument.
    """
    texts: list[str] = []
    seen: set[object] = set()
    waiting = [part]
    while waiting and len(seen) < _MOST_FOLLOWED:
        one = waiting.pop(0)
        if isinstance(one, functools.partial):
            values = [one.args, sorted(one.keywords.items())]
            texts.append(json.dumps(values, default=lambda value: type(value).__name__))
            waiting.insert(0, one.func)
            continue
        for code in [one] if inspect.isroutine(one) else (one if inspect.isclass(one) else type(one)).__mro__:
            if code in seen or str(getattr(code, "__module__", "")).partition(".")[0] in _TOLD_BY_VERSIONS:
                continue
            seen.add(code)
            with suppress(OSError, TypeError):  # typed at a prompt, or written in C
                texts.append(inspect.getsource(code))
            waiting += _used_by(code)
    return "".join(texts)


def _used_by(code: Any) -> list[object]:
    """Return the functions and classes that a function, or the methods of a class, name."""
    own = [code] if inspect.isroutine(code) else [getattr(one, "__func__", one) for one in vars(code).values()]
    used: list[object] = []
    for function in (inspect.unwrap(one) for one in own if inspect.isfunction(one)):
        names = _names_in(function.__code__)
        for value in [function.__globals__[name] for name in names if name in function.__globals__]:
            used += [vars(value).get(name) for name in names] if inspect.ismodule(value) else [value]
    return [one for one in used if inspect.isfunction(one) or inspect.isclass(one)]


def _names_in(code: CodeType) -> dict[str, None]:
    inner = [_names_in(one) for one in code.co_consts if isinstance(one, CodeType)]
    return dict.fromkeys([*code.co_names, *(name for names in inner for name in names)])


def build_custom(source: ModelSource, num_classes: int) -> Classifier:
    """Return the classifier around a module, or around the module that a function makes for `num_classes`.

    The caller seeds torch's generators. Raises UserError if there is no module, or if a checkpoint cannot hold it.
    """
    module = source if isinstance(source, nn.Module) else source(num_classes)
    if not isinstance(module, nn.Module):
        raise UserError(
            f"model: got a {type(module).__name__}, must be a torch.nn.Module, or a function that makes one"
        )
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if is_lazy(tensor):
            raise UserError(
                f"model: {name} has no shape yet, as lazy layers get theirs from the first images: call the module "
                "once, with zeros of the images' shape, before it is returned"
            )
        if any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True)):
            raise UserError(f"model: {name} repeats its values in memory (expand), and cannot be loaded: clone() it")
    _require_savable(module)
    module.train()
    return Classifier(module, heads=(), frozen=frozenset())


def _require_savable(module: nn.Module) -> None:
    """Raise UserError unless the state_dict is of tensors that share no memory, but for one under several names."""
    owners: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor):
            got = type(tensor).__name__
            raise UserError(f"model: its state_dict has a {got} as {name}, must be a tensor: register it as a buffer")
        first, owner = owners.setdefault(tensor.untyped_storage().data_ptr(), (name, tensor))
        if owner is not tensor and tensor.numel():
            raise UserError(
                f"model: {first} and {name} are parts of the same memory, which a checkpoint holds once: clone() one, "
                "or give both the same parameter"
            )


def check_custom_model(
    classifier: Classifier,
    image_size: Size,
    num_classes: int,
    *,
    channels: int = 3,
    num_images: int = 2,
    key: str = "data.image_size",
) -> None:
    """Check a custom model as `check_forward` does a configured one; the model is left as it was.

    Real forward passes, as custom code may do things that have no meaning on the meta device, and others in evaluation
    than in training. Raises UserError.
    """
    module, name = classifier.module, type(classifier.module).__name__
    device = next(module.parameters(), torch.empty(0)).device
    images_NCHW = torch.zeros(num_images, channels, *sides(image_size), device=device)
    modes = [(part, part.training) for part in module.modules()]
    try:
        with preserve_buffers(module):
            outputs = {"": module(images_NCHW)}
            with torch.no_grad():
                outputs[" in eval mode"] = module.eval()(images_NCHW)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError) as error:
        raise UserError(
            f"model: {name} cannot take images {list(images_NCHW.shape)}: {error} (their size is {key})"
        ) from error
    finally:
        for part, training in modes:
            part.training = training
    for mode, logits_NC in outputs.items():
        if not isinstance(logits_NC, Tensor) or logits_NC.shape != (num_images, num_classes):
            got = list(logits_NC.shape) if isinstance(logits_NC, Tensor) else type(logits_NC).__name__
            raise UserError(
                f"model: {name} gives {got}{mode} for {num_images} images and {num_classes} classes, must give logits "
                f"{[num_images, num_classes]}"
            )
    if any(parameter.requires_grad for parameter in module.parameters()) and not outputs[""].requires_grad:
        raise UserError(
            f"model: {name} gives logits without a gradient, so that nothing could be learned: look for `detach`, "
            "`no_grad` or numpy in its forward"
        )


def check_custom_loss(
    objective: Objective, num_classes: int, device: torch.device, *, of_sets: bool = False, of_each: bool = False
) -> None:
    """Raise UserError unless the custom loss of several samples is the mean of their losses one by one.

    Otherwise a batch that several ranks or micro-batches compute would have no exact loss.

    of_each   the loss must be that of each sample, and no mean
    """
    labels_N = torch.arange(6) % num_classes
    logits_NC = torch.linspace(-2, 3, 6 * num_classes).view(6, num_classes).sin()  # of no sum that is 0 by symmetry
    labels_N = is_of_class(labels_N, num_classes) | is_of_class(labels_N // 2, num_classes) if of_sets else labels_N
    logits_NC, labels_N = logits_NC.to(device), labels_N.to(device)
    try:
        whole = objective(logits_NC, labels_N)
        parts = [objective(logits_NC[i : i + 1], labels_N[i : i + 1]) for i in range(6)]
        values = [float(loss) for loss in (whole, *parts)]
        shape = tuple(objective.module(logits_NC, labels_N).shape)
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"loss: {error} (logits {list(logits_NC.shape)}, labels {list(labels_N.shape)})") from error
    if of_each and shape != (6,):
        got = "one number" if not shape else f"values {list(shape)}"
        raise UserError(
            f"loss: {objective.config.name} gives {got} for six samples, must give one value for each of them: take no "
            "mean or sum over the samples (reduction='none' in torch's losses)"
        )
    together, alone = values[0], sum(values[1:]) / (1 if objective.config.reduction == "sum" else 6)
    if not abs(together - alone) <= TOLERANCE * max(1.0, abs(alone)):
        raise UserError(
            f"loss: gives {together:g} for six samples and {alone:g} on average for each of them alone, must be the "
            "same: return the loss of each sample [N], or their mean"
        )
