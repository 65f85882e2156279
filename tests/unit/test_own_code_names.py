"""Names of parts of one's own in a configuration, and their arguments, against what the code registers."""

from __future__ import annotations

from pathlib import Path

import pytest
from own_parts import PARTS

from trainlib.config import load_config
from trainlib.errors import ConfigError
from trainlib.runs.own_code.loading import load_with_code


@pytest.fixture(autouse=True)
def place(workdir: Path) -> Path:
    """A working directory with the code; the list of trusted code is in it, too."""
    (workdir / "own.py").write_text(PARTS)
    return workdir


def mistakes(*words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_with_code(["quickstart", *words], ["own.py"], ["launch", "run"])
    return str(caught.value)


NAMES: dict[str, tuple[str, str]] = {
    "misspelt": ("model={name: code:nte}", "model.name: got code:nte, must be one of code:net; did you mean code:net?"),
    "of another kind": ("loss={name: code:net}", "loss.name: got code:net, which own.py registers as a model"),
    "no such kind": ("optimizer={name: code:x, lr: 1}", "own.py registers no optimizer: put @trainlib.optimizer above"),
    "an unknown argument": (
        "model={name: code:net, widht: 3}",
        "model.widht: unknown key; did you mean model.width? (net takes width)",
    ),
    "a missing one": ("loss={name: code:focal}", "loss.gamma: is missing: focal needs it"),
    "weights": ("model={name: code:net, weights: a.pt}", "model.weights: must be null beside code:net: load them in"),
    "balanced": ("loss={name: code:focal, gamma: 1, weight: balanced}", "which is for the losses of torch"),
    "an unknown metric": ("evaluation.metrics=[code:precision]", "evaluation.metrics.0: got code:precision, must be"),
    "a metric that is no own one": ("evaluation.metrics=[accuracy]", "must be code:NAME"),
    "a metric twice": ("evaluation.metrics=[code:recall, code:recall]", "got code:recall twice"),
    "its mode": (
        "evaluation.metrics=[code:recall] checkpoint.best={metric: val/recall}",
        "checkpoint.best.mode: is missing: val/recall is a metric of your own",
    ),
    "one that is not computed": (
        "checkpoint.best={metric: val/recall, mode: max}",
        'checkpoint.best.metric: got "val/recall", must be one of',
    ),
    "a key of another data set": ("data.roots=x", "data.roots: unknown key; did you mean data.root?"),
}


@pytest.mark.parametrize("case", NAMES)
def test_a_wrong_name_or_argument_is_told_with_what_there_is(case: str) -> None:
    words, message = NAMES[case]
    assert message in mistakes(
        *words.split(" checkpoint", 1)[:1], *[f"checkpoint{w}" for w in words.split(" checkpoint", 1)[1:]]
    )


def test_all_mistakes_are_told_at_once() -> None:
    found = mistakes("model={name: code:nte}", "loss={name: code:focal}", "seed=0")
    assert found.startswith("2 mistakes")


def test_without_the_code_a_name_says_what_is_missing() -> None:
    with pytest.raises(ConfigError, match=r"model.name: got code:net, .* add `--code FILE.py`, which registers it"):
        load_config(["quickstart", "model={name: code:net}"])


def test_the_configuration_holds_the_digest_and_the_names() -> None:
    words = ["quickstart", "model={name: code:net, width: 3}", "evaluation.metrics=[code:recall]"]
    best = "checkpoint.best={metric: val/code:recall, mode: min}"
    config, code, parts = load_with_code([*words, best], ["own.py"], [])
    assert config.code == code.digests
    assert config.model.args == {"width": 3}
    assert config.checkpoint.best is not None
    assert config.checkpoint.best.model_dump() == {"metric": "val/recall", "mode": "min"}
    assert parts.names("metric") == ["recall"]
    assert load_config(["quickstart"]).code == {}
