"""docs/config.md is complete, up to date and right: its tables are held against the program."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from paths import REPOSITORY

from trainlib.config import Config, dump_config, load_config, shipped_configs
from trainlib.config.checking import rules
from trainlib.config.checking.suggest import format_value
from trainlib.config.docs.descriptions import DESCRIPTIONS
from trainlib.config.docs.reference import MISTAKES, fill_page, mistakes_of
from trainlib.config.reading.yaml_source import parse_value
from trainlib.errors import ConfigError, Mistake

PAGE = REPOSITORY / "docs/config.md"
ROW = re.compile(r"^\| `([\w.]+)` \| (.*?) \| (.*?) \| (.*?) \| `(.*)` \|$", re.MULTILINE)
ROWS = {match[1]: match.groups()[1:] for match in ROW.finditer(PAGE.read_text())}
DEFAULTS = Config(name="x").model_dump()


def dotted(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        yield prefix + name, value
        if isinstance(value, dict):
            yield from dotted(value, f"{prefix}{name}.")


def test_the_page_is_up_to_date() -> None:
    assert fill_page(PAGE.read_text()) == PAGE.read_text(), "`make docs` brings it up to date"


def test_a_key_that_changes_shows_in_the_page() -> None:
    """The comparison above can fail: a page without a row, or with another default, is brought back."""
    page = PAGE.read_text()
    row = next(line for line in page.splitlines() if line.startswith("| `train.batch_size`"))
    assert fill_page(page.replace(row + "\n", "")) == page
    assert fill_page(page.replace(row, row.replace("64", "65"))) == page


def test_every_key_is_on_the_page_and_described() -> None:
    shipped = [load_config([name]) for name in shipped_configs()]
    checked = [yaml.safe_load(dump_config(config)) for config in shipped]  # what `launch check` prints
    known = {key for values in [DEFAULTS, *checked] for key, _ in dotted(values)}
    arguments = {
        f"{section}.{argument}"
        for config in shipped
        for section in ("model", "loss", "optimizer", "scheduler")
        for argument in getattr(getattr(config, section), "args", ())
    }
    arguments |= {key for key, _ in dotted(DEFAULTS) if key in ("optimizer.lr", "optimizer.momentum")}
    assert known - arguments <= set(ROWS)
    assert set(ROWS) == set(DESCRIPTIONS)
    assert all(re.fullmatch(r"\S.*\.", meaning) for _, _, meaning, _ in ROWS.values())


@pytest.mark.parametrize("key", ROWS)
def test_an_example_sets_its_key_and_is_right(key: str) -> None:
    example = ROWS[key][3]
    if key in ("data.augment.custom", "evaluation.metrics"):  # of one's own code
        with pytest.raises(ConfigError, match="which registers it"):
            load_config(["quickstart", *shlex.split(example)])
        return
    words = shlex.split(example)
    if key == "model.weights" or "IMAGENET" in example:
        assert load_config(["quickstart", *words]).model.weights == "IMAGENET1K_V1"
    load_config(["quickstart", *words])
    (word,) = words
    name, _, text = word.partition("=")
    assert key == name or key.startswith(f"{name}.")
    value = parse_value(text, name)
    for part in key.removeprefix(name).lstrip(".").split(".") if key != name else ():
        value = value[0] if isinstance(value, list) else value
        assert part in value, f"{example} says nothing of {key}"
        value = value[part]


def test_defaults_are_those_of_a_configuration_that_says_nothing() -> None:
    def shown(key: str, value: Any) -> str:
        if key == "name":
            return "no default"
        if key == "checkpoint.best.mode":
            value = None  # of the section where it is given; the default section has its mode
        return f"`{value if isinstance(value, str) else format_value(value)}`"

    keys = {key: value for key, value in dotted(DEFAULTS) if key in ROWS and not isinstance(value, dict)}
    assert len(keys) > 80
    assert {key: ROWS[key][1] for key in keys} == {key: shown(key, value) for key, value in keys.items()}


BOUNDS = [
    (key, sign, float(limit))
    for key, (kind, *_) in ROWS.items()
    if not kind.startswith("list")
    for sign, limit in re.findall(r"(>=|>|<=|<) ([\d.]+)(?![\d^])", kind)
]


@pytest.mark.parametrize(("key", "sign", "limit"), BOUNDS)
def test_a_value_beyond_a_limit_is_refused_and_the_limit_told(key: str, sign: str, limit: float) -> None:
    beyond = limit if sign in (">", "<") else limit - 1 if sign == ">=" else limit + 1
    whole = ROWS[key][0].startswith("whole")
    with pytest.raises(ConfigError) as raised:
        load_config(["quickstart", f"{key}={int(beyond) if whole else beyond}"])
    assert any(m.key == key and f"must be {sign} {limit:g}" in m.rule for m in raised.value.mistakes)


def test_every_rule_that_joins_keys_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rule finds a mistake in at least one of the examples: so the page has one for each."""
    broken: set[str] = set()

    def noting(rule: rules.Rule) -> rules.Rule:
        def found(config: Config) -> Iterator[Mistake]:
            for mistake in rule(config):
                broken.add(rule.__name__)
                yield mistake

        return found

    names = {rule.__name__ for _, rule in rules._RULES}
    monkeypatch.setattr(rules, "_RULES", tuple((needs, noting(rule)) for needs, rule in rules._RULES))
    assert all(mistakes_of(words) for words in MISTAKES)
    assert broken == names, "add what breaks the others to MISTAKES in trainlib/config/docs/reference.py; `make docs`"


def test_the_harmless_keys_are_listed() -> None:
    (region,) = re.findall(r"<!-- harmless -->\n(.*?)<!-- end -->", PAGE.read_text(), re.DOTALL)
    assert re.findall("`(.*)`", region) == list(Config.HARMLESS)


def test_the_configurations_in_the_prose_load(tmp_path: Path) -> None:
    blocks = re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    for number, block in enumerate(blocks):
        path = tmp_path / f"example-{number}.yaml"
        path.write_text(block)
        assert load_config([str(path)]).name == f"example-{number}"
