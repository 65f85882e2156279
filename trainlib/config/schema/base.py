"""What every section of the configuration is made of."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A section of the configuration with a fixed set of keys."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class OpenSection(Section):
    """A section that may also hold keys that are not its own: the arguments of what it names or is about."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True, allow_inf_nan=False)

    @property
    def args(self) -> dict[str, Any]:
        """The arguments: every key that is not one of the section's own."""
        return dict(self.__pydantic_extra__ or {})


class Named(OpenSection):
    """A section that names a class and, beside its own keys, holds arguments for that class."""

    name: str
