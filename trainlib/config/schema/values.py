"""Types of single values of the configuration, with their rules: durations, metrics, precisions, names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import BeforeValidator, Field, ValidatorFunctionWrapHandler, WrapValidator

from trainlib.config.custom import is_custom, own_name
from trainlib.parts import ROW_KEYS

NamedMetric = Literal[
    "train/loss",
    "train/accuracy",
    "val/loss",
    "val/accuracy",
    "val/top5",
    "val/macro_f1",
    "val/balanced_accuracy",
    "val/map",
    "val/micro_f1",
    "val/subset_accuracy",
]
OF_ONE_LABEL = ("val/top5", "val/balanced_accuracy")  # the others are of every kind of labels
OF_SEVERAL_LABELS = ("val/map", "val/micro_f1", "val/subset_accuracy")
METRICS: tuple[str, ...] = get_args(NamedMetric)
Mode = Literal["min", "max"]
Decode = Literal["fast", "exact", "pillow"]  # pillow: only of runs that began before the others existed
Split = Literal["stratified", "random", "index"]  # index: only of runs that began before the others existed

PolicyName = Literal["trivial", "randaugment", "autoaugment", "augmix"]
POLICY_ARGUMENTS: Mapping[str, Mapping[str, Any]] = {  # with their defaults
    "trivial": {},
    "randaugment": {"num_ops": 2, "magnitude": 9},
    "autoaugment": {"policy": "imagenet"},
    "augmix": {"severity": 3, "mixture_width": 3, "alpha": 1.0},
}


def _duration(text: object) -> object:
    if not (isinstance(text, str) and re.fullmatch(r"[1-9][0-9]*(ep|st)", text)):
        raise ValueError("must be a duration: a whole number of epochs or steps, like 20ep or 500st")
    return text


def _interval(text: object) -> object:
    try:
        return text if text == "auto" else _duration(text)
    except ValueError as error:
        raise ValueError(f"{error}; or auto") from None


def _warmup(value: object) -> object:
    if value not in ("tensorflow", "timm", "none") and not re.fullmatch(r"[1-9][0-9]*(ep|st)", str(value)):
        raise ValueError("must be tensorflow, timm, none, or a duration, like 5ep or 500st")
    return value


def check_run_name(text: str) -> str:
    """Return the name if it is a valid name for a run; raise ValueError with the rule if not."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", text):
        raise ValueError(
            "must be letters, digits, '.', '_' or '-', at most 100 of them, beginning with a letter or digit: "
            "it names the folder runs/<name>"
        )
    return text


def _node_count(value: object) -> object:
    if isinstance(value, str) and (ends := re.fullmatch(r"([1-9][0-9]*)[-:]([1-9][0-9]*)", value)):
        if int(ends[1]) < int(ends[2]):
            return value.replace(":", "-")  # sbatch's own form; `launch run` has 2:4
        raise ValueError("must go from fewer to more, like 1-4, or be one number")
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError("must be a whole number, or a range like 1-4, of which the queue may give any")
    if value < 1:
        raise ValueError("must be >= 1")
    return value


def canonical_precision(value: object) -> object:
    """Return `fp32` for `no`, which is its name in Accelerate and in older configurations; others as they are."""
    return "fp32" if value == "no" else value


def _flip(value: object) -> object:
    if not isinstance(value, bool) and value != "alternating":
        raise ValueError("must be true, false or alternating")
    return value


def _channels(value: object) -> object:
    if isinstance(value, bool) or value not in (1, 3):
        raise ValueError("must be 3 (red, green, blue) or 1 (grey)")
    return value


def _own_metric(value: object, handler: ValidatorFunctionWrapHandler) -> object:
    """Accept `val/NAME` and `val/code:NAME` for a metric of one's own; a rule asks for its place in the evaluation."""
    own = re.fullmatch(r"val/(?:code:|custom:)?([A-Za-z_]\w*)", value) if isinstance(value, str) else None
    return f"val/{own[1]}" if own else handler(value)


def _metric_name(value: object) -> object:
    if not (isinstance(value, str) and is_custom(value) and re.fullmatch(r"[A-Za-z_]\w*", own_name(value))):
        raise ValueError("must be code:NAME, a metric that code given by `--code` registers (others are always there)")
    if own_name(value) in ROW_KEYS:
        raise ValueError(f"must have another name: {own_name(value)} is in every row already")
    return value


def _code(value: object) -> object:
    if not isinstance(value, dict):
        raise ValueError("must be written by `--code FILE.py`, as names of code with their SHA-256")
    for name, digest in value.items():
        if not is_code_name(name):
            raise ValueError(f"{name!r} must be FILE.py, without a folder, or package.module")
        if not (isinstance(digest, str) and re.fullmatch(r"[0-9a-f]{64}", digest)):
            raise ValueError(f"{name}: {digest!r} must be a SHA-256 of 64 hexadecimal digits: `--code` writes it")
    return value


def is_code_name(name: object) -> bool:
    """Return True for the name of a Python file without a folder, `parts.py`, or of a module, `package.module`."""
    if not isinstance(name, str) or not name.isprintable() or "/" in name or "\\" in name:
        return False
    if name.endswith(".py"):
        return len(name) > 3 and not name.startswith(".")
    return bool(name) and all(part.isidentifier() for part in name.split("."))


def _fold(value: object) -> object:
    found = re.fullmatch(r"([1-9][0-9]*)/([1-9][0-9]*)", value) if isinstance(value, str) else None
    if found is None or not int(found[1]) <= int(found[2]) or int(found[2]) < 2:
        raise ValueError("must be a fold and the number of folds, at least 2, like 1/5 to 5/5")
    return value


def fold_of(text: str) -> tuple[int, int]:
    """Return which fold, from 0 on, and of how many, a value of `data.fold` means."""
    fold, _, num_folds = text.partition("/")
    return int(fold) - 1, int(num_folds)


class SecretError(ValueError):
    """A value that is wrong and may hold a password: no message repeats it."""


def _mirror(value: object) -> object:
    if not isinstance(value, str) or not value:
        raise ValueError("must be an address, like s3://bucket/path, a folder, or null")
    protocol, separator, rest = value.partition("://")
    if separator and ("@" in rest or "?" in rest):
        raise SecretError(
            "must hold no user, password or token: they would be in config.yaml and in logs. Leave them out, and give "
            "them to the library of the protocol through the environment, as AWS_ACCESS_KEY_ID for s3://"
        )
    if separator and (not re.fullmatch(r"[a-z][a-z0-9+.-]*", protocol) or not rest.strip("/") or "::" in rest):
        raise ValueError("must be one address, like s3://bucket/path or gs://bucket/path, or a folder")
    if re.match(r"[a-z][a-z0-9+.-]*:/(?!/)", value):
        raise ValueError("must have two slashes behind the colon, as s3://bucket/path, or be a folder")
    if protocol in ("http", "https"):
        raise ValueError("must be an address that can be written to: s3://bucket/path, gs://bucket/path, a folder")
    return value


def _memory(value: object) -> object:
    if not (isinstance(value, str) and re.fullmatch(r"(0|[1-9][0-9]*)[KMGT]?", value)):
        raise ValueError("must be an amount of memory, like 64G or 500M, in quotes where it is a number alone")
    return value


def _slurm_word(value: object) -> object:
    if not (isinstance(value, str) and re.fullmatch(r"[^\s,=]+", value) and value.isprintable()):
        raise ValueError("must be one word, without blanks, commas and =")
    return value


def _setup_line(value: object) -> object:
    if not (isinstance(value, str) and value.strip() and value.isprintable()):
        raise ValueError("must be one line of bash, like module load cuda/12.4; write several as several elements")
    return value


def _trackers(value: object) -> object:
    own = {"wandb": "tracking.wandb.mode", "tensorboard": "tracking.tensorboard"}
    for name in value if isinstance(value, list) else ():
        if name in own:
            raise ValueError(f"must not name {name}, which has a key of its own: {own[name]}")
    if (
        not isinstance(value, list)
        or not set(map(str, value)) <= set(TRACKERS)
        or len(set(map(str, value))) < len(value)
    ):
        raise ValueError(f"must be a list of different trackers that Accelerate has: {', '.join(TRACKERS)}")
    return value


def _freeze(value: object) -> object:
    is_list = isinstance(value, list) and bool(value) and all(isinstance(one, str) and one for one in value)
    if value not in (None, "features", "backbone") and not is_list:
        raise ValueError("must be features, backbone, null, or a list of patterns of parameter names")
    return value


Metric = Annotated[NamedMetric, WrapValidator(_own_metric)]
MetricName = Annotated[str, BeforeValidator(_metric_name)]
Code = Annotated[dict[str, str], BeforeValidator(_code)]
Freeze = Annotated[Literal["features", "backbone"] | list[str] | None, BeforeValidator(_freeze)]
TRACKERS = ("aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "trackio")
Trackers = Annotated[list[str], BeforeValidator(_trackers)]
Fold = Annotated[str, BeforeValidator(_fold), Field(json_schema_extra={"format": "fold"})]
Memory = Annotated[str, BeforeValidator(_memory)]
SlurmWord = Annotated[str, BeforeValidator(_slurm_word)]
SetupLine = Annotated[str, BeforeValidator(_setup_line)]
Mirror = Annotated[str, BeforeValidator(_mirror)]
Channels = Annotated[int, BeforeValidator(_channels)]
Duration = Annotated[str, BeforeValidator(_duration), Field(json_schema_extra={"format": "duration"})]
Interval = Annotated[str, BeforeValidator(_interval), Field(json_schema_extra={"format": "interval"})]
Warmup = Annotated[
    Literal["tensorflow", "timm", "none"] | Annotated[str, Field(json_schema_extra={"format": "duration"})],
    BeforeValidator(_warmup),
]
Precision = Annotated[Literal["fp32", "bf16", "fp16"], BeforeValidator(canonical_precision)]
NodeCount = Annotated[
    Annotated[int, Field(ge=1)] | Annotated[str, Field(json_schema_extra={"format": "node range"})],
    BeforeValidator(_node_count),
]
LEAST_SIDE, MOST_SIDE = 8, 4096  # of an image, in pixels
Size: TypeAlias = int | Sequence[int]  # of an image: both sides, or height and width


def sides(size: Size) -> tuple[int, int]:
    """Return height and width, in pixels, that an image size means: a number is both, a sequence holds the two."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def _is_side(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and LEAST_SIDE <= value <= most


def _image_size(value: object) -> object:
    both = value if isinstance(value, list) else [value, value]
    if len(both) != 2 or not all(_is_side(side, MOST_SIDE) for side in both):
        raise ValueError(
            f"must be a whole number of pixels from {LEAST_SIDE} to {MOST_SIDE}, or two of them, [height, width]"
        )
    return both[0] if both[0] == both[1] else both


def _resize_size(value: object) -> object:
    if value != "auto" and not _is_side(value, 2 * MOST_SIDE):
        raise ValueError(f"must be auto, or a whole number of pixels from {LEAST_SIDE} to {2 * MOST_SIDE}")
    return value


ImageSize = Annotated[int | list[int], BeforeValidator(_image_size)]
ResizeSize = Annotated[Literal["auto"] | int, BeforeValidator(_resize_size)]
Flip = Annotated[bool | Literal["alternating"], BeforeValidator(_flip)]


def better_mode(metric: str) -> Mode | None:
    """Return "min" for a metric that is better when lower (a loss), "max" for one that is better when higher.

    None for a metric of one's own: the configuration says it.
    """
    if metric not in METRICS:
        return None
    return "min" if metric.endswith("loss") else "max"
