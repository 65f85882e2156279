"""Frozen layers: which parameters and modules of a network do not learn, from the start and at each step of a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import nn

from trainlib.config import ModelConfig
from trainlib.data.batches.plan import to_steps
from trainlib.errors import UserError
from trainlib.models.architectures.layer_names import is_in
from trainlib.models.optimizers.groups import matches, unmatched

if TYPE_CHECKING:
    from trainlib.models.classifier import Classifier


def freeze(module: nn.Module, heads: Sequence[str], what: str | Sequence[str] | None) -> frozenset[str]:
    """Turn off the gradients of what `model.freeze` names, and return the names of the modules that are frozen whole.

    heads   names of the last layers
    """
    if what is None:
        return frozenset()
    if not isinstance(what, str):
        return _freeze_matching(module, heads, what)
    if what == "features":
        children = [name for name, _ in module.named_children()]
        if "features" not in children:
            raise UserError(
                f"model.freeze: features needs a submodule of that name, and {type(module).__name__} has "
                f"{', '.join(children)}: use freeze: backbone (everything but {', '.join(heads)})"
            )
        module.get_submodule("features").requires_grad_(False)
        return frozenset(n for n, _ in module.named_modules() if n == "features" or n.startswith("features."))
    module.requires_grad_(False)
    for head in heads:
        module.get_submodule(head).requires_grad_(True)
    # The modules that contain a head stay in train mode; they do nothing but call their children.
    names = [name for name, _ in module.named_modules() if name and name not in heads]
    return frozenset(name for name in names if not any(is_in(head, [name]) for head in heads))


def _freeze_matching(module: nn.Module, heads: Sequence[str], patterns: Sequence[str]) -> frozenset[str]:
    """Freeze the parameters that any pattern matches, and return the modules all of whose parameters are frozen."""
    names = [name for name, _ in module.named_parameters()]
    for pattern in patterns:
        if not any(matches(pattern, name, heads) for name in names):
            raise UserError(f"model.freeze: {unmatched(pattern, names)}")
    frozen = {name for name in names if any(matches(pattern, name, heads) for pattern in patterns)}
    if len(frozen) == len(names):
        raise UserError(f"model.freeze: {', '.join(patterns)} match all {len(names)} parameters: nothing is trained")
    for name, parameter in module.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    whole: list[str] = []
    for name, part in module.named_modules():
        own = [f"{name}.{inner}" for inner, _ in part.named_parameters()]
        inside = any(name.startswith(f"{outer}.") for outer in whole)
        if name and (inside or (own and frozen.issuperset(own))):
            whole.append(name)
    return frozenset(whole)


@dataclass(frozen=True)
class Stages:
    """The parts of a run between the steps at which `model.unfreeze` lets more parameters learn.

    modules      names of the modules that are frozen at the start
    parameters   names of the parameters that are
    released     by the step from which on they are trained, ascending: names of parameters
    """

    modules: frozenset[str]
    parameters: frozenset[str]
    released: Sequence[tuple[int, frozenset[str]]] = ()

    def of(self, step: int) -> int:
        """Return the number of the stage that a step, counted from 0, belongs to."""
        return sum(start <= step for start, _ in self.released)

    def describe_unreached(self, total_steps: int) -> str | None:
        """Return a sentence about parameters that are still frozen when a run of so many steps ends; None without."""
        late = [(start, names) for start, names in self.released if start >= total_steps]
        if not late:
            return None
        count = sum(len(names) for _, names in late)
        return (
            f"model.unfreeze: {count} parameter tensors would be trained after step {late[0][0]}, and the run ends "
            f"after step {total_steps}: they stay frozen. Set a smaller `at`, or train longer"
        )

    def train_all(self, module: nn.Module) -> None:
        """Let every parameter that is trained at some step require gradients, for an optimizer to be made of them."""
        self._require_gradients(module, len(self.released))

    def enter(self, classifier: Classifier, stage: int) -> Classifier:
        """Let only the parameters of this stage require gradients; return the classifier with its frozen modules."""
        self._require_gradients(classifier.module, stage)
        holders, learning = _holders(self.parameters), _holders(self._trained(stage))
        # A module without parameters is as what it lies in: dropout in front of the last layer begins with the first
        # layer that is trained again.
        decisive = {name: next((n for n in _with_outer(name) if n in holders), name) for name in self.modules}
        return replace(classifier, frozen=frozenset(n for n, holder in decisive.items() if holder not in learning))

    def _trained(self, stage: int) -> frozenset[str]:
        """Return the names of the parameters that were frozen at the start and are trained in this stage."""
        return frozenset[str]().union(*(names for _, names in self.released[:stage]))

    def _require_gradients(self, module: nn.Module, stage: int) -> None:
        trained = self._trained(stage)
        for name, parameter in module.named_parameters():
            if name in self.parameters:
                parameter.requires_grad_(name in trained)


def _holders(parameters: Iterable[str]) -> set[str]:
    """Return the names of all modules that these parameters lie in."""
    return {holder for name in parameters for holder in list(_with_outer(name))[1:]}


def _with_outer(module: str) -> Iterator[str]:
    """Yield the name of a module and those of the modules that it lies in, the whole model, "", last."""
    while module:
        yield module
        module = module.rpartition(".")[0]
    yield ""


def unfreeze_stages(config: ModelConfig, classifier: Classifier, epoch_steps: int) -> Stages:
    """Return the stages of `model.unfreeze` for a classifier as `build_model` returns it.

    epoch_steps   optimizer steps in an epoch

    A parameter is trained from the earliest step on that an element whose pattern matches it names. Raises UserError
    for an element that changes nothing, by its pattern or because of others.
    """
    names = [name for name, _ in classifier.module.named_parameters()]
    frozen = frozenset(name for name, p in classifier.module.named_parameters() if not p.requires_grad)
    starts: dict[str, int] = {}
    elements = list(enumerate(config.unfreeze or ()))
    for index, element in sorted(elements, key=lambda pair: to_steps(pair[1].at, epoch_steps)):
        key, step = f"model.unfreeze.{index}", to_steps(element.at, epoch_steps)
        matched = [name for name in names if matches(element.match, name, classifier.heads)]
        if not matched:
            raise UserError(f"{key}.match: {unmatched(element.match, names)}")
        if not frozen.intersection(matched):
            raise UserError(
                f"{key}.match: {element.match!r} matches only parameters that are trained from the start (first: "
                f"{matched[0]}): freeze them with model.freeze, or leave it out"
            )
        new = [name for name in matched if name in frozen and name not in starts]
        if not new:
            raise UserError(
                f"{key}.match: {element.match!r} matches only parameters that are trained before step {step} by other "
                "elements of model.unfreeze: leave it out, or narrow their patterns"
            )
        starts |= dict.fromkeys(new, step)
    by_step = {step: frozenset(n for n in starts if starts[n] == step) for step in sorted(set(starts.values()))}
    return Stages(classifier.frozen, frozen, tuple(by_step.items()))
