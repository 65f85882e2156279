"""Descriptions of the keys of `model`."""

from __future__ import annotations

from collections.abc import Mapping

from trainlib.config.docs.description import Description

D = Description

MODEL_DESCRIPTIONS: Mapping[str, Description] = {
    "model": D(
        "The network. Further keys are arguments of the named model.",
        "model='{name: vgg16, width: 0.25}'",
    ),
    "model.name": D(
        "`cifar10_cnn`, `cifar10_fast` (takes `width`, `whitening`, `dirac`), `vgg16` (takes `width`, `dropout`), "
        "the function name of any classifier in torchvision, `timm/NAME` or `hf-hub:ORGANISATION/NAME` (both through "
        "timm, an optional extra), or `code:NAME`, your own ([own_code.md](own_code.md)).",
        "model.name=resnet18",
    ),
    "model.weights": D(
        "Initial weights: `pretrained`, those that the model's source publishes, or a name of torchvision's; the path "
        "of a state_dict (`.pt`, `.pth`, `.safetensors`), or `run:NAME`, the best weights of another run. Of a model "
        "with another head, the rest is loaded. `null`: random weights.",
        "model='{name: resnet18, weights: IMAGENET1K_V1}'",
    ),
    "model.weights_keys": D(
        "How the tensors of a weights file find their places: `strict`, by their names; `shapes`, the i-th tensor of "
        "the file (.pt, .pth) is the i-th of the model, for the same network with other names (see "
        "[models.md](models.md)).",
        "model='{name: timm/tf_efficientnet_lite0, weights: lite0.pth, weights_keys: shapes}'",
    ),
    "model.head": D(
        "How a published model is fitted to your number of classes: `replace` its last layer, or `append` a new layer.",
        "model='{name: vgg16, head: append}'",
    ),
    "model.freeze": D(
        "The part that is not trained: `features` (the submodule of that name), `backbone` (all but the head), or a "
        "list of patterns of parameter names. BatchNorm and dropout of modules that are frozen as a whole are in eval "
        "mode.",
        "model='{name: vgg16, freeze: features}'",
    ),
    "model.unfreeze": D(
        "Which of the frozen parameters are trained from when on. Each is frozen until the first element that matches "
        "it; what is frozen follows from the step alone, also after a resume.",
        'model=\'{name: vgg16, freeze: backbone, unfreeze: [{match: "classifier.*", at: 2ep}, '
        '{match: "*", at: 5ep}]}\'',
    ),
    "model.unfreeze.match": D(
        "Pattern for whole parameter names, with `*`, `?` and `[...]`, or `head`, the last layer whatever its name.",
        "model='{name: vgg16, freeze: features, unfreeze: [{match: \"features.2[0-9].*\", at: 500st}]}'",
    ),
    "model.unfreeze.at": D(
        "How long they stay frozen: `3ep`, the first three epochs, or `500st`, the first 500 steps.",
        "model='{name: vgg16, freeze: features, unfreeze: [{match: \"*\", at: 1ep}]}'",
    ),
    "model.cache_features": D(
        "Compute the output of the frozen layers for each image once instead of in every epoch, and train on it: "
        "the same bits, in less time ([using-models.md](using-models.md)). `auto`: where it is possible and saves "
        "time; `true`: fail where it is not possible.",
        "model.cache_features=false",
    ),
    "model.sync_batchnorm": D(
        "`true`: BatchNorm takes mean and variance over the global batch, on all processes; `false`: over the images "
        "that one process computes at a time ([models.md](models.md#batchnorm-on-several-processes)).",
        "model='{name: resnet18, sync_batchnorm: true}'",
    ),
    "model.checkpoint_activations": D(
        "`true`: compute what is inside of the model's blocks again in the backward pass, in place of keeping it: less "
        "memory, a second forward pass, the same bits. The key may be changed at any time.",
        "model='{name: resnet18, checkpoint_activations: true}'",
    ),
}
