"""The names that a configuration may use for losses, optimizers, schedulers and models, and what each takes.

The lists are those of the installed torch and torchvision; those of `OWN_MODELS` and `OWN_OPTIMIZERS` are this
project's own. A name is looked up here and nowhere else: nothing is imported because a configuration says so.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

from trainlib.config.libraries import signatures, timm_models
from trainlib.config.libraries.kinds import BOOLEAN, NUMBER, WHOLE, choice, either, fixed_list, list_of
from trainlib.config.libraries.signatures import Argument

Family = Literal["loss", "optimizer", "scheduler", "model"]

RUN_WEIGHTS = "run:"
BALANCED = "balanced"  # loss.weight: each class counts as much as any other, over all training samples
PRETRAINED = "pretrained"  # model.weights: those that the model's own source publishes
WEIGHTS_SUFFIXES = (".pt", ".pth", ".safetensors")

LOSSES = (
    "CrossEntropyLoss",
    "NLLLoss",
    "BCELoss",
    "BCEWithLogitsLoss",
    "L1Loss",
    "SmoothL1Loss",
    "HuberLoss",
    "MSELoss",
    "MultiMarginLoss",
)
OWN_MODELS: Mapping[str, Mapping[str, Argument]] = {
    "cifar10_cnn": {},
    "cifar10_fast": {
        "width": Argument(NUMBER, default=1.0),
        "whitening": Argument(BOOLEAN, default=True),
        "dirac": Argument(BOOLEAN, default=True),
    },
    "vgg16": {"width": Argument(NUMBER, default=1.0), "dropout": Argument(NUMBER, default=0.5)},
}
OWN_OPTIMIZERS: Mapping[str, Mapping[str, Argument]] = {
    "MuonSGD": {
        "lr": Argument(NUMBER, default=0.02),
        "momentum": Argument(NUMBER, default=0.95),
        "nesterov": Argument(BOOLEAN, default=True),
        "weight_decay": Argument(NUMBER, default=0.0),
        "muon": Argument(BOOLEAN, default=True),
        "normalize_weights": Argument(BOOLEAN, default=False),
        "ns_steps": Argument(WHOLE, default=5),
    },
    "LAMB": {
        "lr": Argument(NUMBER, default=1e-3),
        "betas": Argument(fixed_list([NUMBER, NUMBER]), default=(0.9, 0.999)),
        "eps": Argument(NUMBER, default=1e-6),
        "weight_decay": Argument(NUMBER, default=0.01),
        "trust_clip": Argument(BOOLEAN, default=False),
        "always_adapt": Argument(BOOLEAN, default=False),
    },
}
# Classes that exist but cannot be used, each with the reason and the way out.
REFUSED: Mapping[str, Mapping[str, str]] = {
    "loss": {},
    "optimizer": {
        "LBFGS": "needs to evaluate the loss several times a step: choose another, such as SGD or AdamW",
        "SparseAdam": "needs sparse gradients, which no model here has: choose Adam",
    },
    "scheduler": {
        "LambdaLR": "takes a Python function: choose another, or write a list of schedulers",
        "MultiplicativeLR": "takes a Python function: choose another, or write a list of schedulers",
        "SequentialLR": "is written as a list: scheduler: [{name: LinearLR, duration: 5ep}, {name: CosineAnnealingLR}]",
        "ChainedScheduler": "is not available: write a list of schedulers, which run one after another",
    },
    "model": {},
}
# Required by torch, but filled in from the length of the schedule.
_OPTIONAL = {("CosineAnnealingLR", "T_max"), ("OneCycleLR", "total_steps")}
_HIDDEN: Mapping[str, set[str]] = {
    "loss": {"size_average", "reduce", "reduction"},
    "optimizer": {"params", "differentiable", "capturable"},
    "scheduler": {"optimizer", "last_epoch", "verbose", "scale_fn"},
}


@cache
def names(family: Family) -> tuple[str, ...]:
    """Return every usable name of a family."""
    if family == "loss":
        return LOSSES
    if family == "model":
        return (*OWN_MODELS, *sorted(set(signatures.model_files()) - set(OWN_MODELS)))
    if family == "optimizer":
        tree = signatures.module("torch", "optim/__init__.py")
        known = [n for n in signatures.exported(tree) if n in signatures.imported_classes(tree) and n != "Optimizer"]
        known += OWN_OPTIMIZERS
    else:
        tree = signatures.module("torch", "optim/lr_scheduler.py")
        known = [n for n in signatures.exported(tree) if n in signatures.classes(tree) and n != "LRScheduler"]
    return tuple(n for n in known if n not in REFUSED[family])


@cache
def arguments(family: Family, name: str) -> Mapping[str, Argument]:
    """Return the arguments that the class `name`, of `names(family)`, takes in a configuration, in its own order."""
    if family == "model":
        return OWN_MODELS[name] if name in OWN_MODELS else signatures.model_signature(name)
    if name in OWN_OPTIMIZERS and family == "optimizer":
        return OWN_OPTIMIZERS[name]
    path, tensor = "optim/lr_scheduler.py", None
    if family == "loss":
        path, tensor = "nn/modules/loss.py", list_of(NUMBER)
    elif family == "optimizer":
        home = signatures.imported_classes(signatures.module("torch", "optim/__init__.py"))[name]
        path = home.removeprefix("torch.").replace(".", "/") + ".py"
    found = signatures.signature(signatures.module("torch", path), name, _HIDDEN[family], tensor)
    taken = {k: Argument(a.kind, a.required and (name, k) not in _OPTIONAL, a.default) for k, a in found.items()}
    if family == "loss" and "weight" in taken:  # filled in once the training samples are known
        weight = taken["weight"]
        taken["weight"] = Argument(either([weight.kind, choice([BALANCED])]), weight.required, weight.default)
    return taken


def weights(model: str) -> tuple[str, ...]:
    """Return the names of the weights that a model's source publishes; empty if it has none."""
    if timm_models.is_from_timm(model):
        return (PRETRAINED,)
    return (PRETRAINED, *signatures.weight_names(model)) if model in signatures.model_files() else ()


class RunWeights(NamedTuple):
    """The weights that `run:NAME` or `run:NAME@SHA256` means: a run, and the hash of its model file if it is pinned."""

    name: str
    sha256: str | None


def weights_run(text: str | None) -> RunWeights | None:
    """Return the run that `model.weights` names; None for anything else."""
    if text is None or not text.startswith(RUN_WEIGHTS):
        return None
    name, _, sha256 = text.removeprefix(RUN_WEIGHTS).partition("@")
    return RunWeights(name, sha256 or None)


def weights_file(text: str) -> Path | None:
    """Return the path that `model.weights` gives, or None if it is the name of pretrained weights.

    A path has a slash or one of `WEIGHTS_SUFFIXES`; the file need not exist.
    """
    if text.startswith(RUN_WEIGHTS):
        return None
    if "/" in text or "\\" in text or text.endswith(WEIGHTS_SUFFIXES):
        return Path(os.path.expanduser(text))  # Path.expanduser raises for a user that there is not
    return None
