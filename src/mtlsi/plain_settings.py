"""Settings as jsonargparse reads them from files and words, kept to plain values.

Of its own accord it imports whatever module a setting ``class_path`` names, which runs that module's code, and reads any
file that stands in the place of settings. Here a file of settings is values and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile, set_loader  # pyright: ignore[reportPrivateImportUsage]: documented

from mtlsi.errors import MistakeError, message_of
from mtlsi.reading import shortened
from mtlsi.yaml_files import parse_yaml, read_yaml

PARTS = ("model", "data", "train")
"""The settings of a run that are settings by name themselves."""
CODE = ("class_path", "init_args", "dict_kwargs", "__path__", "__default_config__")
"""Names that mean more than a value to jsonargparse."""


def use_plain_values() -> None:
    """From here on jsonargparse reads YAML with this project's loader."""
    set_loader("yaml", _load, (yaml.YAMLError,))


def _load(text: str) -> Any:
    value = parse_yaml(text)
    if isinstance(value, dict) and value and all(item is None for item in value.values()):
        return text  # "name:" or "{name}" is a word, as jsonargparse has it, too
    try:
        check_plain_settings(value)
    except MistakeError as error:
        raise yaml.YAMLError(str(error)) from error
    return value


def check_plain_settings(value: Any) -> None:
    """Raises ``MistakeError`` for settings, at any depth, under a name that would name code to import."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Mapping):
            for name in value:
                if any(part in CODE for part in str(name).split(".")):
                    raise MistakeError(
                        f"unknown setting {shortened(name)}; expected plain values: code is never named here"
                    )
            waiting += value.values()
        elif isinstance(value, list | tuple):
            waiting += value


def check_parts(where: str, settings: Mapping[str, Any]) -> None:
    """Raises ``MistakeError``, which begins with ``where``, unless each of ``PARTS`` holds settings by name."""
    for part in PARTS:
        if not isinstance(settings.get(part, {}), dict):
            raise MistakeError(f"{where}: {part} is {shortened(settings[part])}; expected settings by name")


class ConfigFile(ActionConfigFile):
    """``--config FILE``: checked before jsonargparse sees it."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """Raises what ``parser.error`` raises for a file that is missing, no mapping or no plain values."""
        try:
            content = read_yaml(Path(values))
            if not isinstance(content, dict):
                raise MistakeError(f"{values}: holds {type(content).__name__}; expected settings by name")
            check_parts(str(values), content)
            if "config" in content:
                raise MistakeError(f"{values}: config: one file names no other; expected settings alone")
            try:
                check_plain_settings(content)
            except MistakeError as error:
                raise MistakeError(f"{values}: {error}") from error
        except MistakeError as error:
            parser.error(str(error))
        except (OSError, ValueError) as error:
            parser.error(f"--config {values}: {message_of(error)}; expected a YAML file such as those in recipes/")
        super().__call__(parser, cfg, values, option_string)
