"""Passes of a model with frozen layers, and of a submodule of it alone, to see whether they give the same bits.

Every pass leaves the model as it was: buffers, gradients and mode.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from trainlib.models import Classifier, set_train_mode
from trainlib.randomness import key, seed_generators

T = TypeVar("T")


@dataclass
class ForwardTrace:
    """Of a pass of the whole model.

    results   its logits, and where it learns the gradients too
    inputs    what each submodule got, contiguous
    unfit     why a submodule cannot be trained alone, by its name
    """

    results: list[Tensor] = field(default_factory=list)
    inputs: dict[str, Tensor] = field(default_factory=dict)
    unfit: dict[str, str] = field(default_factory=dict)


@dataclass
class ProbeResult:
    """Of a comparison, by the submodule's name.

    differing   sizes of batches in which its input has other bits than that which is kept
    unfit       why it cannot be trained alone
    """

    differing: dict[str, set[int]]
    unfit: dict[str, str] = field(default_factory=dict)


class BitwiseProbe:
    """paths: the submodules that hold all parameters that learn, the smallest first; not the model itself."""

    def __init__(self, classifier: Classifier, accelerator: Accelerator, seed: int):
        self.module = classifier.module
        self.paths = _holders(self.module)
        self._classifier, self._accelerator = classifier, accelerator
        self._seed = key("trials", seed)

    def features(self, front: nn.Module, images_NCHW: Tensor) -> Tensor:
        """What the layers up to a submodule make of images, on their device."""
        with torch.no_grad(), self._accelerator.autocast():
            features: Tensor = front(images_NCHW)
        return features.contiguous()

    def whole(self, images_NCHW: Tensor, *, learns: bool) -> ForwardTrace:
        """A pass of the whole model, of a step where it `learns`, else of an evaluation."""
        heard = ForwardTrace()
        before = [(buffer, buffer.clone()) for buffer in self.module.buffers()]
        with self._listening(heard):
            heard.results = self._pass(self.module, images_NCHW, learns=learns)
        for path in self.paths:
            inside = {id(buffer) for buffer in self.module.get_submodule(path).buffers()}
            if any(id(buffer) not in inside and not same(buffer, old) for buffer, old in before):
                heard.unfit.setdefault(path, f"statistics outside of {path} change")
        for buffer, old in before:
            buffer.copy_(old)
        return heard

    def alone(self, path: str, features: Tensor, *, learns: bool) -> list[Tensor]:
        """The results of the same pass by this submodule alone."""
        before = [(buffer, buffer.clone()) for buffer in self.module.buffers()]
        results = self._pass(self.module.get_submodule(path), features.clone(), learns=learns)
        for buffer, old in before:
            buffer.copy_(old)
        return results

    def compare(
        self, probes: Iterable[tuple[Tensor, bool]], kept: Mapping[str, Tensor], heartbeat: Callable[[], None]
    ) -> ProbeResult:
        """Send batches through the whole model and through each submodule.

        probes   images as the model gets them in a step (True) or in an evaluation (False)
        kept     each submodule's input for all of these images, as it would be kept
        """
        outcome = ProbeResult({path: set() for path in self.paths})
        start = 0
        for images_NCHW, learns in probes:
            heard = self.whole(images_NCHW, learns=learns)
            outcome.unfit = heard.unfit | outcome.unfit
            end = start + len(images_NCHW)
            for path, features in heard.inputs.items():
                if path in outcome.unfit:
                    continue
                results = self.alone(path, features, learns=learns)
                if len(results) != len(heard.results) or not all(map(same, results, heard.results)):
                    outcome.unfit[path] = f"{path} alone gives other bits than inside of the model"
                elif path not in kept or not same(features, kept[path][start:end]):
                    outcome.differing[path].add(len(images_NCHW))
            start = end
            heartbeat()
        return outcome

    def _pass(self, network: nn.Module, inputs: Tensor, *, learns: bool) -> list[Tensor]:
        set_train_mode(self._classifier)
        if not learns:
            network.eval()
        seed_generators(self._seed, self._accelerator.device)  # dropout
        with torch.set_grad_enabled(learns), self._accelerator.autocast():
            logits_NC = network(inputs)
        results = [logits_NC.detach()]
        if learns:
            logits_NC.float().square().sum().backward()
            learning = [parameter for parameter in self.module.parameters() if parameter.grad is not None]
            results += [parameter.grad for parameter in learning if parameter.grad is not None]
            for parameter in learning:
                parameter.grad = None
        set_train_mode(self._classifier)
        return results

    @contextmanager
    def _listening(self, heard: ForwardTrace) -> Iterator[None]:
        """Note what the submodules get, and whether what they give is all that the model gives."""
        outputs: dict[str, Any] = {}
        hooks = []
        for path in self.paths:

            def before(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any], path: str = path) -> None:
                if path in heard.inputs:
                    heard.unfit[path] = f"{path} is called several times"
                elif len(given) != 1 or named or not isinstance(given[0], Tensor):
                    heard.unfit[path] = f"{path} gets more than one tensor"
                else:
                    heard.inputs[path] = given[0].detach().clone(memory_format=torch.contiguous_format)

            def after(_: nn.Module, given: object, output: object, path: str = path) -> None:
                outputs[path] = output

            submodule = self.module.get_submodule(path)
            hooks += [submodule.register_forward_pre_hook(before, with_kwargs=True)]
            hooks += [submodule.register_forward_hook(after)]
        hooks += [self.module.register_forward_hook(lambda module, given, output: outputs.update({"": output}))]
        yield
        for hook in hooks:
            hook.remove()
        for path in self.paths:
            if outputs.get(path) is not outputs[""]:
                heard.unfit.setdefault(path, f"the model goes on behind {path}")


def front_of(module: nn.Module, path: str) -> nn.Module:
    """A network that shares the module's layers, and gives what its submodule `path` gets.

    Only right where the submodule's output is the module's.
    """
    name, _, rest = path.partition(".")
    front = copy.copy(module)
    front._modules = dict(module._modules)
    front._modules[name] = front_of(module.get_submodule(name), rest) if rest else nn.Identity()
    return front


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same in every bit; 0.0 is not -0.0, and NaN is itself."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(a.contiguous().flatten().view(torch.uint8), b.contiguous().flatten().view(torch.uint8))


def timed(function: Callable[[], T]) -> tuple[float, T]:
    """How many seconds a call takes, the device's work included, and what it returns."""
    _wait_for_device()
    began = time.perf_counter()
    value = function()
    _wait_for_device()
    return time.perf_counter() - began, value


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _holders(module: nn.Module) -> list[str]:
    """The names of the submodules that hold all parameters that learn, the smallest first."""
    owners = [name.split(".")[:-1] for name, parameter in module.named_parameters() if parameter.requires_grad]
    common = []
    for parts in zip(*owners, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return [".".join(common[:length]) for length in range(len(common), 0, -1)]
