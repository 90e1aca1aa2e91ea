"""Settings of a run from YAML: dotted or nested names, merged, and checked as the command line checks them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from mtlsi.config import DataConfig, RunConfig, TrainConfig
from mtlsi.errors import MistakeError, message_of

PARTS = ("model", "data", "train")


def config_of(where: str, settings: Mapping[str, Any]) -> RunConfig:
    """The run that nested ``settings`` describe, checked; ``where`` begins the message of a ``MistakeError``."""
    for part in PARTS:
        if not isinstance(settings.get(part, {}), dict):
            raise MistakeError(f"{where}: {part} is {settings[part]!r}; expected settings by name")
    try:
        namespace = _parser().parse_object({name: value for name, value in settings.items() if name != "seed"})
        given = namespace.as_dict()
        config = RunConfig(**given | {"data": DataConfig(**given["data"]), "train": TrainConfig(**given["train"])})
        config.check()
    except (ArgumentError, MistakeError, TypeError, ValueError) as error:
        raise MistakeError(f"{where}: {message_of(error)}") from error
    return config


@cache
def _parser() -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(RunConfig, nested_key=None)
    return parser


def nested(where: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """``{"model.num_tokens": 64}`` as ``{"model": {"num_tokens": 64}}``; mappings that meet are merged."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if not isinstance(key, str):
            raise MistakeError(f"{where}: setting {key!r}; expected a name such as model.num_tokens")
        first, *rest = key.split(".")
        for part in reversed(rest):
            value = {part: value}
        found = merged(found, {first: value})
    return found


def merged(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``settings`` with ``changes``: mappings are merged, anything else is replaced."""
    result = dict(settings)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def read_values(settings: Mapping[str, str]) -> dict[str, Any]:
    """Settings as they were typed, read as YAML: 64, [192, 256], {semseg: 3}; ``MistakeError`` where one cannot be."""
    values = {}
    for name, text in settings.items():
        try:
            values[name] = yaml.load(text, UniqueLoader)
        except yaml.YAMLError as error:
            raise MistakeError(f"--{name} {text!r}: {message_of(error)}; expected a value as in YAML") from error
    return values


class UniqueLoader(yaml.SafeLoader):
    """Refuses a name that stands twice in one mapping, of which YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        names = [self.construct_object(key, deep=True) for key, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{name} stands there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_mapping(path: Path) -> dict[str, Any]:
    """The YAML file ``path``; ``MistakeError`` where it is missing, broken or no mapping."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), UniqueLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError) as error:
        raise MistakeError(f"{path}: {message_of(error)}; expected a YAML file") from error
    if not isinstance(content, dict):
        raise MistakeError(f"{path}: {type(content).__name__}; expected settings by name")
    return content
