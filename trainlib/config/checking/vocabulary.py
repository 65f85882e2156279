"""Tables of other tools' words: their keys, values and class names, with what is typed here."""

from __future__ import annotations

from collections.abc import Mapping

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
    "checkpoint.best": "checkpoint.best='{{metric: {}}}'",
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
OFF, ON = ("false", "off", "none", "null", "no", "disable", "0"), ("true", "on", "yes", "enable", "1")
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
        **dict.fromkeys(ON, "pretrained"),
        "imagenet": "pretrained",
        "": "pretrained",
        **dict.fromkeys(OFF, "null"),
    },
    "tracking.wandb.mode": {**dict.fromkeys(OFF, "disabled"), **dict.fromkeys(ON, "online"), "": "online"},
    "train.precision": {
        **dict.fromkeys(("16", "16mixed", "half", "amp", "float16", "mixed", *ON, ""), "fp16"),
        **dict.fromkeys(("bfloat16", "bf16mixed"), "bf16"),
        **dict.fromkeys(("32", "32true", "full", "float", "float32", *OFF), "fp32"),
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
    "train.device": {**dict.fromkeys(("gpu", "cuda:0", "cuda:1", *ON, ""), "cuda"), **dict.fromkeys(OFF, "cpu")},
    "train.early_stopping.patience": {**dict.fromkeys((*ON, ""), "10")},
    "loss.weight": dict.fromkeys(ON, "balanced"),
}
# What is said of a class that nobody knows.
OWN: Mapping[str, str] = {
    "loss.name": "a loss of your own: --code FILE.py loss.name=code:NAME or, in Python, trainlib.fit(loss=...)",
    "model.name": "a model of your own: --code FILE.py model.name=code:NAME or, in Python, trainlib.fit(model=...)",
}
