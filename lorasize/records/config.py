"""The configuration in force: what the options are set to where nothing is said on the command line."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from lorasize.records.words import STRICT


class ConfigValue(BaseModel):
    """One key as a configuration file spells it, dots between tables; a value of None is not set.

    `source`: the environment variable, the file (`lorasize.toml`, `pyproject.toml [tool.lorasize]`) or `default`.
    """

    model_config = STRICT
    key: str
    value: str | int | float | None
    source: str


class Config(BaseModel):
    """What `config` finds. `files`: the configuration files that were read."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)
    schema_: Literal["lorasize.config/1"] = Field(default="lorasize.config/1", alias="schema")
    values: tuple[ConfigValue, ...]
    files: tuple[str, ...] = ()
