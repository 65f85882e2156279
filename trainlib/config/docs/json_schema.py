"""The JSON Schema of a configuration file, with which editors complete and check it: configs/schema.json.

`make docs` brings the file up to date.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from trainlib.config.docs.descriptions import DESCRIPTIONS
from trainlib.config.load import configs_folder
from trainlib.config.schema.sections import Config

FILE = "schema.json"


def schema_line() -> str:
    """Return the first line of a configuration that names the schema of this installation, for editors."""
    return f"# yaml-language-server: $schema={configs_folder() / FILE}"


def config_schema() -> dict[str, Any]:
    """Return pydantic's schema of the configuration, with the descriptions of docs/config.md; every key is optional."""
    schema = Config.model_json_schema()
    schema.pop("required", None)  # the name is that of the file
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    _describe(schema, schema, "")
    return schema


def schema_text() -> str:
    """Return the content of the file."""
    return json.dumps(config_schema(), indent=1, ensure_ascii=False) + "\n"


def _describe(section: dict[str, Any], root: Mapping[str, Any], prefix: str) -> None:
    for name, field in section["properties"].items():
        key = prefix + name
        if key in DESCRIPTIONS:
            field["description"] = DESCRIPTIONS[key].meaning
        for inner in _sections(field):
            _describe(root["$defs"][inner], root, f"{key}.")


def _sections(field: Mapping[str, Any]) -> list[str]:
    """Return the names of the sections that a field may hold, alone or in a list."""
    inner = [*field.get("anyOf", ()), *([field["items"]] if isinstance(field.get("items"), dict) else ())]
    here = [str(field["$ref"].rpartition("/")[2])] if "$ref" in field else []
    return here + [name for part in inner for name in _sections(part)]
