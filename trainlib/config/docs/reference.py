"""The tables of docs/config.md, made from the schema. The prose of the page is written in the page.

`python -m trainlib.config.docs.reference docs/config.md` brings the page up to date, and configs/schema.json with it.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainlib.config.checking.suggest import format_value
from trainlib.config.docs.descriptions import DESCRIPTIONS
from trainlib.config.docs.json_schema import FILE, schema_text
from trainlib.config.load import configs_folder, load_config
from trainlib.config.schema.sections import Config
from trainlib.errors import ConfigError

# One configuration for each rule that joins several keys, which breaks it: the words after `launch run quickstart`.
MISTAKES: tuple[str, ...] = (
    "train='{epochs: 3, steps: 100}'",
    "train='{batch_size: 64, micro_batch_size: 128}'",
    "data.repeats=65",
    "data.test_fraction=0.1",
    "data='{name: image_folder, root: photos, test_fraction: 0.1, fold: 1/5}'",
    "data.name=table",
    "train='{reproducibility: elastic, batch_size: 4, virtual_shards: 8}'",
    "train='{reproducibility: fast, audit: 100}'",
    "data.resize='{fit: pad, size: 256}'",
    "data='{name: synthetic, image_size: 224, resize: {size: 200}}'",
    "data.channels=1 data.normalize='{mean: [0.5, 0.5, 0.5], std: [0.2, 0.2, 0.2]}'",
    "data.channels=1 model='{name: inception_v3, transform_input: true}'",
    "data.augment='{crop: {}, crop_padding: 4}'",
    "data.augment.crop='{scale: [1.0, 0.5]}'",
    "slurm.nodes=1-4",
    "slurm='{gpus_per_node: 0, cpus_per_gpu: 8}'",
    "train.reproducibility=elastic slurm='{nodes: 1-4, gpus_per_node: 4}'",
    "data.val_fraction=0 train.early_stopping='{metric: val/loss}'",
    "data.val_fraction=0 scheduler='{name: ReduceLROnPlateau, metric: val/loss}'",
    "train.early_stopping='{metric: val/loss, mode: max}'",
    "checkpoint.best='{metric: val/accuracy, mode: min}'",
    "checkpoint.best='{metric: val/recall, mode: max}'",
    "loss.weight='[0, 0, 0, 0, 0, 0, 0, 0, 0, 0]'",
    "loss.label_smoothing=1",
    "loss.target_threshold=0.2",
    "model.weights=run:quickstart",
    "scheduler=[]",
    "scheduler='{name: CosineAnnealingLR, duration: 5ep}'",
    "scheduler='[{name: LinearLR}, {name: CosineAnnealingLR}]'",
    "scheduler='{name: StepLR, step_size: 5, metric: val/loss}'",
    "scheduler='{name: ReduceLROnPlateau, interval: step}'",
    "scheduler='[{name: ReduceLROnPlateau, duration: 5ep}, {name: CosineAnnealingLR}]'",
    "optimizer='{name: Adagrad, lr: 0.1}' scheduler='{name: OneCycleLR, max_lr: 0.1, interval: step}'",
    "loss='{name: BCELoss, activation: none}'",
    "model='{name: cifar10_cnn, weights: IMAGENET1K_V1}'",
    "data.augment.policy='{name: trivial, magnitude: 9}'",
    "data.augment.mixup=0.2 train.batch_size=1",
    "model.cache_features=true data.augment={}",
    "model='{name: vgg16, freeze: features, cache_features: true}' data.augment='{flip: true}'",
    "model='{name: vgg16, unfreeze: [{match: \"*\", at: 1ep}]}'",
    'data.augment={} model=\'{freeze: ["0.*"], unfreeze: [{match: "*", at: 1ep}], cache_features: true}\'',
    "model='{name: resnet18, sync_batchnorm: true}' train.micro_batch_size=16",
    "model='{name: resnet18, checkpoint_activations: true}' train.compile=true",
    "model='{name: resnet18, sync_batchnorm: true}' train.keep_batchnorm=true",
    "model='{name: resnet18, sync_batchnorm: true}' train.audit=100",
    "optimizer='{name: Rprop, no_decay: norm}'",
    "data.normalize='{mean: [124, 116, 104], std: [0.2, 0.2, 0.2]}'",
    "data.labels=several loss.name=BCEWithLogitsLoss",
    "data.label_separator=/",
    "data='{name: table, root: photos, table: photos.csv, labels: several}'",
    "data='{name: table, root: photos, table: photos.csv, labels: several, balance: 0.5}' loss.name=BCEWithLogitsLoss",
    "checkpoint.best.metric=val/map",
)

_REGION = re.compile(r"(<!-- (keys|mistakes|harmless)(?: (\w+))? -->\n).*?(<!-- end -->\n)", re.DOTALL)
_TYPES = {
    "integer": "whole number",
    "fold": "fold, like `1/5`",
    "number": "number",
    "string": "text",
    "boolean": "`true` or `false`",
    "null": "`null`",
    "object": "mapping",
    "duration": "duration",
    "interval": "duration or `auto`",
    "node range": "range like `1-4` or `1:4`",
}
_BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


def fill_page(page: str) -> str:
    """Return the page with its tables, between `<!-- keys data -->` and `<!-- end -->`, made anew."""

    def fill(mark: re.Match[str]) -> str:
        match mark[2]:
            case "keys":
                table = _keys_table(mark[3])
            case "mistakes":
                table = _mistakes()
            case _:
                table = _harmless()
        return f"{mark[1]}{table}{mark[4]}"

    return _REGION.sub(fill, page)


def _keys_table(section: str | None) -> str:
    """Return a table of the keys of a section; without a section, of the top-level keys that are not sections."""
    schema = Config.model_json_schema()
    rows = [row for row in _rows(schema, schema, "") if _belongs(row[0], section)]
    lines = ["| key | type | default | meaning | example |", "|---|---|---|---|---|"]
    for key, kind, default in rows:
        meaning, example = DESCRIPTIONS.get(key, ("", ""))
        lines.append(f"| `{key}` | {kind} | {default} | {meaning} | {_code(example)} |")
    return "\n".join(lines) + "\n"


def _belongs(key: str, section: str | None) -> bool:
    if section is None:
        return "." not in key and not any(other.startswith(f"{key}.") for other in DESCRIPTIONS)
    return key == section or key.startswith(f"{section}.")


def _rows(section: Mapping[str, Any], root: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str, str]]:
    """Yield dotted key, type and default of everything in a section of pydantic's JSON schema."""
    for name, field in section["properties"].items():
        inner = _reference(field)
        yield prefix + name, _kind(field), _default(field)
        if inner is not None:
            yield from _rows(root["$defs"][inner], root, f"{prefix}{name}.")


def _default(field: Mapping[str, Any]) -> str:
    if "default" not in field:
        return "no default"
    value = field["default"]
    if isinstance(value, dict) and field.get("type") != "object":
        return "those below"
    return _code(value if isinstance(value, str) else format_value(value))


def _reference(field: Mapping[str, Any]) -> str | None:
    """Return the name of the section that a field holds, alone or in a list; None if it holds none."""
    if "$ref" in field:
        return str(field["$ref"].rpartition("/")[2])
    inner = [*field.get("anyOf", ()), *([field["items"]] if "items" in field else ())]
    return next((name for part in inner if (name := _reference(part))), None)


def _kind(field: Mapping[str, Any]) -> str:
    """Return the type of a field in words, with its bounds."""
    if "anyOf" in field:
        return " or ".join(_kind(part) for part in field["anyOf"])
    if "$ref" in field:
        return "section"
    if "enum" in field:
        return " or ".join(f"`{word}`" for word in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    if field["type"] == "array":
        count = f"{field['minItems']} " if field.get("minItems") == field.get("maxItems", 0) else ""
        return f"list of {count}({_kind(field['items'])})"
    bounds = [f"{sign} {_number(field[bound])}" for bound, sign in _BOUNDS.items() if bound in field]
    return ", ".join([_TYPES[field.get("format", field["type"])], *bounds])


def _number(value: float) -> str:
    return "2^63" if value == 2**63 else f"{value:g}"


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _mistakes() -> str:
    """Return a table of configurations that each break a joining rule, with the error message."""
    lines = ["| `launch run quickstart` … | error |", "|---|---|"]
    for words in MISTAKES:
        said = "; ".join(str(mistake).replace(" (command line)", "") for mistake in mistakes_of(words))
        lines.append(f"| `{words}` | {said} |")
    return "\n".join(lines) + "\n"


def mistakes_of(words: str) -> Sequence[object]:
    """Return the mistakes in `launch run quickstart <words>`; empty if there are none."""
    try:
        load_config(["quickstart", *shlex.split(words)])
    except ConfigError as error:
        return error.mistakes
    return ()


def _harmless() -> str:
    return "".join(f"- `{key}`\n" for key in Config.HARMLESS)


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(fill_page(path.read_text()))
    (configs_folder() / FILE).write_text(schema_text())
