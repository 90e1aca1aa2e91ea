"""Settings of a run from YAML: dotted or nested names, merged, and checked as the command line checks them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from mtlsi.config import DataConfig, RunConfig, TrainConfig
from mtlsi.errors import MistakeError, message_of
from mtlsi.plain_settings import check_parts, check_plain_settings, in_plain_words, use_plain_values
from mtlsi.reading import DEEPEST, shortened
from mtlsi.yaml_files import parse_yaml, read_yaml


def config_of(where: str, settings: Mapping[str, Any]) -> RunConfig:
    """The run that nested ``settings`` describe, checked; ``where`` begins the message of a ``MistakeError``."""
    check_parts(where, settings)
    try:
        check_plain_settings(settings)
        namespace = _parser().parse_object({name: value for name, value in settings.items() if name != "seed"})
        given = namespace.as_dict()
        config = RunConfig(**given | {"data": DataConfig(**given["data"]), "train": TrainConfig(**given["train"])})
        config.check()
    except (ArgumentError, MistakeError, TypeError, ValueError) as error:
        raise MistakeError(f"{where}: {in_plain_words(message_of(error), _parser())}") from error
    return config


@cache
def _parser() -> ArgumentParser:
    use_plain_values()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(RunConfig, nested_key=None)
    return parser


def nested(where: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """``{"model.num_tokens": 64}`` as ``{"model": {"num_tokens": 64}}``; mappings that meet are merged."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if not isinstance(key, str):
            raise MistakeError(f"{where}: setting {key!r}; expected a name such as model.num_tokens")
        if key.count(".") >= DEEPEST:
            raise MistakeError(f"{where}: setting {shortened(key)}; expected a name of at most {DEEPEST} parts")
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
            values[name] = parse_yaml(text)
        except yaml.YAMLError as error:
            raise MistakeError(f"--{name} {text!r}: {message_of(error)}; expected a value as in YAML") from error
    return values


def read_mapping(path: Path) -> dict[str, Any]:
    """The YAML file ``path``; ``MistakeError`` where it is missing, broken or no mapping."""
    try:
        content = read_yaml(path)
    except OSError as error:
        raise MistakeError(f"{path}: {message_of(error)}; expected a YAML file") from error
    if not isinstance(content, dict):
        raise MistakeError(f"{path}: {type(content).__name__}; expected settings by name")
    return content
