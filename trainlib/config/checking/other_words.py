"""Words of other tools, with ours: `lr=0.1` is `optimizer.lr=0.1`. They are told to the user; nothing is guessed."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, cast, get_args

from trainlib.config.libraries import catalog
from trainlib.config.libraries.catalog import Family
from trainlib.config.schema.keys import all_keys, field_at, literals

# Other names of keys, with what to type; {} is the value. Names are compared without case, "-" and "_" alike.
KEYS: Mapping[str, str] = {
    **dict.fromkeys(("lr", "learning_rate", "lr0", "base_lr"), "optimizer.lr={}"),
    **dict.fromkeys(("wd", "weight_decay"), "optimizer.weight_decay={}"),
    "momentum": "optimizer.momentum={}",
    **dict.fromkeys(("optimizer", "optim", "opt"), "optimizer.name={}"),
    **dict.fromkeys(("scheduler", "sched", "lr_scheduler", "lr_scheduler_type", "schedule"), "scheduler.name={}"),
    **dict.fromkeys(("loss", "criterion", "loss_fn"), "loss.name={}"),
    **dict.fromkeys(("label_smoothing", "smoothing"), "loss.label_smoothing={}"),
    **dict.fromkeys(("class_weights", "class_weight"), "loss.weight={}"),
    **dict.fromkeys(("model", "arch", "architecture", "backbone", "net", "network", "model_name"), "model.name={}"),
    **dict.fromkeys(("pretrained", "model.pretrained", "weights"), "model.weights={}"),
    **dict.fromkeys(("drop", "drop_rate", "dropout"), "model.dropout={}"),
    "freeze": "model.freeze={}",
    **dict.fromkeys(
        ("epochs", "epoch", "max_epochs", "num_epochs", "n_epochs", "nb_epochs", "num_train_epochs"), "train.epochs={}"
    ),
    **dict.fromkeys(("steps", "max_steps", "num_steps", "max_iters", "iterations"), "train.steps={}"),
    **dict.fromkeys(
        (
            "batch_size",
            "batch",
            "bs",
            "b",
            "train_batch_size",
            "global_batch_size",
            "per_device_train_batch_size",
            "data.batch_size",
        ),
        "train.batch_size={}",
    ),
    **dict.fromkeys(("precision", "amp", "fp16", "bf16", "half", "mixed_precision"), "train.precision={}"),
    **dict.fromkeys(
        ("grad_clip", "clip_grad", "gradient_clip_val", "max_grad_norm", "clip"), "train.clip_grad_norm={}"
    ),
    **dict.fromkeys(("patience", "early_stopping_patience"), "train.early_stopping.patience={}"),
    **dict.fromkeys(("ema", "model_ema", "ema_decay", "model_ema_decay"), "train.average.decay={}"),
    "slurm.gpus": "slurm.gpus_per_node={}",
    "slurm.time_limit": "slurm.time={}",
    **dict.fromkeys(("device", "accelerator", "use_cuda", "cuda"), "train.device={}"),
    **dict.fromkeys(("early_stopping", "train.early_stopping"), "train.early_stopping.patience={}"),
    "deterministic": "train.reproducibility=exact",
    **dict.fromkeys(("seed", "manual_seed", "random_seed"), "seed={}"),
    **dict.fromkeys(
        ("data", "dataset", "data_dir", "data_path", "data.path", "data.dir", "dataset_path", "train_dir", "root"),
        "data.root={} data.name=image_folder",
    ),
    **dict.fromkeys(
        ("imgsz", "img_size", "image_size", "input_size", "resolution", "crop_size", "data.size"), "data.image_size={}"
    ),
    **dict.fromkeys(("val_split", "validation_split", "valid_pct", "val_fraction"), "data.val_fraction={}"),
    **dict.fromkeys(("test_split", "test_fraction", "test_size"), "data.test_fraction={}"),
    "mixup": "data.augment.mixup={}",
    "cutmix": "data.augment.cutmix={}",
    **dict.fromkeys(("flip", "hflip", "fliplr"), "data.augment.flip={}"),
    **dict.fromkeys(("auto_augment", "autoaugment", "aa", "data.augment", "augment"), "data.augment.policy={}"),
    **dict.fromkeys(("reprob", "random_erasing", "erasing"), "data.augment.erase={}"),
    **dict.fromkeys(("output", "output_dir", "save_dir", "out", "log_dir", "logdir", "default_root_dir"), "--name {}"),
    **dict.fromkeys(("project", "wandb_project"), "tracking.wandb.project={}"),
    **dict.fromkeys(("exp_name", "run_name", "experiment", "exp"), "--name {}"),
    **dict.fromkeys(("wandb", "use_wandb", "tracking.wandb"), "tracking.wandb.mode={}"),
    "tensorboard": "tracking.tensorboard={}",
    **dict.fromkeys(("log_interval", "log_every_n_steps", "logging_steps"), "tracking.log_every={}"),
    **dict.fromkeys(("save_period", "save_every", "save_interval", "save_freq"), "checkpoint.every={}"),
    **dict.fromkeys(("resume_from_checkpoint", "ckpt_path", "resume_from", "checkpoint"), "--resume {}"),
    **dict.fromkeys(
        ("gpus", "devices", "num_gpus", "ngpus", "n_gpu", "nproc_per_node", "nproc", "num_processes", "world_size"),
        "--processes {}",
    ),
    **dict.fromkeys(("config", "cfg", "config_file", "config_name", "c"), "launch run {}"),
}
# Keys of other tools for which there is nothing to type.
NO_KEY: Mapping[str, str] = {
    **dict.fromkeys(
        ("workers", "num_workers", "j", "dataloader_num_workers"), "leave it out: pictures are decoded on all cores"
    ),
    **dict.fromkeys(("num_classes", "nc", "n_classes"), "leave it out: the classes are those of the data"),
    **dict.fromkeys(
        ("accumulate_grad_batches", "gradient_accumulation_steps", "grad_accum"),
        "train.batch_size is that of the whole step; what does not fit into memory is cut by train.micro_batch_size=N",
    ),
    **dict.fromkeys(
        ("warmup", "warmup_epochs", "warmup_steps", "num_warmup_steps"),
        "warm-up is a scheduler of its own: scheduler='[{name: LinearLR, start_factor: 0.1, duration: 1ep}, "
        "{name: CosineAnnealingLR}]'",
    ),
    **dict.fromkeys(
        ("logger", "report_to", "trackers", "log_with"),
        "trackers have keys of their own: tracking.wandb.mode=online, tracking.tensorboard=true",
    ),
    **dict.fromkeys(
        ("callbacks", "hooks"),
        "checkpoint, train.early_stopping and train.average are keys; code of your own is given in Python: "
        "trainlib.fit(hooks=[...]), see docs/python.md",
    ),
    **dict.fromkeys(("strategy", "ddp", "distributed"), "leave it out: --processes N trains data-parallel"),
    "gpu": "choose GPUs by the environment: CUDA_VISIBLE_DEVICES=0 launch run ...",
}
_OFF, _ON = ("false", "off", "none", "null", "no", "disable", "0"), ("true", "on", "yes", "enable", "1")
# Other words for the values of some keys. The names of classes are also found without case, "-" and "_".
VALUES: Mapping[str, Mapping[str, str]] = {
    "scheduler.name": {
        **dict.fromkeys(("cosine", "cos", "cosineannealing", "cosinelr"), "CosineAnnealingLR"),
        "step": "StepLR",
        "multistep": "MultiStepLR",
        **dict.fromkeys(("plateau", "reduceonplateau"), "ReduceLROnPlateau"),
        **dict.fromkeys(("onecycle", "one_cycle", "1cycle"), "OneCycleLR"),
        **dict.fromkeys(("exp", "exponential"), "ExponentialLR"),
        **dict.fromkeys(("poly", "polynomial"), "PolynomialLR"),
        **dict.fromkeys(("linear", "warmup"), "LinearLR"),
        "constant": "ConstantLR",
    },
    "loss.name": {
        **dict.fromkeys(("ce", "crossentropy", "xent", "softmax"), "CrossEntropyLoss"),
        **dict.fromkeys(("bce", "binarycrossentropy"), "BCEWithLogitsLoss"),
        **dict.fromkeys(("mse", "l2"), "MSELoss"),
        **dict.fromkeys(("l1", "mae"), "L1Loss"),
        "nll": "NLLLoss",
        "huber": "HuberLoss",
        **dict.fromkeys(("labelsmoothing", "labelsmoothingcrossentropy"), "CrossEntropyLoss loss.label_smoothing=0.1"),
    },
    "optimizer.name": {"momentum": "SGD", "sgdm": "SGD", "muon": "MuonSGD", "nesterov": "SGD"},
    "model.name": {"vgg": "vgg16", "resnet": "resnet18", "vit": "vit_b_16", "cnn": "cifar10_cnn"},
    "model.weights": {
        **dict.fromkeys(_ON, "pretrained"),
        "imagenet": "pretrained",
        "": "pretrained",
        **dict.fromkeys(_OFF, "null"),
    },
    "tracking.wandb.mode": {**dict.fromkeys(_OFF, "disabled"), **dict.fromkeys(_ON, "online"), "": "online"},
    "train.precision": {
        **dict.fromkeys(("16", "16mixed", "half", "amp", "float16", "mixed", *_ON, ""), "fp16"),
        **dict.fromkeys(("bfloat16", "bf16mixed"), "bf16"),
        **dict.fromkeys(("32", "32true", "full", "float", "float32", *_OFF), "fp32"),
    },
    "data.name": {
        **dict.fromkeys(("folder", "images", "imagenet"), "image_folder"),
        **dict.fromkeys(("cifar", "cifar_10"), "cifar10"),
        **dict.fromkeys(("csv", "parquet"), "table"),
        **dict.fromkeys(("tar", "zip", "webdataset", "wds"), "archive"),
        **dict.fromkeys(("huggingface", "datasets"), "hf"),
        **dict.fromkeys(("fake", "random"), "synthetic"),
    },
    "data.augment.policy": {"rand": "randaugment", "imagenet": "autoaugment", "trivialaugment": "trivial"},
    "train.device": {**dict.fromkeys(("gpu", "cuda:0", "cuda:1", *_ON, ""), "cuda"), **dict.fromkeys(_OFF, "cpu")},
    "train.early_stopping.patience": {**dict.fromkeys((*_ON, ""), "10")},
    "loss.weight": dict.fromkeys(_ON, "balanced"),
}
# What is said of a class that nobody knows.
OWN: Mapping[str, str] = {
    "loss.name": "a loss of your own: --code FILE.py loss.name=code:NAME or, in Python, trainlib.fit(loss=...)",
    "model.name": "a model of your own: --code FILE.py model.name=code:NAME or, in Python, trainlib.fit(model=...)",
}
_WHOLE = ("scheduler", "slurm", "checkpoint", "evaluation")  # sections whose keys mean nothing elsewhere


def instead(key: str, value: str) -> str | None:
    """Return the words to type in place of `key=value`, or a sentence; None where there is nothing to say.

    key     a dotted key, a word of another tool, or an option without its dashes
    value   as it was typed; "" where there was none
    """
    plain = key.lower().replace("-", "_")
    section, _, last = plain.rpartition(".")
    if advice := NO_KEY.get(last):
        return advice
    template = KEYS.get(plain) or ("" if section in _WHOLE else KEYS.get(last, ""))
    if not template and (plain in all_keys() or section in get_args(Family)):
        template = f"{key}={{}}"
    if template.startswith("data.root=") and (source := ours("data.name", value)):
        return f"data.name={source}"
    target = template.partition("=")[0]
    if last in ("bf16", "fp16") and value.lower() in ("", *_ON):
        value = last
    if (known := ours(target, value)) is not None:
        return template.format(known)
    names = _names(target) if target.endswith(".name") else ()
    if value and names and value not in names and not set("/:") & set(value):
        return OWN.get(target) or (None if target == key else template.format("NAME"))
    return template.format(shlex.quote(value) if value else "...") or None


def ours(key: str, value: str) -> str | None:
    """Return the value of a key that another tool's word means; None where none is known."""
    known = VALUES.get(key, {})
    plain = _plain(value)
    if value in known or plain in known:
        return known.get(value, known.get(plain))
    return next((name for name in _names(key) if _plain(name) == plain and plain), None)


def with_words(key: str, value: Any, rule: str, *, typed: bool) -> str:
    """Return the rule of a mistake, with the exact words to type where another tool's were used.

    typed   on the command line; in a file, the same is written as YAML
    """
    if isinstance(value, dict) and len(value) == 1 and key not in all_keys():  # a section of another tool
        [(name, inner)] = value.items()
        return with_words(f"{key}.{name}", inner, rule, typed=typed)
    if key == "mirror" or (isinstance(value, dict | list) and key not in NO_KEY):  # the first may hold a password
        return rule
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    separated = re.fullmatch(r"(?!code:|run:)(\w+):(\S+)", text)
    if separated and not typed and "must be a section" in rule:
        return f"{rule}. Put a space behind the colon: {separated[1]}: {separated[2]}"
    words = f"{key}={shlex.quote(json.dumps([value]))}" if rule.endswith("must be a list") else instead(key, text)
    if words is None or words in (f"{key}={text}", f"{key}={shlex.quote(text)}", f"{key}=..."):  # what was typed
        return rule
    if not typed and words not in (*NO_KEY.values(), *OWN.values()) and not words.startswith(("-", "launch ")):
        words = f"write {', '.join(_as_yaml(word) for word in shlex.split(words))}"
    return f"{rule}{'' if rule.endswith('?') else '.'} {sentence(words)}"


def sentence(words: str) -> str:
    """Return what `instead` gave as a sentence: `Type train.epochs=5`."""
    is_sentence = words in NO_KEY.values() or words in OWN.values() or words.startswith("write ")
    return f"{words[0].upper()}{words[1:]}" if is_sentence else f"Type {words}"


def separate_words(words: Sequence[str]) -> dict[str, str]:
    """Return what to type for each word that names a key in another way: `train.epochs 5`, `lr:0.1`, `+seed=1`.

    words   those of a command line that name no configuration, in their order

    The value that follows a key, and what stands between, are among them with nothing to type.
    """
    found: dict[str, str] = {}
    for index, word in enumerate(words):
        key = word.rstrip(":=")
        following = [other for other in words[index + 1 :] if other != "="][:1]
        value = "".join(other for other in following if "=" not in other)
        if word in found:
            continue
        if answer := _respelt(word):
            found[word] = sentence(answer)
        elif is_key(key) and (value or word == key) and (answer := instead(key, value)):
            found |= {word: sentence(answer), value: "", **({"=": ""} if "=" in words[index + 1 : index + 2] else {})}
        elif word in catalog.names("model"):
            found[word] = sentence(f"model.name={word}")
    return found


def _respelt(word: str) -> str | None:
    """Return what to type for one word in the form of other tools, such as Hydra's; None for any other word."""
    if removed := re.fullmatch(r"~([A-Za-z_][\w.]*)", word):
        return f"{removed[1]}=null" if is_key(removed[1]) else None
    parts = re.fullmatch(r"\+{0,2}([A-Za-z_][\w.]*(?:[/:][A-Za-z_][\w.]*)?)(==?|: ?)(.+)", word)
    if parts is None or (parts[2] == "=" and re.match(r"[A-Za-z_][\w.]*=", word)):
        return None
    key = re.sub("[/:]", ".", parts[1])
    return instead(key, parts[3]) if is_key(key) or is_key(key.rpartition(".")[2]) else None


def is_key(word: str) -> bool:
    """Return True for a key of ours or of another tool."""
    plain = word.lower().replace("-", "_")
    section = plain.partition(".")[0]
    return (
        plain in all_keys()
        or plain in KEYS
        or plain in NO_KEY
        or (section in get_args(Family) and "." in plain and "=" not in plain)
    )


def _plain(word: str) -> str:
    return word.lower().replace("-", "").replace("_", "").replace(" ", "")


def _names(key: str) -> tuple[str, ...]:
    family, _, name = key.partition(".")
    if name == "name" and family in get_args(Family):
        return catalog.names(cast(Family, family))
    field = field_at(key) if key else None
    return tuple(map(str, literals(field))) if field is not None else ()


def _as_yaml(word: str) -> str:
    """Return `a.b=c` as it stands in a file: `a: {b: c}`."""
    key, _, value = word.partition("=")
    *sections, last = key.split(".")
    text = f"{last}: {value}"
    for section in reversed(sections):
        text = f"{section}: {{{text}}}"
    return text
