"""The training objective: the configured loss of torch.nn, in a form that adds up exactly over parts of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from trainlib.config import BALANCED, LossConfig, custom_part_missing, is_custom
from trainlib.data.targets import Targets, are_sets, class_sizes, is_of_class
from trainlib.errors import UserError

# Losses of the activated logits and one-hot targets, instead of class indices.
DENSE_TARGETS = ("BCELoss", "BCEWithLogitsLoss", "L1Loss", "SmoothL1Loss", "HuberLoss", "MSELoss")
# With reduction mean these divide by the summed class weights of the labels; every other loss by the number of samples.
WEIGHTED_MEAN = ("CrossEntropyLoss", "NLLLoss")
ONE_PER_CLASS = ("weight", "pos_weight")

CustomLoss = Callable[[Tensor, Tensor], Tensor]


class Objective:
    """The configured loss of logits [N, C] and labels: int64 [N], in 0..C-1, or bool [N, C] (see `data.targets`).

    For any partition of a set of samples A into parts P, up to the order of float sums:

        loss(A) == sum over P of loss(P) * denominator(P) / denominator(A)

    A part with denominator 0 adds nothing; leave it out, as its mean is not a number.
    Reduction `none` is the mean over all of torch's unreduced elements, in which class weights do not divide.
    Call it outside autocast: the loss is computed in float32, or in the logits' float64.
    """

    def __init__(self, config: LossConfig, num_classes: int, device: torch.device, custom: CustomLoss | None = None):
        """Build the loss. Raises UserError for arguments that torch refuses, or a wrong number of class weights.

        config   with numbers for its class weights (see `with_class_weights`)
        custom   used in place of a loss of torch.nn (see `custom_parts.CustomParts`)
        """
        self.config = config
        self._activation = config.activation
        self._reduction = config.reduction
        self.num_classes = num_classes
        self._is_dense = config.name in DENSE_TARGETS
        self._threshold = config.target_threshold
        self._weights_C = _denominator_weights(config, num_classes)
        try:
            self.module = custom if custom is not None else _torch_loss(config, num_classes)
            if custom is None:
                with torch.device("cpu"):  # torch checks some arguments only when it computes
                    self(torch.zeros(1, num_classes), torch.zeros(1, dtype=torch.int64))
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"loss {config.name}: {error}") from error
        if isinstance(self.module, nn.Module):
            self.module.to(device)

    def __call__(self, logits_NC: Tensor, labels_N: Tensor) -> Tensor:
        """Return the loss of exactly these samples, a scalar; with reduction mean and sum it is bitwise torch's own."""
        if logits_NC.dtype is not torch.float32:
            logits_NC = logits_NC.to(torch.promote_types(logits_NC.dtype, torch.float32))
        if self._activation == "sigmoid":
            logits_NC = torch.sigmoid(logits_NC)
        elif self._activation == "softmax":
            logits_NC = torch.softmax(logits_NC, dim=1)
        elif self._activation == "log_softmax":
            logits_NC = torch.log_softmax(logits_NC, dim=1)
        targets = is_of_class(labels_N, self.num_classes).to(logits_NC.dtype) if self._is_dense else labels_N
        loss: Tensor = self.module(logits_NC, targets)
        if loss.ndim and self._reduction == "sum":  # of a loss of one's own; torch's are summed already
            return loss.sum()
        return loss.mean() if loss.ndim else loss

    def of(self, logits_NC: Tensor, targets: Targets) -> tuple[Tensor | None, float]:
        """Return the loss of samples, which may be mixtures, and its denominator; with denominator 0, None and 0.

        A mixture counts as a part of a sample with each of its labels: losses and denominators are those sums. With
        `loss.target_threshold` it has the set of the classes whose weight is above that.
        """
        if targets.other is not None and self._threshold is not None:
            present_NC = targets.dense(self.num_classes) > self._threshold
            return self(logits_NC, present_NC), self.denominator(targets.cpu_labels_N)
        if targets.other is None:
            denominator = self.denominator(targets.cpu_labels_N)
            return (self(logits_NC, targets.labels_N) if denominator else None), denominator
        denominators = [weight * self.denominator(part.cpu_labels_N) for weight, part in targets.parts]
        total = sum(denominators)
        losses = [
            self(logits_NC, part.labels_N) * (share / total)
            for share, (_, part) in zip(denominators, targets.parts, strict=True)
            if share
        ]
        return (torch.stack(losses).sum() if losses else None), total

    def denominator(self, labels_N: Tensor) -> float:
        """Return the number that `__call__` divides by: the count or summed class weights of these labels; 1 for a sum.

        labels_N   on the CPU
        """
        if self._reduction == "sum":
            return 1.0
        if self._weights_C is None:
            return float(len(labels_N))
        return float(self._weights_C[labels_N].sum())


def count_correct(logits_NC: Tensor, labels_N: Tensor) -> Tensor:
    """Return the number of samples that are right: an int64 scalar on the logits' device.

    A sample of one class is right if its largest logit is at its label; one with a set of classes, if the logits above
    0, which are probabilities above a half, are those of the set and no others.
    """
    if are_sets(labels_N):
        return ((logits_NC > 0) == labels_N).all(dim=1).sum()
    return (logits_NC.argmax(dim=1) == labels_N).sum()


def is_balanced(config: LossConfig) -> bool:
    """Return True if the class weights are to be computed from the training samples."""
    return config.args.get("weight") == BALANCED


def with_class_weights(config: LossConfig, labels_N: Tensor, num_classes: int) -> LossConfig:
    """Return the loss with numbers for `weight: balanced`: N / (classes * n) for a class of n training samples.

    labels_N   on the CPU, of the training samples

    Over the training samples, the weights of all classes that occur then sum to the same. A class without a sample has
    weight 0. With sets of classes, the number is the weight of a class where it is in the set (torch's `pos_weight`):
    (N - n) / n, so that both answers to each class weigh the same together; 1 for a class without a sample.
    """
    if not is_balanced(config):
        return config
    counts, total = class_sizes(labels_N, num_classes).tolist(), len(labels_N)
    if are_sets(labels_N):
        return with_weights(config, [(total - count) / count if count else 1.0 for count in counts], of_sets=True)
    return with_weights(config, [total / (num_classes * count) if count else 0.0 for count in counts])


def with_weights(config: LossConfig, weights: Sequence[float], *, of_sets: bool = False) -> LossConfig:
    """Return the loss with these numbers for `weight: balanced`: of the classes, or of the classes of sets."""
    return config.model_copy(update={"weight": None, "pos_weight": weights} if of_sets else {"weight": weights})


def weights_by_class(config: LossConfig, class_names: Sequence[str]) -> list[str]:
    """Return, for each argument of the loss that lists a number for each class, a line with the class of each number.

    Such lists are in the order of the classes, which is easily taken for another one.
    """
    lines = []
    for key in ONE_PER_CLASS:
        values = config.args.get(key)
        if isinstance(values, list):
            pairs = [
                f"{name!r} {value:g}{'' if value else ' (counts for nothing)'}"
                for name, value in zip(class_names, values, strict=False)
            ]
            lines.append(f"loss.{key} by class: {', '.join(pairs)}")
    ignored = config.args.get("ignore_index", -100)
    if 0 <= ignored < len(class_names):
        lines.append(f"loss.ignore_index: samples of class {class_names[ignored]!r} count for nothing")
    return lines


def check_class_weights(objective: Objective, labels_N: Tensor) -> None:
    """Raise UserError if all training samples have weight 0: their mean loss is no number, and their sum is 0.

    labels_N   of all training samples, int64 on the CPU
    """
    if objective.denominator(labels_N) == 0:
        raise UserError(
            "loss: the classes of all training samples have weight 0 (loss.weight, loss.ignore_index), and then "
            "nothing can be learned: give a class with training samples a weight above 0"
        )


def _torch_loss(config: LossConfig, num_classes: int) -> nn.Module:
    if is_custom(config.name):
        raise UserError(f"loss.name: {custom_part_missing(config.name)}")
    args = {
        key: _class_weights(key, value, num_classes) if key in ONE_PER_CLASS and value is not None else value
        for key, value in config.args.items()
    }
    loss: nn.Module = getattr(nn, config.name)(**args, reduction=config.reduction)
    return loss


def _class_weights(key: str, value: object, num_classes: int) -> Tensor:
    if not isinstance(value, list) or len(value) != num_classes:
        got = f"{len(value)} numbers" if isinstance(value, list) else repr(value)
        raise UserError(f"loss.{key}: got {got}, must be a list of {num_classes}, one for each class")
    if not all(isinstance(weight, int | float) for weight in value):
        raise UserError(f"loss.{key}: got {value}, each must be a number")
    return torch.tensor(value, dtype=torch.float32, device="cpu")


def _denominator_weights(config: LossConfig, num_classes: int) -> Tensor | None:
    """Return the weight of each class in the denominator of a mean, float64 [C]; None if all are 1."""
    if config.name not in WEIGHTED_MEAN or config.reduction != "mean":
        return None
    weight, ignored = config.args.get("weight"), config.args.get("ignore_index", -100)
    if weight is None and not 0 <= ignored < num_classes:
        return None
    weights_C = (
        torch.ones(num_classes, device="cpu") if weight is None else _class_weights("weight", weight, num_classes)
    )
    if 0 <= ignored < num_classes:
        weights_C[ignored] = 0.0
    return weights_C.double()
