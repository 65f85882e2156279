"""Test passes of a model, and of one of its submodules alone, to find out if both give the same bits.

They decide if the output of frozen layers may be cached (`model.cache_features`). Every pass leaves the model's
buffers, gradients and train mode as they were.
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
    """The tensors that one pass of the whole model produced.

    results     the logits and, in a training pass, the gradient of every parameter that is trained
    inputs      the input of each submodule, contiguous, by the submodule's name
    unsuitable  for a submodule that cannot be trained alone: the reason, by its name
    """

    results: list[Tensor] = field(default_factory=list)
    inputs: dict[str, Tensor] = field(default_factory=dict)
    unsuitable: dict[str, str] = field(default_factory=dict)


@dataclass
class ProbeResult:
    """For each submodule, by name: the batch sizes that change its input's bits, and why it cannot be trained alone.

    differing    batch sizes at which the submodule's input has other bits than the cached one
    unsuitable   the reason, for a submodule that cannot be trained alone
    """

    differing: dict[str, set[int]]
    unsuitable: dict[str, str] = field(default_factory=dict)


class BitwiseProbe:
    """Runs batches through a model and through its submodules alone, and compares the results bit by bit.

    submodules   names of the submodules that hold all trained parameters, the smallest first; without the model itself
    """

    def __init__(self, classifier: Classifier, accelerator: Accelerator, seed: int):
        self.module = classifier.module
        self.submodules = _submodules_that_train(self.module)
        self._classifier, self._accelerator = classifier, accelerator
        self._seed = key("trials", seed)

    def frozen_features(self, frozen: nn.Module, images_NCHW: Tensor) -> Tensor:
        """Return the frozen layers' output [N, ...], contiguous, for model inputs float32 [N, C, S, S]."""
        with torch.no_grad(), self._accelerator.autocast():
            features: Tensor = frozen(images_NCHW)
        return features.contiguous()

    def run_model(self, images_NCHW: Tensor, *, training: bool) -> ForwardTrace:
        """Run the whole model, with a backward pass as in a step if `training`, else as in an evaluation."""
        trace = ForwardTrace()
        before = [(buffer, buffer.clone()) for buffer in self.module.buffers()]
        with self._recording(trace):
            trace.results = self._run(self.module, images_NCHW, training=training)
        for path in self.submodules:
            inside = {id(buffer) for buffer in self.module.get_submodule(path).buffers()}
            if any(id(buffer) not in inside and not same_bits(buffer, old) for buffer, old in before):
                trace.unsuitable.setdefault(path, f"statistics outside of {path} change")
        for buffer, old in before:
            buffer.copy_(old)
        return trace

    def run_submodule(self, path: str, features: Tensor, *, training: bool) -> list[Tensor]:
        """Run one submodule alone, in the same way, and return its `ForwardTrace.results`."""
        before = [(buffer, buffer.clone()) for buffer in self.module.buffers()]
        results = self._run(self.module.get_submodule(path), features.clone(), training=training)
        for buffer, old in before:
            buffer.copy_(old)
        return results

    def compare(
        self, probes: Iterable[tuple[Tensor, bool]], cached: Mapping[str, Tensor], heartbeat: Callable[[], None]
    ) -> ProbeResult:
        """Run batches through the whole model and through each submodule, and compare.

        probes      pairs of model inputs, float32 [B, C, S, S], and True for a training step, False for an evaluation
        cached      each submodule's input for all of these images in order, as the cache would hold it
        heartbeat   called after each batch
        """
        result = ProbeResult({path: set() for path in self.submodules})
        start = 0
        for images_NCHW, training in probes:
            trace = self.run_model(images_NCHW, training=training)
            result.unsuitable = trace.unsuitable | result.unsuitable
            end = start + len(images_NCHW)
            for path, features in trace.inputs.items():
                if path in result.unsuitable:
                    continue
                alone = self.run_submodule(path, features, training=training)
                if len(alone) != len(trace.results) or not all(map(same_bits, alone, trace.results)):
                    result.unsuitable[path] = f"{path} alone gives other bits than inside of the model"
                elif path not in cached or not same_bits(features, cached[path][start:end]):
                    result.differing[path].add(len(images_NCHW))
            start = end
            heartbeat()
        return result

    def _run(self, network: nn.Module, inputs: Tensor, *, training: bool) -> list[Tensor]:
        set_train_mode(self._classifier)
        if not training:
            network.eval()
        seed_generators(self._seed, self._accelerator.device)  # dropout
        with torch.set_grad_enabled(training), self._accelerator.autocast():
            logits_NC = network(inputs)
        results = [logits_NC.detach()]
        if training:
            logits_NC.float().square().sum().backward()
            trained = [parameter for parameter in self.module.parameters() if parameter.grad is not None]
            results += [parameter.grad for parameter in trained if parameter.grad is not None]
            for parameter in trained:
                parameter.grad = None
        set_train_mode(self._classifier)
        return results

    @contextmanager
    def _recording(self, trace: ForwardTrace) -> Iterator[None]:
        """Record the submodules' inputs, and if the output of each is the output of the model."""
        outputs: dict[str, Any] = {}
        hooks = []
        for path in self.submodules:

            def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], path: str = path) -> None:
                if path in trace.inputs:
                    trace.unsuitable[path] = f"{path} is called several times"
                elif len(args) != 1 or kwargs or not isinstance(args[0], Tensor):
                    trace.unsuitable[path] = f"{path} gets more than one tensor"
                else:
                    trace.inputs[path] = args[0].detach().clone(memory_format=torch.contiguous_format)

            def after(_: nn.Module, args: object, output: object, path: str = path) -> None:
                outputs[path] = output

            submodule = self.module.get_submodule(path)
            hooks += [submodule.register_forward_pre_hook(before, with_kwargs=True)]
            hooks += [submodule.register_forward_hook(after)]
        hooks += [self.module.register_forward_hook(lambda module, args, output: outputs.update({"": output}))]
        yield
        for hook in hooks:
            hook.remove()
        for path in self.submodules:
            if outputs.get(path) is not outputs[""]:
                trace.unsuitable.setdefault(path, f"the model goes on behind {path}")


def layers_before(module: nn.Module, path: str) -> nn.Module:
    """Return a network that shares the module's layers and outputs the input of its submodule `path`.

    Correct only where the submodule's output is the module's output.
    """
    name, _, rest = path.partition(".")
    front = copy.copy(module)
    front._modules = dict(module._modules)
    front._modules[name] = layers_before(module.get_submodule(name), rest) if rest else nn.Identity()
    return front


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Return True if two tensors agree in shape, dtype and every bit: 0.0 is not -0.0, and NaN equals itself."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(a.contiguous().flatten().view(torch.uint8), b.contiguous().flatten().view(torch.uint8))


def timed(function: Callable[[], T]) -> tuple[float, T]:
    """Call the function, wait for the device, and return the seconds that this took, with the returned value."""
    _synchronize()
    began = time.perf_counter()
    value = function()
    _synchronize()
    return time.perf_counter() - began, value


def _synchronize() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def _submodules_that_train(module: nn.Module) -> list[str]:
    """Return the names of the submodules that hold all trained parameters, the smallest first."""
    owners = [name.split(".")[:-1] for name, parameter in module.named_parameters() if parameter.requires_grad]
    common = []
    for names in zip(*owners, strict=False):
        if len(set(names)) > 1:
            break
        common.append(names[0])
    return [".".join(common[:length]) for length in range(len(common), 0, -1)]
