"""What a model is to answer for a sample: one class, a set of classes, or a mixture of those of two samples.

Labels are one tensor: int64 [N] where each sample is of one class, bool [N, C] where each has a set of them, which may
be empty. Both are cut and indexed by rows alike, so that few places need to know which of the two they hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Targets:
    """The targets of N samples, in the form in which a loss takes them.

    labels_N       int64 [N] or bool [N, C], on the device
    cpu_labels_N   the same on the CPU
    weight         of these labels; those of `other` have the rest, 1 - weight
    other          the targets of the samples that these were mixed with (MixUp, CutMix); None: not mixed
    """

    labels_N: Tensor
    cpu_labels_N: Tensor
    weight: float = 1.0
    other: Targets | None = None

    def __len__(self) -> int:
        return len(self.cpu_labels_N)

    def mixed_with(self, other: Targets, weight: float) -> Targets:
        """Return the targets of a mixture, in which these have a weight of 0..1 and the other samples' have the rest.

        Neither is a mixture already.
        """
        return Targets(self.labels_N, self.cpu_labels_N, weight, other)

    @property
    def parts(self) -> list[tuple[float, Targets]]:
        """The targets that are mixed, none of which is a mixture, each with its weight."""
        if self.other is None:
            return [(1.0, self)]
        return [(self.weight, Targets(self.labels_N, self.cpu_labels_N)), (1 - self.weight, self.other)]

    @property
    def likely_labels(self) -> Tensor:
        """The labels of larger weight, on the device: by them, accuracy is counted."""
        return self.labels_N if self.other is None or self.weight >= 0.5 else self.other.labels_N

    def dense(self, num_classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the target of each class, [N, C] on the device: 1 for a class of the sample, the weight in a mixture.

        Nothing waits for the device.
        """
        if self.other is None:
            return is_of_class(self.labels_N, num_classes).to(dtype)
        own, other = (part.dense(num_classes, dtype) * weight for weight, part in self.parts)
        return own + other

    def split(self, size: int) -> list[Targets]:
        """Return the targets of the same samples in pieces of at most `size`."""
        labels, cpu_labels = torch.split(self.labels_N, size), torch.split(self.cpu_labels_N, size)
        others: list[Targets | None] = [None] * len(labels) if self.other is None else [*self.other.split(size)]
        return [
            Targets(labels_N, cpu_labels_N, self.weight, other)
            for labels_N, cpu_labels_N, other in zip(labels, cpu_labels, others, strict=True)
        ]


def are_sets(labels_N: Tensor) -> bool:
    """Return True if each sample has a set of classes, False if it is of one class."""
    return labels_N.ndim == 2


def is_of_class(labels_N: Tensor, num_classes: int) -> Tensor:
    """Return whether each sample is of each class: bool [N, C] on the labels' device, which nothing waits for."""
    if are_sets(labels_N):
        return labels_N
    return labels_N[:, None] == torch.arange(num_classes, device=labels_N.device)


def class_sizes(labels_N: Tensor, num_classes: int) -> Tensor:
    """Return how many samples are of each class: int64 [C]; one with several classes counts for each of them."""
    return labels_N.sum(dim=0) if are_sets(labels_N) else torch.bincount(labels_N, minlength=num_classes)


def set_of(rows: Sequence[Sequence[int]], num_classes: int) -> Tensor:
    """Return the labels of samples that have these classes: bool [N, C]."""
    labels_NC = torch.zeros(len(rows), num_classes, dtype=torch.bool)
    sizes = torch.tensor([len(row) for row in rows], dtype=torch.int64)
    flat = torch.tensor([label for row in rows for label in row], dtype=torch.int64)
    labels_NC[torch.repeat_interleave(sizes), flat] = True
    return labels_NC


def strata(labels_N: Tensor) -> Tensor:
    """Return the one class that a split takes each sample for, int64 [N]: of a set, the class with the fewest samples.

    So a split holds out its share of the rarest classes, which have the fewest samples to lose. Of classes of one size
    it is the first; C for an empty set.
    """
    if not are_sets(labels_N):
        return labels_N
    num_classes = labels_N.shape[1]
    rarest_first = torch.argsort(class_sizes(labels_N, num_classes), stable=True)
    place_N = labels_N[:, rarest_first].to(torch.int8).argmax(dim=1)  # of equal values argmax takes the first
    return torch.where(labels_N.any(dim=1), rarest_first[place_N], num_classes)


def class_names_of(labels_N: Tensor, class_names: Sequence[str]) -> list[list[str]]:
    """Return the names of the classes that each sample has, in the order of the classes."""
    if not are_sets(labels_N):
        return [[class_names[label]] for label in labels_N.tolist()]
    return [[class_names[label] for label in row_C.nonzero()[:, 0].tolist()] for row_C in labels_N]
