"""The parts of a training that a configuration names as `code:NAME`, made of what the user's code has registered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from trainlib.config import Config, is_code, own_name
from trainlib.data import Dataset, fingerprint
from trainlib.errors import DataError
from trainlib.models.own_parts.custom_parts import NO_CUSTOM_PARTS, CustomParts, source_text
from trainlib.parts import Part, Parts


def parts_of(config: Config, parts: Parts) -> CustomParts:
    """Return the parts of one's own that the configuration names; each is called by keyword, with its arguments.

    None where nothing is registered, as no code is given.
    """
    if not parts.files:
        return NO_CUSTOM_PARTS

    def named(kind: str, name: str | None) -> Part | None:
        if not is_code(name):
            return None
        found = parts.find(kind, own_name(str(name)))
        assert found is not None, "the configuration was checked with these parts"
        return found

    model, loss = named("model", config.model.name), named("loss", config.loss.name)
    transform, dataset = named("transform", config.data.augment.custom), named("dataset", config.data.name)
    optimizer = named("optimizer", config.optimizer.name)
    metrics = [part for name in config.evaluation.metrics if (part := named("metric", name)) is not None]
    used = [part for part in (model, loss, transform, dataset, optimizer, *metrics) if part is not None]
    return CustomParts(
        model=None if model is None else _model(model, config.model.args),
        dataset=None if dataset is None else _dataset(dataset, config),
        loss=None if loss is None else _loss(loss, config.loss.args),
        transform=None if transform is None else _transform(transform),
        optimizer=None if optimizer is None else _optimizer(optimizer),
        metrics={part.name: _metric(part) for part in metrics},
        is_code=True,
        code_text="".join(source_text(part.function) for part in used),  # config.yaml has the digest of its own files
    )


def _model(part: Part, arguments: dict[str, Any]) -> Callable[[int], nn.Module]:
    def build(num_classes: int) -> nn.Module:
        module: nn.Module = part.function(num_classes=num_classes, **arguments)
        return module

    return build


def _loss(part: Part, arguments: dict[str, Any]) -> Callable[[Tensor, Tensor], Tensor]:
    def of_samples(logits_NC: Tensor, labels_N: Tensor) -> Tensor:
        losses_N: Tensor = part.function(logits=logits_NC, targets=labels_N, **arguments)
        return losses_N

    return of_samples


def _metric(part: Part) -> Callable[[Tensor, Tensor], Any]:
    return lambda logits_NC, labels_N: part.function(logits=logits_NC, labels=labels_N)


def _transform(part: Part) -> Callable[[Tensor, Tensor, int], Tensor]:
    def change(images_NCHW: Tensor, indices_N: Tensor, key: int) -> Tensor:
        changed_NCHW: Tensor = part.function(images_NCHW=images_NCHW, indices_N=indices_N, key=key)
        return changed_NCHW

    change.__name__ = part.name  # for messages
    return change


def _optimizer(part: Part) -> Callable[..., Optimizer]:
    return lambda params, **options: part.function(params=params, **options)


def _dataset(part: Part, config: Config) -> Callable[[], Dataset]:
    def load() -> Dataset:
        made = part.function(root=config.data.root, **config.data.args)
        if not isinstance(made, Dataset):
            got = type(made).__name__
            raise DataError(f"data.name: {part.name} returned a {got}, must return what trainlib.image_dataset makes")
        # Its contents are part of what the data are, as nothing else tells whether they are the same.
        return replace(made, listing=replace(made.listing, source=f"{config.data.name} {fingerprint(made)}"))

    return load
