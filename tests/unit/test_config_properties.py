"""A configuration of any values is the same after it is written and read again: drawn by hypothesis."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import yaml
from hypothesis import given
from hypothesis import strategies as some

from trainlib.config import differences, dump_config, load_config, read_resolved
from trainlib.config.compare import _Dumper
from trainlib.config.reading.yaml_source import parse_value

words = some.one_of(
    some.text(some.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Cn", "Co"]), min_size=1, max_size=12),
    some.sampled_from(["no", "on", "1e-3", "0x10", "010", "~", "null", "2024-01-01", "1:20", "- a", "a: b", "#", "'"]),
)
plain = some.one_of(
    some.none(), some.booleans(), some.integers(1 - 10**19, 10**20 - 1), some.floats(allow_nan=False), words
)
values = some.recursive(
    plain,
    lambda inner: some.one_of(some.lists(inner, max_size=3), some.dictionaries(words, inner, max_size=3)),
    max_leaves=8,
)
rates = some.floats(1e-12, 1e3)
configs = some.fixed_dictionaries(
    {
        "seed": some.integers(0, 2**63 - 1),
        "data": some.fixed_dictionaries(
            {"root": words, "val_fraction": some.floats(0, 0.99), "shuffle": some.booleans()}
        ),
        "optimizer": some.fixed_dictionaries({"name": some.just("SGD"), "lr": rates, "momentum": some.floats(0, 0.99)}),
        "train": some.fixed_dictionaries(
            {
                "epochs": some.integers(1, 10**6),
                "precision": some.sampled_from(["no", "fp32", "bf16", "fp16"]),
                "clip_grad_norm": some.one_of(some.none(), rates),
            }
        ),
        "tracking": some.fixed_dictionaries({"wandb": some.fixed_dictionaries({"project": words, "group": words})}),
    }
)


@given(values)
def test_any_value_is_read_as_it_was_written(value: Any) -> None:
    """Written by our dumper, read by our reader; types included, which `==` does not look at."""
    text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, default_flow_style=False, allow_unicode=True)
    assert repr(parse_value(text, "key")) == repr(value)


@given(configs)
def test_a_configuration_is_the_same_after_it_is_saved(config: dict[str, Any]) -> None:
    resolved = load_config(["quickstart", config])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(dump_config(resolved))
        read = read_resolved(path)
    assert read == resolved
    assert differences(read, resolved) == []
    assert dump_config(read) == dump_config(resolved)
    assert (read.seed, read.data.root, read.optimizer.args["lr"]) == (
        config["seed"],
        config["data"]["root"],
        config["optimizer"]["lr"],
    )
