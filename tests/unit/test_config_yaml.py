"""Reading YAML: what a plain value means, and one clear message for each thing that a file can have wrong."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml

from trainlib.config.reading.yaml_source import Source, parse_value, read_file
from trainlib.errors import ConfigError


def read(tmp_path: Path, text: str | bytes) -> Source:
    path = tmp_path / "x.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_file(path, "x.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        (".5e-3", 5e-4),
        ("+1.5", 1.5),
        ("1.", 1.0),
        ("-7", -7),
        ("010", 10),
        ("0x10", 16),
        ("0o17", 15),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("off", "off"),
        ("01:00:00", "01:00:00"),
        ("2024-01-01", "2024-01-01"),
        ("1_000", "1_000"),
        ("1ep", "1ep"),
        ("e3", "e3"),
        ("'1e-3'", "1e-3"),
        ('"no"', "no"),
        ("features.*", "features.*"),
        ("[1, 2.5, x]", [1, 2.5, "x"]),
        ("{a: 1, b: {c: [d]}}", {"a": 1, "b": {"c": ["d"]}}),
        ("!!str 5", "5"),
        ("!!float 5", 5.0),
    ],
)
def test_a_value_is_what_yaml_1_2_says(text: str, value: object) -> None:
    read_value = parse_value(text, "key")
    assert read_value == value
    assert type(read_value) is type(value)


def test_not_a_number_is_read_as_one() -> None:
    assert math.isnan(parse_value(".nan", "key"))


def test_structure_agrees_with_pyyaml(tmp_path: Path) -> None:
    text = """
    base: &base {lr: 0.1, betas: [0.9, 0.99]}
    other: &other {eps: 3.5}
    one: {<<: *base, lr: 0.5}
    two: {<<: [*base, *other], name: "a: b"}
    three: {lr: 1, <<: *other}
    alias: *base
    text: |
      several
      lines
    folded: >
      one
      line
    list:
    - {a: 1}
    - [1, [2, 3]]
    """
    assert read(tmp_path, text).values == yaml.safe_load(text)


def test_of_merged_mappings_the_earlier_ones_win(tmp_path: Path) -> None:
    """As YAML's merge keys are defined; not all releases of PyYAML agree with that."""
    source = read(tmp_path, "a: &a {lr: 1, eps: 2}\nb: &b {lr: 3, beta: 4}\nc: {<<: [*a, *b], eps: 5}\n")
    assert source.values["c"] == {"lr": 1, "beta": 4, "eps": 5}


def test_every_key_knows_its_line(tmp_path: Path) -> None:
    source = read(tmp_path, "seed: 0\n\noptimizer:\n  lr: 0.1\n  param_groups:\n  - match: a\n    lr: 1\n")
    assert source.locate("seed") == "x.yaml line 1"
    assert source.locate("optimizer") == "x.yaml line 3"
    assert source.locate("optimizer.lr") == "x.yaml line 4"
    assert source.locate("optimizer.param_groups.0.lr") == "x.yaml line 7"
    assert source.locate("optimizer.absent.deeper") == "x.yaml line 3"
    assert source.locate("absent") == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty: must hold at least one `key: value` (x.yaml)"),
        ("# nothing\n\n", "the file is empty: must hold at least one `key: value` (x.yaml)"),
        (
            "- a\n- b\n",
            "got a list at the top level, must be keys with values, such as `seed: 0` (x.yaml line 1)",
        ),
        ("text", "got a single value at the top level, must be keys with values, such as `seed: 0` (x.yaml line 1)"),
        (
            "seed: 0\ndata:\n  root: a\n  root: b\n",
            "data.root: appears twice, first on line 3: remove one (x.yaml line 4)",
        ),
        ("seed: 0\nseed: 0\n", "seed: appears twice, first on line 1: remove one (x.yaml line 2)"),
        ("data:\n  1: x\n", "data: got the key 1, must be a name (x.yaml line 2)"),
        ("null: x\n", "got the key null, must be a name (x.yaml line 1)"),
        ("[a]: x\n", "got the key a list or mapping, must be a name (x.yaml line 1)"),
        ("a: 0\nb: \0\n", "character U+0000 is not allowed in YAML: remove it (x.yaml line 2)"),
        (b"a: 0\nb: \xff\n", "not a text file: must be YAML in UTF-8 (x.yaml line 2)"),
        ("a:\n\tb: 0\n", "not valid YAML: indent with spaces, not with a tab (x.yaml line 2)"),
        ("a: b: c\n", "not valid YAML: a second ': ' in one line; put text that holds ': ' in quotes (x.yaml line 1)"),
        ("a: 0\n---\nb: 0\n", "a second document begins here ('---'): must be one document (x.yaml line 2)"),
        ("a: *b\n", "not valid YAML: found undefined alias 'b' (x.yaml line 1)"),
        ("a: &x [*x]\n", "a.0: an alias must not lie inside what it stands for (x.yaml line 1)"),
        ("a: !!timestamp 2024-01-01\n", "a: the tag !!timestamp is not allowed: write a plain value (x.yaml line 1)"),
        ("a: !mine 3\n", "a: the tag !mine is not allowed: write a plain value (x.yaml line 1)"),
        ("a: !!set {b}\n", "a: the tag !!set is not allowed: write a plain value (x.yaml line 1)"),
        ("a: !!int x\n", "a: 'x' is not of the type !!int (x.yaml line 1)"),
        ("a: {<<: 3}\n", "a: `<<` must be followed by a mapping or a list of mappings (x.yaml line 1)"),
    ],
)
def test_each_fault_is_one_message(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert str(caught.value) == message


def test_all_duplicates_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, "a: 0\na: 1\nb: {c: 0, c: 1}\n")
    assert [m.key for m in caught.value.mistakes] == ["a", "b.c"]


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.system ['touch {}']",
        "!!python/object/new:os.system ['touch {}']",
        "!!python/name:os.system",
        "!!python/module:antigravity",
    ],
)
def test_nothing_in_a_file_is_executed(tmp_path: Path, tag: str) -> None:
    touched = tmp_path / "touched"
    with pytest.raises(ConfigError, match=r"the tag !!python/.* is not allowed.*\(x.yaml line 1\)"):
        read(tmp_path, f"a: {tag.format(touched)}\n")
    assert not touched.exists()


def test_aliases_cannot_expand_without_end(tmp_path: Path) -> None:
    levels = [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]" for i in range(1, 9)]
    with pytest.raises(ConfigError, match="more than 10000 values"):
        read(tmp_path, "\n".join(["l0: &l0 [0]", *levels]))


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    assert read(tmp_path, b"\xef\xbb\xbfseed: 3\n").values == {"seed": 3}


def test_a_folder_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="conf: cannot be read: is a folder"):
        read_file(tmp_path, "conf")
